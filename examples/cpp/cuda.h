// CUDA's resources: every status is checked, everything is owned.
#pragma once
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <type_traits>

#include "image.h"

inline void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw Error(what + ": " + cudaGetErrorString(status));
}

struct Release {
  void operator()(cudaStream_t stream) const noexcept {
    cudaStreamSynchronize(stream);  // work that is under way uses what is released next
    cudaStreamDestroy(stream);
  }
  void operator()(cudaGraph_t graph) const noexcept { cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const noexcept { cudaGraphExecDestroy(graph); }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Release>;
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, Release>;
using GraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Release>;

inline Stream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cannot make a CUDA stream");
  return Stream(stream);
}

// A tensor's memory on the GPU, and its pinned twin on the host, without which a copy is not asynchronous.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    const std::string amount = std::to_string(bytes) + " bytes of ";
    check(cudaMalloc(&memory, bytes), "cannot allocate " + amount + "device memory");
    device_.reset(memory);
    check(cudaMallocHost(&memory, bytes), "cannot allocate " + amount + "pinned memory");
    host_.reset(memory);
  }
  void* device() const { return device_.get(); }
  void* host() const { return host_.get(); }
  void upload(cudaStream_t stream) const {
    check(cudaMemcpyAsync(device(), host(), bytes_, cudaMemcpyHostToDevice, stream), "cannot upload");
  }
  void download(cudaStream_t stream) const {
    check(cudaMemcpyAsync(host(), device(), bytes_, cudaMemcpyDeviceToHost, stream), "cannot download");
  }

 private:
  struct FreeDevice {
    void operator()(void* memory) const noexcept { cudaFree(memory); }
  };
  struct FreeHost {
    void operator()(void* memory) const noexcept { cudaFreeHost(memory); }
  };
  size_t bytes_ = 0;
  std::unique_ptr<void, FreeDevice> device_;
  std::unique_ptr<void, FreeHost> host_;
};

// What `work` puts on the stream, as a graph that one call launches.
template <class Work>
GraphExec capture(cudaStream_t stream, const Work& work) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cannot begin a CUDA graph");
  cudaGraph_t captured = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);
    const Graph ended(captured);
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), "cannot end a CUDA graph");
  const Graph graph(captured);
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiateWithFlags(&executable, captured, 0), "cannot make a CUDA graph");
  return GraphExec(executable);
}
