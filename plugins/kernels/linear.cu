// sadnet::ModulatedDeformConv2d (plugins/op.py) for NCHW tensors of fp32 or fp16 by fp32 multiply-adds: plain.cu made
// fast, for any channels, outputs, offset groups that divide the channels, height and width.
//
// A block computes a tile of 32 x ROWS pixels for OUTPUTS outputs. It is a product of the weights, OUTPUTS x 9 C, and
// the sampled columns, 9 C x PIXELS, in steps of up to 4 channels of one offset group:
//
//   1  A thread takes one pixel, tap after tap: it finds the place once and samples all channels of the step there,
//      times the mask, into shared memory. The step's weights go there too.
//   2  A thread multiplies 4 outputs by 8 pixels, whose sums stay in its registers from the first step to the last.
//
// Registers are bounded so that a multiprocessor may hold two blocks, one sampling while the other multiplies (on
// Turing, with 32 outputs, its shared memory holds one). Places, samples and sums are fp32. A plane (H * W) and the
// weight have fewer than 2^31 values each.
#include <ptx.cuh>

typedef SADNET_TYPE T;

constexpr int TAPS = 9, THREADS = 256, STEP_CHANNELS = 4, STEP = STEP_CHANNELS * TAPS;
constexpr int OUTPUTS = SADNET_OUTPUTS, WIDTH = 32, PIXELS = THREADS * 32 / OUTPUTS, ROWS = PIXELS / WIDTH;
constexpr int SHARERS = THREADS / PIXELS;    // threads that share the taps of a pixel
constexpr int WEIGHT_ROWS = THREADS / STEP;  // outputs whose weights of a step are loaded at a time
constexpr int WEIGHT_PITCH = OUTPUTS + 4;    // whole 16 bytes, not all in the same bank
constexpr int MIN_BLOCKS = 2;                // on a multiprocessor, which bounds the registers
static_assert(OUTPUTS == 32 || OUTPUTS == 64, "1 or 2 threads sample a pixel");

static __device__ __forceinline__ float wide(float v) { return v; }
static __device__ __forceinline__ float wide(__half v) { return __half2float(v); }
static __device__ __forceinline__ float load(const T* p) { return wide(__ldg(p)); }
static __device__ __forceinline__ void narrow(float v, float& to) { to = v; }
static __device__ __forceinline__ void narrow(float v, __half& to) { to = __float2half_rn(v); }

// ---- where to sample

// One tap's values of offset_mask at one pixel.
struct Move {
  float y, x, logit;
};

static __device__ __forceinline__ Move load_move(const T* offset, const T* logit, long long plane) {
  return {load(offset), load(offset + plane), load(logit)};
}

// The two neighbours, along one axis, of the place `tap` + `offset`: the first's index, kept where both are inside, and
// the weight of either, which is 0 for one that is no neighbour. So every load is inside the image, and far, infinite
// and NaN places weigh nothing (x is finite: 0 times infinity is not). A sum that matters is never rounded.
static __device__ __forceinline__ int neighbours(float offset, int tap, int size, float& first, float& second) {
  const float has_second = size > 1 ? 1.f : -1.f;
  const float index = fmaxf(fminf(floorf(offset) + tap, (float)(size - 2)), 0.f), past = offset - (index - tap);
  first = __saturatef(1.f - fabsf(past));
  second = __saturatef(has_second - fabsf(past - 1.f));
  return (int)index;
}

// Four corners: where in a plane the first is, and weights times mask.
struct Place {
  int top_left;
  float weight[4];
};

static __device__ __forceinline__ Place place_of(Move move, int row, int column, int tap, int h, int w) {
  float top, bottom, left, right;
  const int y = neighbours(move.y, row + tap / 3 - 1, h, top, bottom);
  const int x = neighbours(move.x, column + tap % 3 - 1, w, left, right);
  const float mask = reciprocal_approximate(1.f + expf(-move.logit));
  top *= mask;
  bottom *= mask;
  return {y * w + x, {top * left, top * right, bottom * left, bottom * right}};
}

// ---- the result

struct alignas(4 * sizeof(T)) Four {
  T value[4];
};

// The first `pixels` of 4 in a row, of one output: bias, activation, rounding; one store where they are 4 and aligned.
static __device__ __forceinline__ void store4(T* to, const float* sum, float bias, float negative_slope, int pixels) {
  Four out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float v = sum[i] + bias;
    narrow(v >= 0 ? v : v * negative_slope, out.value[i]);
  }
  if (pixels >= 4 && (size_t)to % sizeof(Four) == 0) {
    *(Four*)to = out;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < pixels) to[i] = out.value[i];
}

// ---- the kernel

