#include "shapes.h"

#include <algorithm>
#include <string>

#include "log.h"

namespace sadnet_plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int RANKS[TENSORS] = {4, 4, 4, 1, 4};
constexpr int64_t MOST_IMAGES = 65535;                   // blocks in z
constexpr int64_t MOST_VALUES = (int64_t{1} << 31) - 1;  // of a plane, and of weight: linear.cu's 32-bit indexes
constexpr int64_t MOST_BYTES = int64_t{1} << 32;         // of a channels-last image of x: fused.cuh's 32-bit offsets

std::string text(int64_t size) { return size < 0 ? "?" : std::to_string(size); }

std::string text(const Dims& dims) {
  std::string text_of = "(";
  for (int32_t i = 0; i < dims.nbDims && i < Dims::MAX_DIMS; ++i) text_of += (i ? ", " : "") + text(dims.d[i]);
  return text_of + ")";
}

std::string text(const PluginTensorDesc& tensor) {
  std::string type = "type " + std::to_string(static_cast<int>(tensor.type));
  if (tensor.type == DataType::kFLOAT) type = "fp32";
  if (tensor.type == DataType::kHALF) type = "fp16";
  std::string format = "format " + std::to_string(static_cast<int>(tensor.format));
  if (tensor.format == TensorFormat::kLINEAR) format = "LINEAR";
  if (tensor.format == TensorFormat::kHWC8) format = "HWC8";
  return type + " " + format;
}

bool fit(int64_t a, int64_t b) { return a < 0 || b < 0 || a == b; }

bool fit(const Dims& a, const Dims& b) {
  bool all = a.nbDims == b.nbDims;
  for (int32_t i = 0; all && i < a.nbDims; ++i) all = fit(a.d[i], b.d[i]);
  return all;
}

// Whether the fused kernel's offsets reach all of a channels-last image; a size that is UNKNOWN counts as small.
bool within_reach(const Dims& x) {
  const int64_t c = std::max<int64_t>(x.d[1], 1), h = std::max<int64_t>(x.d[2], 1), w = std::max<int64_t>(x.d[3], 1);
  return h <= MOST_VALUES && w <= MOST_VALUES && h * w < MOST_BYTES / (2 * c);
}

}  // namespace

void check_shapes(const Dims (&inputs)[INPUTS], const Dims* y, int32_t offset_groups) {
  for (int i = 0; i < INPUTS; ++i)
    if (inputs[i].nbDims != RANKS[i])
      refuse(std::string("expected ") + TENSOR_NAMES[i] + " with " + std::to_string(RANKS[i]) +
             " dimensions, found shape " + text(inputs[i]));
  const int64_t n = inputs[X].d[0], c = inputs[X].d[1], h = inputs[X].d[2], w = inputs[X].d[3], o = inputs[WEIGHT].d[0];
  if (c == 0 || (c > 0 && c % offset_groups != 0))
    refuse("expected offset_groups that divide the " + text(c) + " channels of x, found " +
           std::to_string(offset_groups));
  const Dims expected[TENSORS] = {inputs[X],
                                  {4, {n, offset_mask_channels(offset_groups), h, w}},
                                  {4, {o, c, KERNEL, KERNEL}},
                                  {1, {o}},
                                  {4, {n, o, h, w}}};
  for (int i = 0; i < TENSORS; ++i) {
    const Dims* const found = i == Y ? y : &inputs[i];
    if (found && !fit(*found, expected[i]))
      refuse(std::string("expected ") + TENSOR_NAMES[i] + " of shape " + text(expected[i]) + " for x of " +
             text(inputs[X]) + ", found " + text(*found));
  }
}

bool supports(int32_t position, const PluginTensorDesc (&tensors)[TENSORS], int32_t offset_groups) {
  const PluginTensorDesc &here = tensors[position], &x = tensors[X];
  if (position == X) {
    if (here.format == TensorFormat::kLINEAR) return here.type == DataType::kFLOAT || here.type == DataType::kHALF;
    return here.format == TensorFormat::kHWC8 && here.type == DataType::kHALF && here.dims.nbDims == RANKS[X] &&
           fused_tiles(here.dims.d[1], here.dims.d[1], offset_groups) > 0 && within_reach(here.dims);
  }
  if (here.type != x.type) return false;
  if (position == BIAS || x.format == TensorFormat::kLINEAR) return here.format == TensorFormat::kLINEAR;
  const bool other_outputs = position == WEIGHT && here.dims.nbDims == RANKS[WEIGHT] && here.dims.d[0] != x.dims.d[1];
  return here.format == TensorFormat::kHWC8 && !other_outputs;
}

Layout layout_of(const PluginTensorDesc (&tensors)[TENSORS], int32_t offset_groups) {
  for (int i = 0; i < TENSORS; ++i)
    if (!supports(i, tensors, offset_groups)) {
      std::string found;
      for (int j = 0; j < TENSORS; ++j) found += std::string(j ? ", " : "") + TENSOR_NAMES[j] + " " + text(tensors[j]);
      refuse("expected all fp32 LINEAR, all fp16 LINEAR or, for SADNet's layers, fp16 HWC8 with bias LINEAR, found " +
             found + " for x of " + text(tensors[X].dims) + " and weight of " + text(tensors[WEIGHT].dims));
    }
  if (tensors[X].format == TensorFormat::kHWC8) return Layout::HWC8_FP16;
  return tensors[X].type == DataType::kHALF ? Layout::LINEAR_FP16 : Layout::LINEAR_FP32;
}

Call call_of(const PluginTensorDesc (&tensors)[TENSORS], const Attributes& attributes) {
  Dims inputs[INPUTS];
  for (int i = 0; i < INPUTS; ++i) inputs[i] = tensors[i].dims;
  check_shapes(inputs, &tensors[Y].dims, attributes.offset_groups);
  const Layout layout = layout_of(tensors, attributes.offset_groups);
  const int64_t n = inputs[X].d[0], c = inputs[X].d[1], h = inputs[X].d[2], w = inputs[X].d[3], o = inputs[WEIGHT].d[0];
  if (std::min({n, c, h, w, o}) < 0) refuse("expected sizes that are known, found x of " + text(inputs[X]));
  const auto within = [](int64_t a, int64_t b) { return a <= MOST_VALUES && b <= MOST_VALUES && a * b <= MOST_VALUES; };
  if (n > MOST_IMAGES || !within(h, w) || !within(c, TAPS) || !within(o, c * TAPS))
    refuse("expected at most " + text(MOST_IMAGES) + " images of " + text(MOST_VALUES) + " pixels, and a weight of " +
           text(MOST_VALUES) + " values, found x of " + text(inputs[X]) + " and weight of " + text(inputs[WEIGHT]));
  const auto size = [](int64_t value) { return static_cast<int>(value); };
  return {layout, {size(n), size(c), size(h), size(w), size(o), attributes.offset_groups, attributes.negative_slope}};
}

}  // namespace sadnet_plugin
