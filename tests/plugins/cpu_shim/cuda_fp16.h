// Lets g++ compile the kernels' own source, so that it runs on a CPU: the names of CUDA C++ that they use. Found by its
// name before CUDA's header.
#pragma once
#include <cmath>

#include "memory.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

template <class To, class From>
static inline To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}

typedef _Float16 __half;
static inline float __half2float(__half v) { return (float)v; }
static inline __half __float2half(float v) { return (__half)v; }
static inline __half __float2half_rn(float v) { return (__half)v; }
static inline unsigned short __half_as_ushort(__half v) { return bits_as<unsigned short>(v); }
static inline __half __ushort_as_half(unsigned short v) { return bits_as<__half>(v); }

static inline int __float_as_int(float v) { return bits_as<int>(v); }
static inline float __int_as_float(int v) { return bits_as<float>(v); }
static inline float __saturatef(float v) { return v > 0 ? (v < 1 ? v : 1.f) : 0.f; }  // NaN too gives 0

// Rounded down: what the sum lacks of the nearest float is itself a float (Knuth, TAOCP 2, 4.2.2 theorem B).
static inline float __fadd_rd(float a, float b) {
  const float sum = a + b, of_b = sum - a, lacks = (a - (sum - of_b)) + (b - of_b);
  if (sum != sum) return __int_as_float(0x7fffffff);  // the one NaN that CUDA's arithmetic gives
  return lacks < 0 ? std::nextafter(sum, -INFINITY) : sum;
}

template <class T>
static inline T __ldg(const T* from) {
  cpu::check_load(from, sizeof(T));
  return *from;
}
