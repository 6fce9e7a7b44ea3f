#include "plugin.h"

#include <cmath>

#include "creator.h"
#include "kernels.h"
#include "log.h"
#include "shapes.h"

namespace sadnet_plugin {
namespace {

using namespace nvinfer1;

void check_counts(int32_t inputs, int32_t outputs) {
  if (inputs != INPUTS || outputs != OUTPUTS)
    refuse("expected 4 inputs and 1 output, found " + std::to_string(inputs) + " and " + std::to_string(outputs));
}

template <class Pointer>
void check_pointer(const char* name, Pointer pointer) {
  if (!pointer) refuse(std::string("expected ") + name + ", found a null pointer");
}

// What is known of a tensor while an engine is built: the profile's largest size where a dimension is not fixed.
PluginTensorDesc largest(const DynamicPluginTensorDesc& tensor) {
  PluginTensorDesc known = tensor.desc;
  if (tensor.max.nbDims == known.dims.nbDims)
    for (int32_t i = 0; i < known.dims.nbDims && i < Dims::MAX_DIMS; ++i)
      if (known.dims.d[i] < 0) known.dims.d[i] = tensor.max.d[i];
  return known;
}

Call checked_call(const PluginTensorDesc* in, const PluginTensorDesc* out, const Attributes& attributes) {
  check_pointer("descriptions of the inputs", in);
  check_pointer("a description of the output", out);
  return call_of({in[X], in[OFFSET_MASK], in[WEIGHT], in[BIAS], out[0]}, attributes);
}

// The kernels load and store as much as 16 bytes at a time of channels-last tensors. What is not aligned would stop the
// CUDA context for good.
void check_memory(const char* name, const void* memory, Layout layout) {
  const unsigned bytes = layout == Layout::HWC8_FP16 ? 16 : layout == Layout::LINEAR_FP16 ? 2 : 4;
  check_pointer(name, memory);
  if (reinterpret_cast<uintptr_t>(memory) % bytes != 0)
    refuse(std::string("expected ") + name + " at a multiple of " + std::to_string(bytes) +
           " bytes, found it elsewhere");
}

cudaError_t launch(const Call& call, int32_t tile, const Buffers& buffers, cudaStream_t stream) {
  const Problem& problem = call.problem;
  switch (call.layout) {
    case Layout::HWC8_FP16:
      return launch_fused(problem, tile, buffers, stream);
    case Layout::LINEAR_FP16:
      return problem.o <= 32 ? launch_linear<__half, 32>(problem, buffers, stream)
                             : launch_linear<__half, 64>(problem, buffers, stream);
    case Layout::LINEAR_FP32:
      return problem.o <= 32 ? launch_linear<float, 32>(problem, buffers, stream)
                             : launch_linear<float, 64>(problem, buffers, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

Plugin::Plugin(Attributes attributes) : attributes_(attributes) {
  if (attributes.offset_groups < 1)
    refuse("expected offset_groups of 1 or more, found " + std::to_string(attributes.offset_groups));
  if (!std::isfinite(attributes.negative_slope))
    refuse("expected a finite negative_slope, found " + std::to_string(attributes.negative_slope));
  metadata_ = "offset_groups=" + std::to_string(attributes.offset_groups) +
              " negative_slope=" + std::to_string(attributes.negative_slope);
}

// ---- what it is

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
  return value_of<IPluginV3*>("clone", nullptr, [&] { return new Plugin(*this); });
}

const char* Plugin::getPluginName() const noexcept { return NAME; }
const char* Plugin::getPluginVersion() const noexcept { return VERSION; }
const char* Plugin::getPluginNamespace() const noexcept { return NAMESPACE; }

// ---- build: the network's tensors

int32_t Plugin::getNbOutputs() const noexcept { return OUTPUTS; }

int32_t Plugin::getOutputDataTypes(DataType* output_types, int32_t outputs, const DataType* input_types,
                                   int32_t inputs) const noexcept {
  return status_of("getOutputDataTypes", [&] {
    check_counts(inputs, outputs);
    check_pointer("types of the inputs", input_types);
    check_pointer("room for the output's type", output_types);
    const DataType type = input_types[X];
    bool one_type = type == DataType::kFLOAT || type == DataType::kHALF;
    std::string found;
    for (int i = 0; i < INPUTS; ++i) {
      one_type = one_type && input_types[i] == type;
      found += (i ? ", " : "") + std::to_string(static_cast<int>(input_types[i]));
    }
    if (!one_type) refuse("expected inputs that are all fp32 (0) or all fp16 (1), found the types " + found);
    output_types[0] = type;
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* input_shapes, int32_t inputs, const DimsExprs*, int32_t,
                                DimsExprs* output_shapes, int32_t outputs, IExprBuilder&) noexcept {
  return status_of("getOutputShapes", [&] {
    check_counts(inputs, outputs);
    check_pointer("shapes of the inputs", input_shapes);
    check_pointer("room for the output's shape", output_shapes);
    Dims known[INPUTS];
    for (int i = 0; i < INPUTS; ++i) {
      known[i].nbDims = input_shapes[i].nbDims;
      for (int32_t j = 0; j < known[i].nbDims && j < Dims::MAX_DIMS; ++j) {
        const IDimensionExpr* const size = input_shapes[i].d[j];
        check_pointer("a dimension", size);
        known[i].d[j] = size->isConstant() ? size->getConstantValue() : UNKNOWN;
      }
    }
    check_shapes(known, nullptr, attributes_.offset_groups);
    // Kernel 3x3, stride 1, padding 1 keep the image's size: of x (N, C, H, W) and weight (O, C, 3, 3) y (N, O, H, W).
    const DimsExprs &x = input_shapes[X], &weight = input_shapes[WEIGHT];
    output_shapes[0] = {4, {x.d[0], weight.d[0], x.d[2], x.d[3]}};
  });
}

// ---- build: what TensorRT may choose from

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t inputs,
                                       int32_t outputs) noexcept {
  return value_of("supportsFormatCombination", false, [&] {
    check_counts(inputs, outputs);
    check_pointer("descriptions of the tensors", tensors);
    if (position < 0 || position >= TENSORS)
      refuse("expected a position from 0 to 4, found " + std::to_string(position));
    PluginTensorDesc known[TENSORS] = {};
    for (int i = 0; i <= position; ++i) known[i] = largest(tensors[i]);  // those after it are not set yet
    return supports(position, known, attributes_.offset_groups);
  });
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t inputs, const DynamicPluginTensorDesc* out,
                                int32_t outputs) noexcept {
  return status_of("configurePlugin", [&] {
    check_counts(inputs, outputs);
    check_pointer("descriptions of the inputs", in);
    check_pointer("a description of the output", out);
    const Dims shapes[INPUTS] = {in[X].desc.dims, in[OFFSET_MASK].desc.dims, in[WEIGHT].desc.dims, in[BIAS].desc.dims};
    check_shapes(shapes, &out[0].desc.dims, attributes_.offset_groups);
    const PluginTensorDesc tensors[TENSORS] = {largest(in[X]), largest(in[OFFSET_MASK]), largest(in[WEIGHT]),
                                               largest(in[BIAS]), largest(out[0])};
    const bool fused = layout_of(tensors, attributes_.offset_groups) == Layout::HWC8_FP16;
    const int64_t c = shapes[X].d[1], o = shapes[WEIGHT].d[0];
    tactics_ = fused ? fused_tiles(c, o, attributes_.offset_groups) : 0;
  });
}

int32_t Plugin::getNbTactics() noexcept { return tactics_; }

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  return status_of("getValidTactics", [&] {
    if (count != tactics_)
      refuse("expected room for " + std::to_string(tactics_) + " tactics, found " + std::to_string(count));
    if (count) check_pointer("room for the tactics", tactics);
    for (int32_t i = 0; i < count; ++i) tactics[i] = 1 + i;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                                int32_t) const noexcept {
  return 0;
}

const char* Plugin::getMetadataString() noexcept { return metadata_.c_str(); }

// ---- run

// What tile a tactic is depends on the layer, which is known when it runs.
int32_t Plugin::setTactic(int32_t tactic) noexcept {
  return status_of("setTactic", [&] {
    if (tactic < 0) refuse("expected a tactic of 0 or more, found " + std::to_string(tactic));
    tactic_ = tactic;
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t inputs, const PluginTensorDesc* out,
                              int32_t outputs) noexcept {
  return status_of("onShapeChange", [&] {
    check_counts(inputs, outputs);
    checked_call(in, out, attributes_);
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                        void* const* outputs, void*, cudaStream_t stream) noexcept {
  return status_of("enqueue", [&] {
    const Call call = checked_call(in, out, attributes_);
    const Problem& problem = call.problem;
    if (problem.n == 0 || problem.o == 0 || problem.h == 0 || problem.w == 0) return;  // a grid of no blocks fails
    check_pointer("the inputs' memory", inputs);
    check_pointer("the output's memory", outputs);
    for (int i = 0; i < INPUTS; ++i) check_memory(TENSOR_NAMES[i], inputs[i], call.layout);
    check_memory(TENSOR_NAMES[Y], outputs[0], call.layout);
    const int32_t tactics =
        call.layout == Layout::HWC8_FP16 ? fused_tiles(problem.c, problem.o, problem.offset_groups) : 0;
    if (tactic_ > tactics)
      refuse("expected a tactic up to " + std::to_string(tactics) + ", found " + std::to_string(tactic_) +
             ": build the engine anew with this plugin");
    const Buffers buffers = {inputs[X], inputs[OFFSET_MASK], inputs[WEIGHT], inputs[BIAS], outputs[0]};
    const cudaError_t error = launch(call, tactic_ > 0 ? tactic_ - 1 : 0, buffers, stream);
    if (error != cudaSuccess)
      throw Error(ErrorCode::kFAILED_EXECUTION, std::string("the kernel's launch failed: ") + cudaGetErrorName(error) +
                                                    ": " + cudaGetErrorString(error));
  });
}

// Nothing of a context is used.
IPluginV3* Plugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return value_of<const PluginFieldCollection*>("getFieldsToSerialize", nullptr, [&] {
    fields_ = fields_of(attributes_);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  });
}

}  // namespace sadnet_plugin
