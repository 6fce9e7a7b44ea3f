#include "tensorrt.h"

#include <dlfcn.h>

#define SADNET_TEXT_OF(value) #value
#define SADNET_TEXT(value) SADNET_TEXT_OF(value)

namespace sadnet_plugin {
namespace {

constexpr const char* LIBRARIES[] = {
    "libnvinfer.so." SADNET_TEXT(NV_TENSORRT_MAJOR),
    "libnvinfer_lean.so." SADNET_TEXT(NV_TENSORRT_MAJOR),
};

template <class Result>
Result* call(void* library, const char* function) noexcept {
  const auto found = reinterpret_cast<Result* (*)() noexcept>(dlsym(library, function));
  return found ? found() : nullptr;
}

}  // namespace

// By name, because trtexec and Python load TensorRT without making its symbols global, where a weak symbol of ours
// would not find them. RTLD_NOLOAD: one that is not there already is of no use.
TensorRT::TensorRT() noexcept {
  for (const char* const name : LIBRARIES)
    if (!handle_) handle_ = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
}

TensorRT::~TensorRT() {
  if (handle_) dlclose(handle_);
}

nvinfer1::IPluginRegistry* TensorRT::registry() const noexcept {
  return handle_ ? call<nvinfer1::IPluginRegistry>(handle_, "getPluginRegistry")
                 : call<nvinfer1::IPluginRegistry>(RTLD_DEFAULT, "getPluginRegistry");  // linked into the program
}

nvinfer1::ILogger* TensorRT::logger() const noexcept {
  return handle_ ? call<nvinfer1::ILogger>(handle_, "getLogger") : nullptr;
}

const TensorRT& tensorrt() noexcept {
  static const TensorRT found;
  return found;
}

}  // namespace sadnet_plugin
