// The op `sadnet::ModulatedDeformConv2d`, version 1, for C++: what plugins/op.py defines.
#pragma once
#include <cstdint>

namespace sadnet_plugin {

constexpr char NAMESPACE[] = "sadnet", NAME[] = "ModulatedDeformConv2d", VERSION[] = "1";

constexpr int KERNEL = 3, TAPS = KERNEL * KERNEL;

struct Attributes {
  int32_t offset_groups = 8;
  float negative_slope = 0.2f;  // 1: no activation
};

constexpr int64_t offset_mask_channels(int32_t offset_groups) { return int64_t{3} * TAPS * offset_groups; }

// The order of the plugin's tensors, inputs first.
enum Tensor { X, OFFSET_MASK, WEIGHT, BIAS, Y };
constexpr int INPUTS = 4, OUTPUTS = 1, TENSORS = INPUTS + OUTPUTS;
constexpr const char* TENSOR_NAMES[TENSORS] = {"x", "offset_mask", "weight", "bias", "y"};

}  // namespace sadnet_plugin
