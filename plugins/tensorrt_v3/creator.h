// The plugin's maker: from an ONNX node's attributes while an engine is built, from the engine's fields when it is
// read.
#pragma once
#include <NvInferRuntime.h>

#include <vector>

#include "op.h"

namespace sadnet_plugin {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator();

  // name: the layer's. Fields other than the op's attributes are passed over: an ONNX node carries plugin_namespace,
  // plugin_version and aot too. Attributes that are not there have their defaults.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

// Fields that point to the attributes.
std::vector<nvinfer1::PluginField> fields_of(const Attributes& attributes);

}  // namespace sadnet_plugin