// Grid: x tiles, row by row; y ceil(o / OUTPUTS); z images. THREADS threads.
static __device__ __forceinline__ void linear(const T* __restrict__ x, const T* __restrict__ offset_mask,
                                              const T* __restrict__ weight, const T* __restrict__ bias, int c, int h,
                                              int w, int o, int groups, float negative_slope, T* __restrict__ y) {
  __shared__ __align__(16) float columns[STEP * PIXELS];
  __shared__ __align__(16) float weights[STEP * WEIGHT_PITCH];

  const int thread = threadIdx.x, image = blockIdx.z, first_output = blockIdx.y * OUTPUTS, group_channels = c / groups;
  const int tiles_across = (w + WIDTH - 1) / WIDTH;
  const int first_row = blockIdx.x / tiles_across * ROWS, first_column = blockIdx.x % tiles_across * WIDTH;
  const long long plane = (long long)h * w;

  // The pixel that this thread samples; one outside the image repeats one inside, and is not stored.
  const int sampled = thread % PIXELS, first_tap = thread / PIXELS;
  const int row = min(first_row + sampled / WIDTH, h - 1), column = min(first_column + sampled % WIDTH, w - 1);
  const T* const moves = offset_mask + (long long)image * 3 * TAPS * groups * plane + (row * w + column);
  const int right = w > 1 ? 1 : 0, down = h > 1 ? w : 0;

  // The pixels and outputs that it sums: 4 and 4 pixels half a tile apart, 4 outputs. A warp has 8 x 4 such, and lanes
  // side by side share pixels, lanes two apart outputs: few words for shared memory to fetch.
  const int lane = thread % 32, warp = thread / 32;
  const int pixel = (warp % (PIXELS / 64) * 8 + lane / 2 % 8) * 4;
  const int output = (warp / (PIXELS / 64) * 4 + lane / 16 * 2 + lane % 2) * 4;
  float sum[4][8] = {};

#pragma unroll 1
  for (int channel = 0, channels; channel < c; channel += channels) {
    const int group = channel / group_channels;
    channels = min((group + 1) * group_channels - channel, STEP_CHANNELS);
    const T* const planes = x + ((long long)image * c + channel) * plane;
    __syncthreads();  // the step before has been multiplied

    // An output's weights of a step lie in a row, 9 of each channel.
    if (thread < WEIGHT_ROWS * STEP) {
      const int k = thread % STEP;
      int from = ((first_output + thread / STEP) * c + channel) * TAPS + k;
#pragma unroll 5
      for (int out = thread / STEP; out < OUTPUTS; out += WEIGHT_ROWS, from += WEIGHT_ROWS * TAPS * c)
        weights[k * WEIGHT_PITCH + out] = k < channels * TAPS && first_output + out < o ? load(weight + from) : 0.f;
    }

    const T* offset = moves + 2 * (group * TAPS + first_tap) * plane;
    const T* logit = moves + (2 * TAPS * groups + group * TAPS + first_tap) * plane;
    Move move = load_move(offset, logit, plane);
#pragma unroll 1
    for (int tap = first_tap; tap < TAPS; tap += SHARERS) {
      const Place place = place_of(move, row, column, tap, h, w);
      if (tap + SHARERS < TAPS) {  // on its way while this one's samples are
        offset += 2 * SHARERS * plane;
        logit += SHARERS * plane;
        move = load_move(offset, logit, plane);
      }
      const T* at = planes + place.top_left;
#pragma unroll
      for (int i = 0; i < STEP_CHANNELS; ++i) {
        columns[(i * TAPS + tap) * PIXELS + sampled] = place.weight[0] * load(at) + place.weight[1] * load(at + right) +
                                                       place.weight[2] * load(at + down) +
                                                       place.weight[3] * load(at + down + right);
        if (i + 1 < channels) at += plane;  // else the last one's samples again, which are not multiplied
      }
    }
    __syncthreads();

#pragma unroll 1
    for (int i = 0; i < channels; ++i)
#pragma unroll
      for (int tap = 0; tap < TAPS; ++tap) {
        const int k = i * TAPS + tap;
        const float4 a = *(const float4*)(columns + k * PIXELS + pixel);
        const float4 b = *(const float4*)(columns + k * PIXELS + PIXELS / 2 + pixel);
        const float4 v = *(const float4*)(weights + k * WEIGHT_PITCH + output);
        const float samples[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}, factors[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int p = 0; p < 8; ++p) sum[j][p] += factors[j] * samples[p];
      }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = pixel + half * (PIXELS / 2), at_row = first_row + at / WIDTH, at_column = first_column + at % WIDTH;
    if (at_row >= h) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int out = first_output + output + j;
      if (out < o)
        store4(y + ((long long)image * o + out) * plane + (at_row * w + at_column), sum[j] + 4 * half, load(bias + out),
               negative_slope, w - at_column);
    }
  }
}

#ifdef SADNET_NEGATIVE_SLOPE  // else whoever includes this has an entry, where the slope is an argument
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    modulated_deform_conv2d(const T* __restrict__ x, const T* __restrict__ offset_mask, const T* __restrict__ weight,
                            const T* __restrict__ bias, int n, int c, int h, int w, int o, int groups,
                            T* __restrict__ y) {
  linear(x, offset_mask, weight, bias, c, h, w, o, groups, SADNET_NEGATIVE_SLOPE, y);
}
#endif
