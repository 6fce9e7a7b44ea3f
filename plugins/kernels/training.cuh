// The sampling of plugins/op.py, forward and backward, for plugins/cuda_sampling.py: what cpu_sampling.cpp is on a CPU.
//
// Everything is channels last. A pixel's samples of one offset group lie together in `columns` (N, H*W, G, 9, C/G), so
// that the sum over taps is one matrix product. One thread: one pixel, offset group and tap. Interpolation is in fp32,
// whatever T is. Fewer than 2^31 threads: the indices of pixels and taps have 32 bits.

namespace training {

constexpr int TAPS = 9, GROUPS = SADNET_GROUPS, WIDTH = SADNET_WIDTH, CHANNELS = GROUPS * WIDTH;  // WIDTH: of a group
constexpr int OFFSET_MASK_CHANNELS = 3 * TAPS * GROUPS;
// Channels that are loaded at once, at most 8 bytes in 16-bit types and 16 in fp32.
constexpr int V = WIDTH % 4 == 0 ? 4 : WIDTH % 2 == 0 ? 2 : 1;

typedef SADNET_TYPE T;

struct alignas(V * sizeof(T)) Vector {
  T of[V];
};

// Where one tap of one pixel and group falls: the two rows and columns around the place, moved inside; whether they are
// inside, as 0 or 1; their weights, zero outside of the image.
struct Axis {
  int index[2];
  float inside[2], weight[2];

  __device__ Axis(float place, int size) {
    // beyond these bounds nothing is inside; what is no number compares false and is outside too
    float p = place > -2.f ? place : -2.f;
    p = p < (float)(size + 1) ? p : (float)(size + 1);
    const float below = floorf(p), fraction = p - below;
    const int first = (int)below;
    inside[0] = first >= 0 && first < size ? 1.f : 0.f;
    inside[1] = first >= -1 && first < size - 1 ? 1.f : 0.f;
    weight[0] = (1.f - fraction) * inside[0];
    weight[1] = fraction * inside[1];
    index[0] = min(max(first, 0), size - 1);
    index[1] = min(max(first + 1, 0), size - 1);
  }
};

// A thread's part: its pixel, group and tap, and where in x (N, H, W, C) it samples.
struct Sample {
  unsigned group, tap, pixel;  // pixel: of all images'
  long long image;             // the image's first channel's group in x and grad_x
  Axis row, column;
  float mask;
  int w;

  static __device__ unsigned slot(unsigned thread) { return thread % (GROUPS * TAPS); }
  static __device__ float place(const T* offset_mask, unsigned thread, int h, int w, int axis) {
    const unsigned pixel = thread / (GROUPS * TAPS), tap = slot(thread) % TAPS;
    const int at = axis ? pixel % w : pixel / w % h;
    const float offset = wide(offset_mask[(long long)pixel * OFFSET_MASK_CHANNELS + 2 * slot(thread) + axis]);
    return (float)(at + (int)(axis ? tap % 3 : tap / 3) - 1) + offset;
  }

  __device__ Sample(const T* offset_mask, unsigned thread, int h, int w)
      : group(slot(thread) / TAPS),
        tap(slot(thread) % TAPS),
        pixel(thread / (GROUPS * TAPS)),
        image((long long)(pixel / (unsigned)(h * w)) * h * w * CHANNELS + group * WIDTH),
        row(place(offset_mask, thread, h, w, 0), h),
        column(place(offset_mask, thread, h, w, 1), w),
        mask(1.f /
             (1.f +
              expf(-wide(offset_mask[(long long)pixel * OFFSET_MASK_CHANNELS + 2 * TAPS * GROUPS + slot(thread)])))),
        w(w) {}

  // Of corner i: 0 and 1 above the place, 2 and 3 below it, the odd ones to its right.
  __device__ long long corner(int i) const {
    return image + ((long long)row.index[i / 2] * w + column.index[i % 2]) * CHANNELS;
  }
  __device__ float weight(int i) const { return row.weight[i / 2] * column.weight[i % 2]; }
};

static __device__ void sample(const T* x, const T* offset_mask, int h, int w, unsigned threads, T* columns) {
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= threads) return;
  const Sample at(offset_mask, thread, h, w);
#pragma unroll
  for (int c = 0; c < WIDTH; c += V) {
    float sum[V] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Vector corner = *(const Vector*)(x + at.corner(i) + c);
      const float weight = at.mask * at.weight(i);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weight * wide(corner.of[v]);
    }
    Vector out;
#pragma unroll
    for (int v = 0; v < V; ++v) narrow(sum[v], &out.of[v]);
    *(Vector*)(columns + (long long)thread * WIDTH + c) = out;
  }
}

// grad_x (N, H, W, C) fp32 is added to.
static __device__ void sample_backward(const T* x, const T* offset_mask, const T* grad_columns, int h, int w,
                                       unsigned threads, float* grad_x, T* grad_offset_mask) {
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= threads) return;
  const Sample at(offset_mask, thread, h, w);
  float dot[4] = {};  // of the gradient and each corner's channels
#pragma unroll
  for (int c = 0; c < WIDTH; c += V) {
    const Vector grad = *(const Vector*)(grad_columns + (long long)thread * WIDTH + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Vector corner = *(const Vector*)(x + at.corner(i) + c);
      const float weight = at.mask * at.weight(i);
      float part[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        dot[i] += wide(grad.of[v]) * wide(corner.of[v]);
        part[v] = weight * wide(grad.of[v]);
      }
      if (weight != 0.f) add<V>(grad_x + at.corner(i) + c, part);
    }
  }
  const float above = at.column.weight[0] * dot[0] + at.column.weight[1] * dot[1];
  const float below = at.column.weight[0] * dot[2] + at.column.weight[1] * dot[3];
  const float before = at.row.weight[0] * dot[0] + at.row.weight[1] * dot[2];
  const float behind = at.row.weight[0] * dot[1] + at.row.weight[1] * dot[3];
  T* offset = grad_offset_mask + (long long)at.pixel * OFFSET_MASK_CHANNELS + 2 * Sample::slot(thread);
  T* logit = grad_offset_mask + (long long)at.pixel * OFFSET_MASK_CHANNELS + 2 * TAPS * GROUPS + Sample::slot(thread);
  narrow(at.mask * (at.row.inside[1] * below - at.row.inside[0] * above), offset);
  narrow(at.mask * (at.column.inside[1] * behind - at.column.inside[0] * before), offset + 1);
  narrow(at.mask * (1.f - at.mask) * (at.row.weight[0] * above + at.row.weight[1] * below), logit);
}

}  // namespace training
