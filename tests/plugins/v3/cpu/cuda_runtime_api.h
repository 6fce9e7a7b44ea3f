// Lets g++ compile the plugin's launches: a launch runs all blocks of the kernel, under cpu_shim, before it returns.
#pragma once
#include <cuda_fp16.h>

#include <functional>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure, cudaErrorNotSupported };
typedef struct CUstream_st* cudaStream_t;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cpu {

static std::function<void()> thread_body;

static inline void run_thread() { thread_body(); }

}  // namespace cpu

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  cpu::thread_body = [=] { kernel(arguments...); };
  cpu::kernel = cpu::run_thread;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  char* const stacks = (char*)malloc((size_t)blockDim.x * cpu::STACK);
  cpu::start_fibers(blockDim.x, stacks);
  for (blockIdx.z = 0; blockIdx.z < gridDim.z && !cpu::message[0]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y && !cpu::message[0]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x && !cpu::message[0]; ++blockIdx.x) {
        cpu::poison_shared();
        cpu::start_copies();
        cpu::run_block();
      }
  free(stacks);
  return cpu::message[0] ? cudaErrorLaunchFailure : cudaSuccess;
}
