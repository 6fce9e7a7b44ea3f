// sadnet::ModulatedDeformConv2d (plugins/op.py) in half precision on tensor cores, without a column buffer: what a
// matrix product needs of the sampled image is sampled into the registers that the product reads.
//
// All tensors are channels-last: x (N,H,W,C), offset_mask (N,H,W,pitch), weight (O,3,3,C), y (N,H,W,O). Places, corner
// weights and sums are fp32.
//
// A warp computes 16 pixels of a row, one below another warp's, for a block's outputs: a product of A, 16 pixels by
// 9 * C samples, and B, the weights. One step of it takes a chunk of 32 channels of one tap: two m16n8k16 products.
//
//   A  Lane 4 * row + slot must hold pixels `row` and `row + 8`, and of the 32 samples those whose place in the sum is
//      2 * slot, 2 * slot + 1, 2 * slot + 8 and 2 * slot + 9 of either product. A sum may be taken in any order: slot s
//      owns channels 8 s to 8 s + 7 of the chunk. So a lane samples for itself; no other lane needs its samples.
//   B  A block's warps share the weights in shared memory: a ring of steps, or all of them where they fit. A row is one
//      output's 32 weights of a step, 64 bytes: a lane's operands of both products are 16 bytes in a row.
//   y  Rows are ordered so that a lane ends with 8 outputs in a row of either pixel: 16 bytes.
//
// The next step's samples are on their way while this step's are multiplied, and its places before that.
#pragma once
#include <sampling.cuh>

namespace sadnet {

constexpr int TAPS = 9, CHUNK = 32, SLOT = 8, PIXELS = 16;

template <int C, int O, int GROUPS, int PITCH>
struct Layer {
  static constexpr int channels = C, outputs = O, groups = GROUPS, group_channels = C / GROUPS, pitch = PITCH;
  static constexpr int chunks = (C + CHUNK - 1) / CHUNK;
  // Channels of a slot that move together, so that one load fetches them; and how many such samples make the slot.
  static constexpr int sample = (group_channels | SLOT) & -(group_channels | SLOT);  // greatest common divisor with 8
  static constexpr int samples = SLOT / sample;
};

// Parameters: see tiles.def.
template <int WARPS, int OUTPUTS, int K_GROUPS, int STAGES, int TILES, int MIN_BLOCKS>
struct Tile {
  static constexpr int warps = WARPS, outputs = OUTPUTS, k_groups = K_GROUPS, stages = STAGES, tiles = TILES;
  static constexpr int min_blocks = MIN_BLOCKS, threads = 32 * WARPS * K_GROUPS;
};

// The output whose weights row r holds. In every 32 of them: lane 4 * row + t ends with column 2 t + j of the i-th
// product of 8 columns, and 8 t + 2 i + j is the output that it shall be. It only moves bits: of disjoint r, it is
// additive.
static __host__ __device__ constexpr int output_of_row(int r) {
  return (r & ~31) + (r & 6) * 4 + (r >> 3 & 3) * 2 + (r & 1);
}

// ---- A: operands of sampled channels

// A lane's part of a step: 8 channels of its slot for its two pixels. Channels of a sample move together; where these
// are 4, even and odd pairs of pixels take a slot's two samples in opposite order, so that the lanes that a load serves
// together touch all banks.
template <class L>
static __device__ __forceinline__ int sample_at(int i, int lane) {
  return L::samples == 2 ? i ^ (lane >> 3 & 1) : i;
}

// Where a lane's moves are: bytes from a pixel's first, the same for both of its pixels.
template <class L>
struct Moves {
  u32 y_x[L::samples], logit[L::samples];

