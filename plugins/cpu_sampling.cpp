// The sampling of plugins/op.py on a CPU, forward and backward, for plugins/cpu_sampling.py.
//
// Everything is channels last. A pixel's samples of one offset group lie together in `columns`
// (N, H*W, G, 9, C/G), so that the sum over taps is one matrix product and each group of channels is read and
// written once. Interpolation is in fp32, whatever T is.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int TAPS = 9;
constexpr int LANES = 16;  // the taps' arithmetic runs over whole vectors; what lies beyond the ninth is not used

struct Bfloat16 {
  uint16_t bits;
};

// V floats that are computed at once, and what they are in memory.
template <int V>
using Floats [[gnu::vector_size(4 * V)]] = float;
template <int V>
using Words [[gnu::vector_size(4 * V)]] = uint32_t;
template <int V>
using Shorts [[gnu::vector_size(2 * V)]] = uint16_t;

template <int V>
inline Floats<V> load(const float* from) {
  Floats<V> result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

template <int V>
inline Floats<V> load(const Bfloat16* from) {
  Shorts<V> bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Floats<V>)(__builtin_convertvector(bits, Words<V>) << 16);
}

template <int V>
inline void store(Floats<V> value, float* to) {
  std::memcpy(to, &value, sizeof value);
}

template <int V>
inline void store(Floats<V> value, Bfloat16* to) {  // rounds to nearest even
  Words<V> bits = (Words<V>)value;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bits = value == value ? bits : Words<V>{} + 0x7fc0;
  const Shorts<V> result = __builtin_convertvector(bits, Shorts<V>);
  std::memcpy(to, &result, sizeof result);
}

