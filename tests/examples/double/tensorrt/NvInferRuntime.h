// As much of TensorRT, or of TensorRT-RTX with -DTRT_MAJOR_RTX=1, as examples/cpp calls, on a CPU.
//
// A plan is a text: "double", the type, "plugin" or "alone", the four sizes of the smallest input, and of the largest.
// Its network mirrors the picture left to right and turns its colours round, which tells one axis from another.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>

#include "cuda_runtime_api.h"
#include "double.h"

namespace nvinfer1 {

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};
enum class DataType { kFLOAT, kHALF, kUINT8 };
enum class TensorFormat { kLINEAR };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector { kMIN, kOPT, kMAX };

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity severity, const char* text) noexcept = 0;

 protected:
  virtual ~ILogger() = default;
};

struct Network {
  DataType type;
  Dims least, most;
  int64_t sizes[3] = {};  // channels, height and width of the input at hand
  void *input = nullptr, *output = nullptr;

  template <class T>
  void run() const {
    const int64_t c = sizes[0], h = sizes[1], w = sizes[2];
    const bool last = type == DataType::kUINT8;
    const auto at = [=](int64_t k, int64_t y, int64_t x) { return last ? (y * w + x) * c + k : (k * h + y) * w + x; };
    for (int64_t k = 0; k < c; ++k)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x)
          static_cast<T*>(output)[at(k, y, x)] = static_cast<const T*>(input)[at(c - 1 - k, y, w - 1 - x)];
  }
};

class IExecutionContext {
 public:
  IExecutionContext(const Network& network, ILogger& logger) : network_(network), logger_(logger) {}
  bool setInputShape(const char*, const Dims& shape) {
    for (int32_t i = 0; i < 4; ++i)
      if (shape.d[i] < network_.least.d[i] || shape.d[i] > network_.most.d[i]) return false;
    const bool last = network_.type == DataType::kUINT8;
    for (int i = 0; i < 3; ++i) network_.sizes[i] = shape.d[last ? (i == 0 ? 3 : i) : i + 1];
    return !fails();
  }
  bool setTensorAddress(const char* name, void* memory) {
    (name == std::string("noisy") ? network_.input : network_.output) = memory;
    return !fails();
  }
  bool enqueueV3(cudaStream_t stream) {
    if (fails()) {
      logger_.log(ILogger::Severity::kERROR, "the double\nfails");
      return false;
    }
    stream->put(
        [network = network_] { network.type == DataType::kUINT8 ? network.run<uint8_t>() : network.run<float>(); });
    return true;
  }

 private:
  Network network_;
  ILogger& logger_;
};

#ifdef TRT_MAJOR_RTX
struct IHostMemory {
  std::string text;
  const void* data() const { return text.data(); }
  size_t size() const { return text.size(); }
};
enum class CudaGraphStrategy { kDISABLED, kWHOLE_GRAPH_CAPTURE };
class IRuntimeCache {
 public:
  IHostMemory* serialize() const { return fails() ? nullptr : new IHostMemory{"compiled"}; }
  bool deserialize(const void* data, size_t size) {
    return std::string(static_cast<const char*>(data), size) == "compiled";
  }
};
class IRuntimeConfig {
 public:
  IRuntimeCache* createRuntimeCache() const { return fails() ? nullptr : new IRuntimeCache; }
  bool setRuntimeCache(const IRuntimeCache&) { return !fails(); }
  bool setCudaGraphStrategy(CudaGraphStrategy) { return !fails(); }
};
#endif

class ICudaEngine {
 public:
  ICudaEngine(const Network& network, ILogger& logger) : network_(network), logger_(logger) {}
  int32_t getNbIOTensors() const { return 2; }
  const char* getIOTensorName(int32_t index) const { return index == 0 ? "noisy" : "denoised"; }
  TensorIOMode getTensorIOMode(const char* name) const {
    return name == std::string("noisy") ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char*) const { return network_.type; }
  TensorFormat getTensorFormat(const char*) const { return TensorFormat::kLINEAR; }
  Dims getTensorShape(const char*) const {  // -1 where sizes differ
    Dims shape = network_.least;
    for (int i = 0; i < shape.nbDims; ++i)
      if (network_.most.d[i] != shape.d[i]) shape.d[i] = -1;
    return shape;
  }
  Dims getProfileShape(const char*, int32_t, OptProfileSelector which) const {
    return which == OptProfileSelector::kMIN ? network_.least : network_.most;
  }
#ifdef TRT_MAJOR_RTX
  IRuntimeConfig* createRuntimeConfig() { return fails() ? nullptr : new IRuntimeConfig; }
  IExecutionContext* createExecutionContext(IRuntimeConfig*) {
#else
  IExecutionContext* createExecutionContext() {
#endif
    return fails() ? nullptr : new IExecutionContext(network_, logger_);
  }

 private:
  Network network_;
  ILogger& logger_;
};

class IPluginRegistry {
 public:
  // Files of this name are plugin libraries.
  void* loadLibrary(const char* path) {
    const std::string name = path, ending = "/libsadnet_plugin.so";
    has_plugin = !fails() && name[0] == '/' && name.size() > ending.size() &&
                 name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
    return has_plugin ? this : nullptr;
  }
  bool has_plugin = false;
};

}  // namespace nvinfer1

inline nvinfer1::IPluginRegistry* getPluginRegistry() {
  static nvinfer1::IPluginRegistry registry;
  return &registry;
}

namespace nvinfer1 {

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}
  ICudaEngine* deserializeCudaEngine(const void* data, size_t size) {
    std::istringstream plan(std::string(static_cast<const char*>(data), size));
    std::string kind, type, plugin;
    Network network{DataType::kFLOAT, {4, {}}, {4, {}}};
    plan >> kind >> type >> plugin;
    for (int64_t* d : {network.least.d, network.most.d})
      for (int i = 0; i < 4; ++i) plan >> d[i];
    if (type == "uint8") network.type = DataType::kUINT8;
    if (type == "float16") network.type = DataType::kHALF;
    logger_.log(ILogger::Severity::kWARNING, "a warning of the double");
    logger_.log(ILogger::Severity::kINFO, "what nobody wants to know");
    if (fails() || !plan || kind != "double" || (plugin == "plugin" && !getPluginRegistry()->has_plugin)) {
      logger_.log(ILogger::Severity::kERROR, "no such plan");
      logger_.log(ILogger::Severity::kINTERNAL_ERROR, "or no such\nplugin");
      return nullptr;
    }
    return new ICudaEngine(network, logger_);
  }

 private:
  ILogger& logger_;
};

namespace {
inline IRuntime* createInferRuntime(ILogger& logger) { return fails() ? nullptr : new IRuntime(logger); }
}  // namespace

}  // namespace nvinfer1