  // To the first tap of the slot whose first channel is given.
  __device__ __forceinline__ void aim(int channel, int lane) {
#pragma unroll
    for (int i = 0; i < L::samples; ++i) {
      const int group = (channel + sample_at<L>(i, lane) * L::sample) / L::group_channels;
      y_x[i] = 4 * TAPS * group;
      logit[i] = 4 * TAPS * L::groups + 2 * TAPS * group;
    }
  }
  __device__ __forceinline__ void next_tap() {
#pragma unroll
    for (int i = 0; i < L::samples; ++i) y_x[i] += 4, logit[i] += 2;
  }
  __device__ __forceinline__ void load(Move (&to)[2][L::samples], const char* const (&pixel)[2]) const {
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int i = 0; i < L::samples; ++i) to[p][i] = load_move<L>(pixel[p] + y_x[i], pixel[p] + logit[i]);
  }
};

// The products' operands: two pixels' 8 channels, as they are in memory.
template <class L>
static __device__ __forceinline__ void interpolate_slot(u32 (&operand)[2][4],
                                                        const Corners<L::sample> (&corners)[2][L::samples], int lane) {
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    Vector<L::sample> v[L::samples];
#pragma unroll
    for (int i = 0; i < L::samples; ++i) v[i] = interpolate(corners[p][i]);
    if constexpr (L::samples == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) operand[p][i] = v[0].word[i];
    } else if constexpr (L::samples == 2) {
      const bool swapped = sample_at<L>(0, lane) == 1;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        operand[p][i] = swapped ? v[1].word[i] : v[0].word[i];
        operand[p][2 + i] = swapped ? v[0].word[i] : v[1].word[i];
      }
    } else if constexpr (L::samples == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) operand[p][i] = v[i].word[0];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) operand[p][i] = (v[2 * i].word[0] & 0xffff) | v[2 * i + 1].word[0] << 16;
    }
  }
}

// ---- B: the weights

// One slot of a row, 16 bytes: 8 channels of one output. Zeros where the layer has no such output or channel.
template <class L, class T>
static __device__ __forceinline__ void copy_piece(__half* to, const __half* from, int output, int channel) {
  if ((L::outputs % T::outputs == 0 || output < L::outputs) && (L::channels % CHUNK == 0 || channel < L::channels))
    copy16(to, from);
  else
    *(uint4*)to = make_uint4(0, 0, 0, 0);
}

// The weights of every step, for a block that keeps them.
template <class L, class T>
static __device__ __forceinline__ void copy_all_weights(__half* to, const __half* weight, int first_output) {
  constexpr int step = T::outputs * 4;  // pieces
#pragma unroll 1
  for (int i = threadIdx.x; i < L::chunks * TAPS * step; i += T::threads) {
    const int row = i % step / 4, channel = i / step / TAPS * CHUNK + i % 4 * SLOT;
    const int output = first_output + output_of_row(row);
    const __half* from = weight + ((long long)output * TAPS + i / step % TAPS) * L::channels + channel;
    copy_piece<L, T>(to + i * SLOT, from, output, channel);
  }
  copies_commit();
  copies_wait<0>();
  __syncthreads();
}

// Streams the weights of a k group through its ring, tap after tap.
template <class L, class T>
struct Weights {
  static constexpr int threads = 32 * T::warps, rows = threads / 4, pieces = T::outputs * 4 / threads;
  const __half* from;
  int output, channel;

  __device__ __forceinline__ Weights(const __half* weight, int first_output, int first_channel, int thread) {
    static_assert(T::stages == 0 || (T::outputs % rows == 0 && (rows & (rows - 1)) == 0),
                  "a thread's rows begin alike");
    output = first_output + output_of_row(thread / 4);
    channel = first_channel + thread % 4 * SLOT;
    from = weight + (long long)output * TAPS * L::channels + channel;
  }
  __device__ __forceinline__ void next_tap() { from += L::channels; }
  __device__ __forceinline__ void next_chunk() {
    from += CHUNK - TAPS * L::channels;
    channel += CHUNK;
  }
  __device__ __forceinline__ void copy(__half* stage, int thread) const {
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int further = output_of_row(i * rows);
      copy_piece<L, T>(stage + (i * threads + thread) * SLOT, from + further * TAPS * L::channels, output + further,
                       channel);
    }
  }
};

