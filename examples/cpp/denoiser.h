// A plan that export/to_plan.py wrote, ready to denoise pictures, by TensorRT 10 or later or by TensorRT-RTX 1.2 or
// later: whichever's headers are found first. A plan is code: load none that you did not build or do not trust.
#pragma once
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "cuda.h"
#include "image.h"

#ifdef TRT_MAJOR_RTX  // by NvInferVersion.h
constexpr char LIBRARY[] = "TensorRT-RTX";
#else
constexpr char LIBRARY[] = "TensorRT";
#endif

// Keeps the library's first error, whose consequences the others are, for the line that tells of a failure.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    try {
      if (severity == Severity::kWARNING) std::fprintf(stderr, "%s: %s\n", LIBRARY, text);
      if (severity > Severity::kERROR) return;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error_.empty()) error_ = text;
    } catch (...) {  // the library's calls are noexcept
    }
  }

  Error failure(const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string reason = error_.empty() ? "it gave no reason" : std::exchange(error_, "");
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    return Error(what + ": " + reason);
  }

  // The process's only one, and never deleted: the library keeps the first that it is given, and logs as it ends.
  static Log& get() {
    static Log& log = *new Log;
    return log;
  }

 private:
  std::mutex mutex_;  // the library has threads of its own
  std::string error_;
};

inline Error failure(const std::string& what) { return Log::get().failure(what); }

class Denoiser {
 public:
  // plugin: library of plugins/tensorrt_v3, for a plan that was built with it; else empty. Throws Error.
  Denoiser(const std::string& plan, const std::string& plugin) : plan_(plan) {
    const std::string bytes = read_file(plan);
    int devices = 0;  // before the library: without a GPU, tensorrt-lean 11.4 crashes
    check(cudaGetDeviceCount(&devices), "expected an NVIDIA GPU and its driver, found none");
    runtime_.reset(nvinfer1::createInferRuntime(Log::get()));
    if (!runtime_) throw failure(std::string(LIBRARY) + " does not start");
    if (!plugin.empty()) load_plugin(plugin);
    engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    if (!engine_)
      throw failure(plan + ": expected a plan of this version of " + LIBRARY + " and for this GPU (" + plan +
                    ".json tells of which it is), found one that does not load");
    find_tensors();
    stream_ = make_stream();
    make_context();
  }

  // Not from several threads at once. Throws Error.
  Image operator()(const Image& noisy) {
    const Size size = padded(noisy.size);
    if (!(size == size_)) resize(size);
    if (is_uint8_)
      to_tensor(noisy, size, static_cast<uint8_t*>(input_.host()));
    else
      to_tensor(noisy, size, static_cast<float*>(input_.host()));
    if (graph_)
      check(cudaGraphLaunch(graph_.get(), stream_.get()), "cannot launch the CUDA graph");
    else
      run();
    check(cudaStreamSynchronize(stream_.get()), "the plan did not run to its end");
#ifndef TRT_MAJOR_RTX  // which keeps a graph of its own: make_context
    if (!graph_) graph_ = capture(stream_.get(), [this] { run(); });
#endif
    return is_uint8_ ? from_tensor(static_cast<const uint8_t*>(output_.host()), size, noisy.size)
                     : from_tensor(static_cast<const float*>(output_.host()), size, noisy.size);
  }

  // Keeps what TensorRT-RTX has compiled for the next start, in the plan's name with .cache. Throws Error.
  void save_cache() {
#ifdef TRT_MAJOR_RTX
    const std::unique_ptr<nvinfer1::IHostMemory> cache(cache_->serialize());
    if (!cache) throw failure(plan_ + ": cannot make a runtime cache");
    const std::string bytes(static_cast<const char*>(cache->data()), cache->size());
    if (bytes != kept_) write_file(plan_ + ".cache", bytes);
    kept_ = bytes;
#endif
  }

 private:
  void load_plugin(const std::string& library) {
#ifdef TRT_MAJOR_RTX
    throw Error(library + ": expected no plugin: TensorRT-RTX takes none, and its plans need none");
#else
    const std::string path = std::filesystem::absolute(library).string();  // else the system's folders are searched
    if (!getPluginRegistry()->loadLibrary(path.c_str()))
      throw failure(library + ": expected a TensorRT plugin library, found one that does not load");
#endif
  }

