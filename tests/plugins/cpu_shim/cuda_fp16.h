// Lets g++ compile the kernels' own source, so that it runs on a CPU: the names of CUDA that it uses, one thread at a
// time. Found by its name before CUDA's header.
#pragma once
#include <cmath>

#define __device__
#define __global__

typedef _Float16 __half;
static inline float __half2float(__half v) { return (float)v; }
static inline __half __float2half(float v) { return (__half)v; }

struct Index { unsigned x; };
static thread_local Index blockIdx, blockDim, threadIdx;
