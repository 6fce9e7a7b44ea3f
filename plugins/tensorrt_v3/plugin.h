// The plugin: what TensorRT asks of it while it builds an engine, and while it runs one.
#pragma once
#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "op.h"

static_assert(NV_TENSORRT_MAJOR >= 10, "IPluginV3 came with TensorRT 10");

namespace sadnet_plugin {

// Formats, the fast one first where a layer has it:
//   fp16, HWC8    all tensors but bias; SADNet's own layers, on tensor cores; a tactic for each tile of tiles.def
//   fp16, LINEAR  any layer
//   fp32, LINEAR  any layer
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // Throws Error for attributes that no layer can have.
  explicit Plugin(Attributes attributes);

  // ---- what it is
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // ---- build: the network's tensors
  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* input_shapes, int32_t inputs,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* output_shapes, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;

  // ---- build: what TensorRT may choose from
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) noexcept override;
  // Without a getTimingCacheID of ours TensorRT keeps no times of them, which would be wrong once tiles.def changes.
  int32_t getNbTactics() noexcept override;
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) const noexcept override;
  const char* getMetadataString() noexcept override;

  // ---- run
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  Plugin(const Plugin&) = default;  // clone's

  Attributes attributes_;
  std::string metadata_;
  int32_t tactics_ = 0;  // of the format of the latest configurePlugin
  int32_t tactic_ = 0;   // 1 + a tile's index; 0, TensorRT's default: the first

  std::vector<nvinfer1::PluginField> fields_;  // the collection's, which points to the attributes
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace sadnet_plugin
