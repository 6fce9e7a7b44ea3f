// linear.cu, compiled for the type and the block of outputs that CMakeLists.txt gives.
#include <linear.cu>

#include "kernels.h"

namespace sadnet_plugin {
namespace {

__global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    kernel(const T* __restrict__ x, const T* __restrict__ offset_mask, const T* __restrict__ weight,
           const T* __restrict__ bias, int c, int h, int w, int o, int groups, float negative_slope,
           T* __restrict__ y) {
  linear(x, offset_mask, weight, bias, c, h, w, o, groups, negative_slope, y);
}

}  // namespace

template <>
cudaError_t launch_linear<T, OUTPUTS>(const Problem& problem, const Buffers& buffers, cudaStream_t stream) {
  const auto memory = [](const void* pointer) { return static_cast<const T*>(pointer); };
  const cudaLaunchConfig_t config = config_of(problem, {THREADS, WIDTH, ROWS, 1, OUTPUTS}, stream);
  return cudaLaunchKernelEx(&config, kernel, memory(buffers.x), memory(buffers.offset_mask), memory(buffers.weight),
                            memory(buffers.bias), problem.c, problem.h, problem.w, problem.o, problem.offset_groups,
                            problem.negative_slope, static_cast<T*>(buffers.y));
}

}  // namespace sadnet_plugin