// exp(-x), within 2e-7 of it relatively; std::exp would not be vectorised.
inline float exp_of_minus(float x) {
  const float power = std::min(std::max(x * -1.44269504f, -126.f), 126.f);
  const float whole = power == power ? std::floor(power + 0.5f) : 0.f;
  const float f = (power - whole) * 0.693147181f;  // Taylor's series from -ln(2)/2 to ln(2)/2
  const float series =
      1.f + f * (1.f + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f * (1 / 720.f))))));
  const uint32_t bits = uint32_t(int32_t(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return series * scale;
}

struct Shape {
  int n, h, w, groups, width;  // width: channels of one group
  int channels() const { return groups * width; }
  int64_t pixels() const { return int64_t{h} * w; }
  int offset_mask_channels() const { return 3 * TAPS * groups; }
  int offset(int g) const { return 2 * TAPS * g; }  // where a group's channels begin in offset_mask
  int logit(int g) const { return TAPS * (2 * groups + g); }
};

// Where the taps of one pixel and group fall: weights of the two rows and the two columns around each place, zero
// outside of the image; whether they are inside, as 0 or 1; and their numbers, moved inside.
struct Places {
  float mask[LANES], row_weight[2][LANES], column_weight[2][LANES], row_inside[2][LANES], column_inside[2][LANES];
  int32_t row[2][LANES], column[2][LANES];

  void axis(const float* place, int size, float weight[2][LANES], float inside[2][LANES], int32_t index[2][LANES]) {
#pragma omp simd
    for (int k = 0; k < LANES; k++) {
      // beyond these bounds nothing is inside; no number compares false and is outside too
      float p = place[k] > -2.f ? place[k] : -2.f;
      p = p < float(size + 1) ? p : float(size + 1);
      float below = std::floor(p);
      int32_t first = int32_t(below);
      float fraction = p - below;
      inside[0][k] = (first >= 0) & (first < size) ? 1.f : 0.f;
      inside[1][k] = (first >= -1) & (first < size - 1) ? 1.f : 0.f;
      weight[0][k] = (1.f - fraction) * inside[0][k];
      weight[1][k] = fraction * inside[1][k];
      index[0][k] = std::min(std::max(first, 0), size - 1);
      index[1][k] = std::min(std::max(first + 1, 0), size - 1);
    }
  }

  template <typename T>
  Places(const Shape& s, const T* offset_mask, int g, int y, int x) {
    const T *offset = offset_mask + s.offset(g), *logit = offset_mask + s.logit(g);
    float down[LANES] = {}, right[LANES] = {}, logits[LANES] = {};
    for (int k = 0; k < TAPS; k++) {
      down[k] = float(y + k / 3 - 1) + load<1>(offset + 2 * k)[0];
      right[k] = float(x + k % 3 - 1) + load<1>(offset + 2 * k + 1)[0];
      logits[k] = load<1>(logit + k)[0];
    }
#pragma omp simd
    for (int k = 0; k < LANES; k++) mask[k] = 1.f / (1.f + exp_of_minus(logits[k]));
    axis(down, s.h, row_weight, row_inside, row);
    axis(right, s.w, column_weight, column_inside, column);
  }

  // Of corner i of tap k: 0 and 1 above the place, 2 and 3 below it, the odd ones to its right.
  int64_t pixel(const Shape& s, int k, int i) const { return int64_t{row[i / 2][k]} * s.w + column[i % 2][k]; }
  float weight(int k, int i) const { return mask[k] * row_weight[i / 2][k] * column_weight[i % 2][k]; }
};

// V divides the channels of a group.
template <typename T, int V>
void sample(const Shape& s, int threads, const T* x, const T* offset_mask, T* columns) {
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int n = 0; n < s.n; n++) {
    for (int y = 0; y < s.h; y++) {
      for (int64_t p = (int64_t{n} * s.h + y) * s.w, end = p + s.w; p < end; p++) {
        for (int g = 0; g < s.groups; g++) {
          const Places at(s, offset_mask + p * s.offset_mask_channels(), g, y, s.w - int(end - p));
          const T* group = x + n * s.pixels() * s.channels() + g * s.width;
          T* out = columns + (p * s.groups + g) * TAPS * s.width;
          for (int k = 0; k < TAPS; k++, out += s.width) {
            const T* corner[4];
            for (int i = 0; i < 4; i++) corner[i] = group + at.pixel(s, k, i) * s.channels();
            for (int c = 0; c < s.width; c += V) {
              Floats<V> sum = at.weight(k, 0) * load<V>(corner[0] + c);
              for (int i = 1; i < 4; i++) sum += at.weight(k, i) * load<V>(corner[i] + c);
              store<V>(sum, out + c);
            }
          }
        }
      }
    }
  }
}

// One pixel and group; x, grad_columns and grad_x begin at the image's, the pixel's and the image's group.
template <typename T, int V>
void pixel_backward(const Shape& s, const Places& at, const T* x, const T* grad_columns, float* grad_x, T* grad_offset,
                    T* grad_logit) {
  float dot[4][LANES] = {};  // of the gradient and each corner's channels
  for (int k = 0; k < TAPS; k++, grad_columns += s.width) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const int64_t pixel = at.pixel(s, k, i);
      const T* corner = x + pixel * s.channels();
      float* grad_corner = grad_x + pixel * s.width;
      const float weight = at.weight(k, i);
      Floats<V> products{};
      for (int c = 0; c < s.width; c += V) {
        const Floats<V> grad = load<V>(grad_columns + c);
        products += grad * load<V>(corner + c);
        store<V>(load<V>(grad_corner + c) + weight * grad, grad_corner + c);
      }
      for (int v = 0; v < V; v++) dot[i][k] += products[v];
    }
  }
  float down[LANES], right[LANES], logit[LANES];
