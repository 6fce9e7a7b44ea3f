// plugins/kernels/ptx.cuh for the CPU: the same names, every load checked, the matrix product from the ISA's tables.
#pragma once
#include <cuda_fp16.h>

typedef unsigned short u16;
typedef unsigned int u32;

static inline u16 load2(const void* p) { return __ldg((const u16*)p); }
static inline u32 load4(const void* p) { return __ldg((const u32*)p); }
static inline uint2 load8(const void* p) { return __ldg((const uint2*)p); }
static inline uint4 load16(const void* p) { return __ldg((const uint4*)p); }

static inline float without_subnormals(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.f, v) : v; }
static inline float exp2_approximate(float x) { return without_subnormals(std::exp2(without_subnormals(x))); }
static inline float reciprocal_approximate(float x) { return without_subnormals(1 / without_subnormals(x)); }

namespace cpu {

struct Fragments {  // of one lane
  u32 a[4], b[2];
  float (*sum)[4];
};
static Fragments fragments[MAX_THREADS];

static inline float half_of(const u32* registers, int i) {
  return __half2float(__ushort_as_half((u16)(registers[i / 2] >> (i % 2 * 16))));
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": element i of lane 4 * group + member.
static __attribute__((noinline)) void multiply_fragments(const Fragments* warp) {
  float a[16][16], b[16][8], product[16][8] = {};
  for (int lane = 0; lane < WARP; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[i < 2 || (i >= 4 && i < 6) ? group : group + 8][2 * member + (i & 1) + (i < 4 ? 0 : 8)] =
          half_of(warp[lane].a, i);
    for (int i = 0; i < 4; ++i) b[2 * member + (i & 1) + (i < 2 ? 0 : 8)][group] = half_of(warp[lane].b, i);
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) product[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < WARP; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) (*warp[lane].sum)[i] += product[i < 2 ? group : group + 8][2 * member + (i & 1)];
  }
}

}  // namespace cpu

static inline void mma_m16n8k16(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const int warp = threadIdx.x / cpu::WARP;
  cpu::fragments[threadIdx.x] = {{a0, a1, a2, a3}, {b0, b1}, &sum};
  cpu::meet(cpu::warp_meetings[warp], cpu::WARP,
            [warp] { cpu::multiply_fragments(cpu::fragments + warp * cpu::WARP); });
}

static inline void copy16(void* shared, const void* global) { cpu::copy(shared, global, 16); }
static inline void copies_commit() { ++cpu::copies[threadIdx.x].group; }
template <int pending>
static inline void copies_wait() {
  cpu::land_copies(pending, 16);
}
