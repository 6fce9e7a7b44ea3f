// How TensorRT finds the plugin: by the two functions that its loader asks a plugin library for, and, for programs that
// only open the library (trtexec --staticPlugins, Triton), by itself.
#include <NvInferRuntime.h>

#include "creator.h"
#include "log.h"
#include "tensorrt.h"

namespace {

sadnet_plugin::Creator creator;

// The creator's place in the registry of the TensorRT in this process, from the library's opening to its closing. A
// loader that asks for the creators puts them there itself, and fails where they are already: it gets the place.
class Registration {
 public:
  Registration() noexcept {
    if (auto* const registry = sadnet_plugin::tensorrt().registry())
      registered_ = registry->registerCreator(creator, sadnet_plugin::NAMESPACE);
  }
  ~Registration() { withdraw(); }

  void withdraw() noexcept {
    if (registered_) sadnet_plugin::tensorrt().registry()->deregisterCreator(creator);
    registered_ = false;
  }

 private:
  bool registered_ = false;
};

Registration registration;

}  // namespace

#pragma GCC visibility push(default)

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { sadnet_plugin::set_logger_finder(finder); }

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  registration.withdraw();
  count = 1;
  return creators;
}

#pragma GCC visibility pop
