// The TensorRT that this process has loaded, if any. The plugin is not linked with it, so that one file serves the full
// and the lean runtime, and loads without either.
#pragma once
#include <NvInferRuntime.h>

namespace sadnet_plugin {

class TensorRT {
 public:
  TensorRT() noexcept;
  ~TensorRT();
  TensorRT(const TensorRT&) = delete;
  TensorRT& operator=(const TensorRT&) = delete;

  // The global plugin registry and the global logger; null where there is none.
  nvinfer1::IPluginRegistry* registry() const noexcept;
  nvinfer1::ILogger* logger() const noexcept;

 private:
  void* handle_ = nullptr;  // keeps it loaded for as long as this library is
};

// Looked for once, when first asked for.
const TensorRT& tensorrt() noexcept;

}  // namespace sadnet_plugin