  void find_tensors() {
    const auto mode = [this](int32_t index) { return engine_->getTensorIOMode(engine_->getIOTensorName(index)); };
    if (engine_->getNbIOTensors() != 2 || mode(0) != nvinfer1::TensorIOMode::kINPUT ||
        mode(1) != nvinfer1::TensorIOMode::kOUTPUT)
      throw Error(plan_ + ": expected a plan of one input and one output, found another");
    input_name_ = engine_->getIOTensorName(0);
    output_name_ = engine_->getIOTensorName(1);
    const nvinfer1::DataType type = engine_->getTensorDataType(input_name_);
    is_uint8_ = type == nvinfer1::DataType::kUINT8;
    const auto is_right = [&](const char* name) {
      return engine_->getTensorDataType(name) == type &&
             engine_->getTensorFormat(name) == nvinfer1::TensorFormat::kLINEAR;
    };
    if ((type != nvinfer1::DataType::kFLOAT && !is_uint8_) || !is_right(input_name_) || !is_right(output_name_))
      throw Error(plan_ + ": expected float32 or uint8 images on both sides, found others: export/to_onnx.py --io");
    least_ = size_of(nvinfer1::OptProfileSelector::kMIN);
    most_ = size_of(nvinfer1::OptProfileSelector::kMAX);
  }

  // The least or the most that the plan takes: only one of more than one size has a profile of its own.
  Size size_of(nvinfer1::OptProfileSelector which) const {
    nvinfer1::Dims found = engine_->getTensorShape(input_name_);
    if (found.nbDims == 4 && std::count(found.d, found.d + 4, -1))
      found = engine_->getProfileShape(input_name_, 0, which);
    Size size;
    if (found.nbDims == 4) size = is_uint8_ ? Size{found.d[2], found.d[1]} : Size{found.d[3], found.d[2]};
    if (found.nbDims != 4 || !std::equal(found.d, found.d + 4, shape(size).d))
      throw Error(plan_ + ": expected a plan of one colour image, found another");
    return size;
  }

  nvinfer1::Dims shape(Size size) const {
    return is_uint8_ ? nvinfer1::Dims{4, {1, size.height, size.width, CHANNELS}}
                     : nvinfer1::Dims{4, {1, CHANNELS, size.height, size.width}};
  }

  // Multiples of 8, at least what the plan takes.
  Size padded(Size size) const {
    const Size result{std::max(least_.width, (size.width + 7) / 8 * 8),
                      std::max(least_.height, (size.height + 7) / 8 * 8)};
    if (result.width > most_.width || result.height > most_.height)
      throw Error("expected a picture of at most " + most_.text() + " pixels, which " + plan_ + " takes, found " +
                  size.text() + ": build a plan of a larger size, or cut the picture into tiles");
    return result;
  }

  // Lets the library compile its kernels (TensorRT-RTX) and takes the memory for activations.
  void make_context() {
#ifdef TRT_MAJOR_RTX
    config_.reset(engine_->createRuntimeConfig());
    cache_.reset(config_ ? config_->createRuntimeCache() : nullptr);
    if (!cache_) throw failure(plan_ + ": cannot make a runtime cache");
    const std::string file = plan_ + ".cache";
    if (std::filesystem::exists(file)) kept_ = read_file(file);
    if (!kept_.empty() && !cache_->deserialize(kept_.data(), kept_.size()))
      std::fprintf(stderr, "%s is of another GPU, driver or version: it will be replaced\n", file.c_str());
    if (!config_->setRuntimeCache(*cache_) ||
        !config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE))
      throw failure(plan_ + ": cannot set the runtime cache and the CUDA graphs");
    context_.reset(engine_->createExecutionContext(config_.get()));
#else
    context_.reset(engine_->createExecutionContext());
#endif
    if (!context_) throw failure(plan_ + ": cannot make an execution context");
  }

  void resize(Size size) {
    graph_.reset();
    size_ = {};  // until all of this has succeeded
    const auto samples = static_cast<size_t>(size.width * size.height * CHANNELS);
    const size_t bytes = samples * (is_uint8_ ? sizeof(uint8_t) : sizeof(float));
    input_ = Buffer(bytes);
    output_ = Buffer(bytes);
    if (!context_->setInputShape(input_name_, shape(size)) ||
        !context_->setTensorAddress(input_name_, input_.device()) ||
        !context_->setTensorAddress(output_name_, output_.device()))
      throw failure(plan_ + ": expected a plan that takes " + size.text() + ", found one that does not");
    size_ = size;
  }

  void run() {
    input_.upload(stream_.get());
    if (!context_->enqueueV3(stream_.get())) throw failure(plan_ + ": cannot be run");
    output_.download(stream_.get());
  }

  // In the order in which they need each other: the last is released first.
  std::string plan_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  const char *input_name_ = nullptr, *output_name_ = nullptr;  // the engine's
  bool is_uint8_ = false;                                      // uint8 images, or float32
  Size least_, most_, size_;
#ifdef TRT_MAJOR_RTX
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
  std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
  std::string kept_;  // what the cache's file holds
#endif
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Buffer input_, output_;
  GraphExec graph_;
  Stream stream_;
};
