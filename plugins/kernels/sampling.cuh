// Bilinear samples of a channels-last image of halves, at places that may be anywhere: in floats, without a branch.
#pragma once
#include <ptx.cuh>

namespace sadnet {

static __device__ __forceinline__ float half_bits(u32 bits) { return __half2float(__ushort_as_half((u16)bits)); }
static __device__ __forceinline__ float2 halves(u32 bits) {
  return make_float2(half_bits(bits & 0xffff), half_bits(bits >> 16));
}
static __device__ __forceinline__ u32 pack(float low, float high) {
  return (u32)__half_as_ushort(__float2half_rn(low)) | (u32)__half_as_ushort(__float2half_rn(high)) << 16;
}
static __device__ __forceinline__ float sigmoid(float v) {
  return reciprocal_approximate(1.f + exp2_approximate(-1.4426950408889634f * v));
}

// ---- where to sample

// A float of less than 2^22 plus this, rounded down, holds floor() of the float in its low bits.
static constexpr float FLOOR = 12582912.f;  // 1.5 * 2^23
static constexpr int FLOOR_BITS = 0x4B400000;

// One image of x, and how to step in it: 0 where there is no second row or column to step to.
struct Image {
  const char* first;
  u32 down, right;                          // bytes
  u32 origin;                               // takes FLOOR_BITS rows and columns off an offset in bytes
  int last_top, last_left;                  // FLOOR_BITS + the last row, column that has a neighbour
  float has_second_row, has_second_column;  // 1, or far below 0
};

static __device__ __forceinline__ Image image_of(const __half* x, int n, int h, int w, int c) {
  Image image;
  image.first = (const char*)(x + (long long)n * h * w * c);
  image.right = w > 1 ? 2 * c : 0;
  image.down = h > 1 ? 2 * c * w : 0;
  image.origin = 0u - FLOOR_BITS * (image.down + 2u * c);
  image.last_top = FLOOR_BITS + max(h - 2, 0);
  image.last_left = FLOOR_BITS + max(w - 2, 0);
  image.has_second_row = h > 1 ? 1.f : -1e30f;
  image.has_second_column = w > 1 ? 1.f : -1e30f;
  return image;
}

// The two neighbours, along one axis, of the place `tap` + `offset`: FLOOR_BITS + the first's index, kept where both
// are inside, and the weight of either, which is 0 for one that is no neighbour. So every load is inside the image, and
// far, infinite and NaN places weigh nothing (x is finite: 0 times infinity is not). The sum is never rounded.
static __device__ __forceinline__ u32 neighbours(float offset, int tap, int last, float has_second, float& first,
                                                 float& second) {
  const int bits = max(min((int)((u32)__float_as_int(__fadd_rd(offset, FLOOR)) + (u32)tap), last), FLOOR_BITS);
  const float past = offset - (__int_as_float(bits - tap) - FLOOR);
  first = __saturatef(1.f - fabsf(past));
  second = __saturatef(has_second - fabsf(past - 1.f));
  return bits;
}

// Raw words of offset_mask for one sample.
struct Move {
  u32 y_x;  // two halves
  u32 logit;
};

template <class L>
static __device__ __forceinline__ Move load_move(const char* y_x, const char* logit) {
  if constexpr (L::pitch % 2 == 0) return {load4(y_x), load2(logit)};
  return {load2(y_x) | (u32)load2(y_x + 2) << 16, load2(logit)};  // a pixel may begin between two words of 4 bytes
}

// Four corners: bytes from the image's first sample, and weights times mask.
struct Place {
  u32 top_left;
  float weight[4];
};

template <class L>
static __device__ __forceinline__ Place place_of(const Image& image, Move move, int tap_y, int tap_x) {
  float top, bottom, left, right;
  const float2 offset = halves(move.y_x);
  const u32 y = neighbours(offset.x, tap_y, image.last_top, image.has_second_row, top, bottom);
  const u32 x = neighbours(offset.y, tap_x, image.last_left, image.has_second_column, left, right);
  const float mask = sigmoid(half_bits(move.logit));
  top *= mask;
  bottom *= mask;
  return {y * image.down + x * (2 * L::channels) + image.origin,
          {top * left, top * right, bottom * left, bottom * right}};
}

// ---- the samples

template <int SAMPLE>
struct Vector {  // SAMPLE channels of one corner
  u32 word[(SAMPLE + 1) / 2];
};
static __device__ __forceinline__ void load(Vector<8>& to, const char* from) {
  const uint4 v = load16(from);
  to.word[0] = v.x, to.word[1] = v.y, to.word[2] = v.z, to.word[3] = v.w;
}
static __device__ __forceinline__ void load(Vector<4>& to, const char* from) {
  const uint2 v = load8(from);
  to.word[0] = v.x, to.word[1] = v.y;
}
static __device__ __forceinline__ void load(Vector<2>& to, const char* from) { to.word[0] = load4(from); }
static __device__ __forceinline__ void load(Vector<1>& to, const char* from) { to.word[0] = load2(from); }

template <int SAMPLE>
struct Corners {
  Vector<SAMPLE> corner[4];
  float weight[4];
};

template <int SAMPLE>
static __device__ __forceinline__ void gather(Corners<SAMPLE>& to, const Image& image, const Place& place,
                                              u32 channel) {
  const char* at = image.first + (place.top_left + 2 * channel);
  load(to.corner[0], at);
  load(to.corner[1], at + image.right);
  load(to.corner[2], at + image.down);
  load(to.corner[3], at + image.down + image.right);
#pragma unroll
  for (int i = 0; i < 4; ++i) to.weight[i] = place.weight[i];
}

template <int SAMPLE>
static __device__ __forceinline__ Vector<SAMPLE> interpolate(const Corners<SAMPLE>& from) {
  Vector<SAMPLE> to;
#pragma unroll
  for (int i = 0; i < (SAMPLE + 1) / 2; ++i) {
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 v = halves(from.corner[k].word[i]);
      sum.x += from.weight[k] * v.x;
      sum.y += from.weight[k] * v.y;
    }
    to.word[i] = pack(sum.x, sum.y);
  }
  return to;
}

}  // namespace sadnet