#pragma omp simd
  for (int k = 0; k < LANES; k++) {
    const float above = at.column_weight[0][k] * dot[0][k] + at.column_weight[1][k] * dot[1][k];
    const float below = at.column_weight[0][k] * dot[2][k] + at.column_weight[1][k] * dot[3][k];
    const float before = at.row_weight[0][k] * dot[0][k] + at.row_weight[1][k] * dot[2][k];
    const float behind = at.row_weight[0][k] * dot[1][k] + at.row_weight[1][k] * dot[3][k];
    down[k] = at.mask[k] * (at.row_inside[1][k] * below - at.row_inside[0][k] * above);
    right[k] = at.mask[k] * (at.column_inside[1][k] * behind - at.column_inside[0][k] * before);
    logit[k] = at.mask[k] * (1.f - at.mask[k]) * (at.row_weight[0][k] * above + at.row_weight[1][k] * below);
  }
  for (int k = 0; k < TAPS; k++) {
    store<1>(Floats<1>{down[k]}, grad_offset + 2 * k);
    store<1>(Floats<1>{right[k]}, grad_offset + 2 * k + 1);
    store<1>(Floats<1>{logit[k]}, grad_logit + k);
  }
}

// grad_x (N, G, H, W, C/G) fp32 is added to. A group is one thread's, since neighbours share pixels; a thread's groups
// go along together, as their gradients lie together.
template <typename T, int V>
void sample_backward(const Shape& s, int threads, const T* x, const T* offset_mask, const T* grad_columns,
                     float* grad_x, T* grad_offset_mask) {
  const int parts = std::min(s.groups, (threads + s.n - 1) / s.n);
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int n = 0; n < s.n; n++) {
    for (int part = 0; part < parts; part++) {
      for (int64_t p = 0; p < s.pixels(); p++) {
        const int64_t place = n * s.pixels() + p, row = place * s.offset_mask_channels();
        for (int g = part * s.groups / parts; g < (part + 1) * s.groups / parts; g++) {
          const Places at(s, offset_mask + row, g, int(p / s.w), int(p % s.w));
          pixel_backward<T, V>(s, at, x + n * s.pixels() * s.channels() + g * s.width,
                               grad_columns + (place * s.groups + g) * TAPS * s.width,
                               grad_x + (int64_t{n} * s.groups + g) * s.pixels() * s.width,
                               grad_offset_mask + row + s.offset(g), grad_offset_mask + row + s.logit(g));
        }
      }
    }
  }
}

// run(V) with the widest vector that divides a group's channels.
template <typename Run>
void with_vectors(int width, Run run) {
  if (width % 16 == 0) return run(std::integral_constant<int, 16>{});
  if (width % 8 == 0) return run(std::integral_constant<int, 8>{});
  if (width % 4 == 0) return run(std::integral_constant<int, 4>{});
  return run(std::integral_constant<int, 1>{});
}

template <typename T>
const T* as(const void* tensor) {
  return static_cast<const T*>(tensor);
}

template <typename T>
T* as(void* tensor) {
  return static_cast<T*>(tensor);
}

}  // namespace

// bfloat16: whether the tensors are, else fp32.
extern "C" void sadnet_sample(int bfloat16, int threads, int n, int h, int w, int groups, int width, const void* x,
                              const void* offset_mask, void* columns) {
  const Shape s{n, h, w, groups, width};
  with_vectors(width, [&](auto v) {
    if (bfloat16)
      return sample<Bfloat16, v>(s, threads, as<Bfloat16>(x), as<Bfloat16>(offset_mask), as<Bfloat16>(columns));
    sample<float, v>(s, threads, as<float>(x), as<float>(offset_mask), as<float>(columns));
  });
}

extern "C" void sadnet_sample_backward(int bfloat16, int threads, int n, int h, int w, int groups, int width,
                                       const void* x, const void* offset_mask, const void* grad_columns, float* grad_x,
                                       void* grad_offset_mask) {
  const Shape s{n, h, w, groups, width};
  with_vectors(width, [&](auto v) {
    if (bfloat16) {
      return sample_backward<Bfloat16, v>(s, threads, as<Bfloat16>(x), as<Bfloat16>(offset_mask),
                                          as<Bfloat16>(grad_columns), grad_x, as<Bfloat16>(grad_offset_mask));
    }
    sample_backward<float, v>(s, threads, as<float>(x), as<float>(offset_mask), as<float>(grad_columns), grad_x,
                              as<float>(grad_offset_mask));
  });
}
