// sadnet::ModulatedDeformConv2d (plugins/op.py) as plainly as it can be said: one thread, one output sample, in the
// order of the formula. The teacher of the fast kernels: slow, and right by inspection.
//
// Tensors are NCHW, of type T (compiled in: float or __half); coordinates, weights of the corners and the sum are fp32.
// A block: 128 pixels of a row, blockIdx.x of them from the first row's on; output blockIdx.y of image blockIdx.z.
#include <cuda_fp16.h>

typedef SADNET_TYPE T;

static __device__ float wide(float v) { return v; }
static __device__ float wide(__half v) { return __half2float(v); }
static __device__ void narrow(float v, float* to) { *to = v; }
static __device__ void narrow(float v, __half* to) { *to = __float2half(v); }

// One corner of the bilinear interpolation: the sample at (y, x), zero outside the image.
static __device__ float corner(const T* image, int y, int x, int h, int w) {
  return y >= 0 && y < h && x >= 0 && x < w ? wide(image[(long long)y * w + x]) : 0.f;
}

// An image of h x w samples, at a place between its pixels. A place that is far away, infinite or no number is outside.
static __device__ float sample(const T* image, float y, float x, int h, int w) {
  if (!(y > -1.f && y < h && x > -1.f && x < w)) return 0.f;
  const float y0 = floorf(y), x0 = floorf(x), dy = y - y0, dx = x - x0;
  const int top = (int)y0, left = (int)x0;
  return (1 - dy) * ((1 - dx) * corner(image, top, left, h, w) + dx * corner(image, top, left + 1, h, w)) +
         dy * ((1 - dx) * corner(image, top + 1, left, h, w) + dx * corner(image, top + 1, left + 1, h, w));
}

extern "C" __global__ void modulated_deform_conv2d(const T* x, const T* offset_mask, const T* weight, const T* bias,
                                                   int n, int c, int h, int w, int o, int groups, T* y) {
  const int taps = 9, blocks_across = (w + blockDim.x - 1) / blockDim.x;
  const int row = blockIdx.x / blocks_across, column = blockIdx.x % blocks_across * blockDim.x + threadIdx.x;
  const int out_channel = blockIdx.y, image = blockIdx.z, group_channels = c / groups;
  if (column >= w) return;
  const long long plane = (long long)h * w, pixel = (long long)row * w + column;

  const T* moves = offset_mask + (long long)image * 3 * taps * groups * plane + pixel;  // this pixel's, plane by plane
  float sum = wide(bias[out_channel]);
  for (int group = 0; group < groups; ++group) {
    for (int tap = 0; tap < taps; ++tap) {
      const int k = group * taps + tap;
      const float at_y = row + (tap / 3 - 1) + wide(moves[2 * k * plane]);
      const float at_x = column + (tap % 3 - 1) + wide(moves[(2 * k + 1) * plane]);
      const float mask = 1 / (1 + expf(-wide(moves[(2LL * taps * groups + k) * plane])));
      for (int i = 0; i < group_channels; ++i) {
        const int channel = group * group_channels + i;
        const T* from = x + ((long long)image * c + channel) * plane;
        sum +=
            wide(weight[((long long)out_channel * c + channel) * taps + tap]) * mask * sample(from, at_y, at_x, h, w);
      }
    }
  }
  narrow(sum >= 0 ? sum : sum * SADNET_NEGATIVE_SLOPE, y + ((long long)image * o + out_channel) * plane + pixel);
}