// sums (16 pixels x outputs) += operands * weights
template <class T>
static __device__ __forceinline__ void multiply(float (&sum)[T::outputs / 8][4], const u32 (&a)[2][4],
                                                const __half* weights, int lane) {
#pragma unroll
  for (int j = 0; j < T::outputs / 8; ++j) {
    const uint4 b = *(const uint4*)(weights + (j * 32 + lane) * SLOT);
    mma_m16n8k16(sum[j], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
    mma_m16n8k16(sum[j], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
  }
}

// ---- y: the result

// 8 outputs in a row of one pixel: bias, activation, rounding.
static __device__ __forceinline__ void store8(__half* y, const float (&v)[8], const __half* bias,
                                              float negative_slope) {
  const uint4 b = load16(bias);
  const u32 words[4] = {b.x, b.y, b.z, b.w};
  u32 out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 add = halves(words[i]);
    const float low = v[2 * i] + add.x, high = v[2 * i + 1] + add.y;
    out[i] = pack(low >= 0 ? low : low * negative_slope, high >= 0 ? high : high * negative_slope);
  }
  *(uint4*)y = make_uint4(out[0], out[1], out[2], out[3]);
}

// The sums of all k groups into the first's, one group after another: the same order every time.
template <class T>
static __device__ __forceinline__ void add_k_groups(float (&sum)[T::outputs / 8][4], float* shared, int k_group,
                                                    int warp, int lane) {
  float4* mine = (float4*)shared + warp * (T::outputs / 8) * 32 + lane;
  for (int from = 1; from < T::k_groups; ++from) {
    __syncthreads();  // the weights, or the sums before, have been read
    if (k_group == from)
#pragma unroll
      for (int j = 0; j < T::outputs / 8; ++j) mine[j * 32] = make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
    __syncthreads();
    if (k_group == 0)
#pragma unroll
      for (int j = 0; j < T::outputs / 8; ++j) {
        const float4 v = mine[j * 32];
        sum[j][0] += v.x, sum[j][1] += v.y, sum[j][2] += v.z, sum[j][3] += v.w;
      }
  }
}

// ---- the kernel

// Grid: x ceil(tiles / T::tiles) of 16 x T::warps pixels, y ceil(outputs / T::outputs), z images. T::threads threads.
template <class L, class T>
static __device__ __forceinline__ void fused(const __half* x, const __half* offset_mask, const __half* weight,
                                             const __half* bias, int h, int w, float negative_slope, __half* y) {
  constexpr int chunks = L::chunks / T::k_groups, steps = chunks * TAPS, stage_halves = T::outputs * CHUNK;
  constexpr int ring = T::k_groups * (T::stages ? T::stages : steps) * stage_halves;
  constexpr int partial_sums = T::k_groups > 1 ? T::warps * PIXELS * T::outputs * 2 : 0;  // in halves
  static_assert(L::chunks % T::k_groups == 0 && L::channels % 8 == 0 && L::outputs % 8 == 0 && T::outputs % 32 == 0,
                "what plugins/launch.py chooses");
  static_assert(T::stages == 3 || (T::stages == 0 && T::k_groups == 1), "a ring of three, or all weights");
  static_assert(T::tiles == 1 || T::stages == 0, "a ring of weights streams once");
  __shared__ __align__(16) __half shared[ring > partial_sums ? ring : partial_sums];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % T::warps, k_group = threadIdx.x / 32 / T::warps;
  const int group_thread = threadIdx.x % (32 * T::warps), first_output = blockIdx.y * T::outputs;
  const int n = blockIdx.z, tiles_across = (w + PIXELS - 1) / PIXELS;
  const int tiles = tiles_across * ((h + T::warps - 1) / T::warps);
  const int first_channel = k_group * chunks * CHUNK, slot_channel = first_channel + lane % 4 * SLOT;
  const Image image = image_of(x, n, h, w, L::channels);
  __half* const ring_weights = shared + k_group * T::stages * stage_halves;
  if (T::stages == 0) copy_all_weights<L, T>(shared, weight, first_output);

#pragma unroll 1
  for (int i = 0; i < T::tiles; ++i) {
    const int tile = blockIdx.x * T::tiles + i;
    if (tile >= tiles) return;  // for all threads of the block
    const int row = tile / tiles_across * T::warps + warp, column = tile % tiles_across * PIXELS + lane / 4;
    const int inside_row = min(row, h - 1);  // what is outside is computed, to keep barriers simple, and not stored
    const char* pixel[2];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const long long index = ((long long)n * h + inside_row) * w + min(column + 8 * p, w - 1);
      pixel[p] = (const char*)(offset_mask + index * L::pitch);
    }

    float sum[T::outputs / 8][4];
#pragma unroll
    for (int j = 0; j < T::outputs / 8; ++j) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0.f;

    // Three things go ahead of the products: samples by one step, moves and weights by two.
    Moves<L> moves;
    Weights<L, T> weights(weight, first_output, first_channel, group_thread);
    Move move[2][L::samples];
    Corners<L::sample> corners[2][L::samples];
    u32 operand[2][4];
    int channel = slot_channel, tap = 0, tap_ahead = 1;
    const auto beyond = [&] { return L::channels % CHUNK && channel >= L::channels; };
    const auto gather_tap = [&] {
      if (beyond()) return;
      const int ky = tap * 11 >> 5, kx = tap - 3 * ky;  // tap / 3, tap % 3
      const int y = inside_row - 1 + ky, x = column - 1 + kx;
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int k = 0; k < L::samples; ++k)
          gather(corners[p][k], image, place_of<L>(image, move[p][k], y, x + 8 * p),
                 channel + sample_at<L>(k, lane) * L::sample);
    };
    const auto make_operands = [&] {
      if (beyond())
        for (int k = 0; k < 8; ++k) operand[k / 4][k % 4] = 0;
      else
        interpolate_slot<L>(operand, corners, lane);
    };

    if (T::stages) {
      weights.copy(ring_weights, group_thread);
      copies_commit();
      weights.next_tap();
      weights.copy(ring_weights + stage_halves, group_thread);
      copies_commit();
    }
    moves.aim(min(channel, L::channels - SLOT), lane);
    moves.load(move, pixel);
    gather_tap();
    moves.next_tap();
    moves.load(move, pixel);
    make_operands();

    __half *now = ring_weights, *free = ring_weights + 2 * stage_halves;  // of this step, and of the one before
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      if (step + 1 < steps) {
        if (++tap == TAPS && chunks > 1) tap = 0, channel += CHUNK;
        gather_tap();
      }
      if (step + 2 < steps) {
        moves.next_tap();
        weights.next_tap();
        if (++tap_ahead == TAPS && chunks > 1) {
          tap_ahead = 0;
          moves.aim(min(channel + CHUNK, L::channels - SLOT), lane);
          weights.next_chunk();
        }
        moves.load(move, pixel);
      }
      if (T::stages) {
        copies_wait<1>();
        __syncthreads();  // this step's weights are there for all, and all have read those of the step before
        if (step + 2 < steps) weights.copy(free, group_thread);
        copies_commit();
        free = now;
      }
      multiply<T>(sum, operand, now, lane);
      now = now + stage_halves == ring_weights + T::stages * stage_halves ? ring_weights : now + stage_halves;
      if (step + 1 < steps) make_operands();
    }

    add_k_groups<T>(sum, (float*)shared, k_group, warp, lane);
    if (k_group == 0 && row < h)
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int j = 0; j < T::outputs / 32; ++j) {
          const int output = first_output + j * 32 + lane % 4 * 8;
          if (column + 8 * p >= w || (L::outputs % T::outputs && output >= L::outputs)) continue;
          float v[8];
#pragma unroll
          for (int k = 0; k < 8; ++k) v[k] = sum[j * 4 + k / 2][2 * p + k % 2];
          const long long index = ((long long)n * h + row) * w + column + 8 * p;
          store8(y + index * L::outputs + output, v, bias + output, negative_slope);
        }
  }
}

}  // namespace sadnet
