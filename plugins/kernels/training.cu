// The two kernels of training.cuh, and what of the GPU they want.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ float wide(float v) { return v; }
static __device__ __forceinline__ float wide(__half v) { return __half2float(v); }
static __device__ __forceinline__ float wide(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void narrow(float v, float* to) { *to = v; }
static __device__ __forceinline__ void narrow(float v, __half* to) { *to = __float2half_rn(v); }
static __device__ __forceinline__ void narrow(float v, __nv_bfloat16* to) { *to = __float2bfloat16_rn(v); }

// to[0..V) += values, by the threads of a grid at once.
template <int V>
static __device__ __forceinline__ void add(float* to, const float (&values)[V]) {
#if __CUDA_ARCH__ >= 900
  if constexpr (V == 4) {  // one instruction, at a multiple of 16 bytes
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values[0]), "f"(values[1]),
                 "f"(values[2]), "f"(values[3])
                 : "memory");
    return;
  }
#endif
#pragma unroll
  for (int v = 0; v < V; ++v) atomicAdd(to + v, values[v]);
}

#include "training.cuh"

extern "C" __global__ void sadnet_sample(const training::T* x, const training::T* offset_mask, training::T* columns,
                                         int h, int w, unsigned threads) {
  training::sample(x, offset_mask, h, w, threads, columns);
}

extern "C" __global__ void sadnet_sample_backward(const training::T* x, const training::T* offset_mask,
                                                  const training::T* grad_columns, float* grad_x,
                                                  training::T* grad_offset_mask, int h, int w, unsigned threads) {
  training::sample_backward(x, offset_mask, grad_columns, h, w, threads, grad_x, grad_offset_mask);
}
