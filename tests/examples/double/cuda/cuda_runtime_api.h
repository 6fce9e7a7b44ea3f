// As much of the CUDA runtime as examples/cpp calls, on a CPU. Work on a stream waits until the stream is synchronized,
// as late as CUDA allows; what is not released is a leak that the address sanitizer reports.
#pragma once
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "double.h"

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorUnknown = 999;
inline const char* cudaGetErrorString(cudaError_t) { return "the double fails"; }
inline cudaError_t double_status() { return fails() ? cudaErrorUnknown : cudaSuccess; }

using Work = std::vector<std::function<void()>>;
struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUstream_st {
  Work work;
  CUgraph_st* capture = nullptr;
  void put(std::function<void()> step) { (capture ? capture->work : work).push_back(std::move(step)); }
};
using cudaStream_t = CUstream_st*;
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;
using cudaEvent_t = struct CUevent_st*;

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return double_status();
}

// ---- memory: not set, as CUDA's

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (fails()) return cudaErrorUnknown;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xA5, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (fails()) return cudaErrorUnknown;
  stream->put([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

// ---- streams and graphs

constexpr unsigned cudaStreamNonBlocking = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (fails()) return cudaErrorUnknown;
  *stream = new CUstream_st;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  for (const auto& step : stream->work) step();
  stream->work.clear();
  return double_status();
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream->capture || !stream->work.empty()) std::abort();  // a capture not ended, work that uses what is released
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (fails()) return cudaErrorUnknown;
  stream->capture = new CUgraph_st;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->capture, nullptr);
  if (!fails()) return cudaSuccess;
  delete std::exchange(*graph, nullptr);
  return cudaErrorUnknown;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  if (fails()) return cudaErrorUnknown;
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (fails()) return cudaErrorUnknown;
  for (const auto& step : graph->work) stream->put(step);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
