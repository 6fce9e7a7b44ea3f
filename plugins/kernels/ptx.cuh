// The instructions that CUDA C++ has no word for, and loads by width. The one header that knows the architecture; the
// CPU tests put their own in its place.
#pragma once
#include <cuda_fp16.h>

typedef unsigned short u16;
typedef unsigned int u32;

// Loads of data that no one writes while the kernel runs.
static __device__ __forceinline__ u16 load2(const void* p) { return __ldg((const u16*)p); }
static __device__ __forceinline__ u32 load4(const void* p) { return __ldg((const u32*)p); }
static __device__ __forceinline__ uint2 load8(const void* p) { return __ldg((const uint2*)p); }
static __device__ __forceinline__ uint4 load16(const void* p) { return __ldg((const uint4*)p); }

// 2^x and 1/x to 2 units in the last place.
static __device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
static __device__ __forceinline__ float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// sum += A B for a warp: A 16 x 16, B 16 x 8, halves in, floats summed (PTX ISA, mma.m16n8k16: who holds what).
// Turing has k = 8 alone: the same registers, as two halves of the sum.
static __device__ __forceinline__ void mma_m16n8k16(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a0), "r"(a1), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// 16 bytes from global to shared memory, both aligned: done when copies_wait says so; on Turing at once.
static __device__ __forceinline__ void copy16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(shared)), "l"(global));
#else
  *(uint4*)shared = load16(global);
#endif
}
// Ends a group of this thread's copies.
static __device__ __forceinline__ void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}
// Waits until at most `pending` of this thread's latest groups are under way.
template <int pending>
static __device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}
