// The tensors of one call, checked: whether their shapes, types and formats are those of the op.
#pragma once
#include <NvInferRuntime.h>

#include "kernels.h"
#include "op.h"

namespace sadnet_plugin {

enum class Layout { LINEAR_FP32, LINEAR_FP16, HWC8_FP16 };

struct Call {
  Layout layout;
  Problem problem;
};

// A dimension that is not known yet, while an engine is built.
constexpr int64_t UNKNOWN = -1;

// What follows throws Error, saying what was expected and what was found.

// The shapes of the four inputs, and of y where it is given; what is UNKNOWN fits anything.
void check_shapes(const nvinfer1::Dims (&inputs)[INPUTS], const nvinfer1::Dims* y, int32_t offset_groups);

// Whether TensorRT may choose this type and format for the tensor at the position, after those before it.
bool supports(int32_t position, const nvinfer1::PluginTensorDesc (&tensors)[TENSORS], int32_t offset_groups);

// The layout that all tensors have together.
Layout layout_of(const nvinfer1::PluginTensorDesc (&tensors)[TENSORS], int32_t offset_groups);

// Everything above, with all sizes known, and none beyond what the kernels can count.
Call call_of(const nvinfer1::PluginTensorDesc (&tensors)[TENSORS], const Attributes& attributes);

}  // namespace sadnet_plugin
