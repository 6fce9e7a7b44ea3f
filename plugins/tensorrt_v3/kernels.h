// What the plugin's host code knows of the kernels of plugins/kernels: how to launch them, and which tiles there are.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

namespace sadnet_plugin {

// One call of the op: n images of h x w, c channels in and o out.
struct Problem {
  int n, c, h, w, o, offset_groups;
  float negative_slope;
};

// Device memory, in a kernel's layout.
struct Buffers {
  const void *x, *offset_mask, *weight, *bias;
  void* y;
};

// How much of the work a block takes: width x height pixels of so many tiles, one after another, for so many outputs.
struct Block {
  int threads, width, height, tiles, outputs;
};

// plugins/launch.py's Kernel.grid.
inline dim3 grid_of(const Problem& problem, const Block& block) {
  const auto parts = [](long long whole, int part) { return (whole + part - 1) / part; };
  const long long tiles = parts(problem.w, block.width) * parts(problem.h, block.height);
  return {static_cast<unsigned>(parts(tiles, block.tiles)), static_cast<unsigned>(parts(problem.o, block.outputs)),
          static_cast<unsigned>(problem.n)};
}

inline cudaLaunchConfig_t config_of(const Problem& problem, const Block& block, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid_of(problem, block);
  config.blockDim = {static_cast<unsigned>(block.threads), 1, 1};
  config.stream = stream;
  return config;
}

// linear.cu: all tensors NCHW, of type T; a block computes as many outputs as asked, 32 or 64.
template <class T, int BLOCK_OUTPUTS>
cudaError_t launch_linear(const Problem& problem, const Buffers& buffers, cudaStream_t stream);

// fused.cuh: fp16, all tensors but bias channels-last, for SADNet's layers alone. How many tiles of tiles.def there are
// for a layer, the likeliest to be the fastest first; 0 where the layer is none of SADNet's.
int fused_tiles(long long channels, long long outputs, int offset_groups);

// tile: below fused_tiles.
cudaError_t launch_fused(const Problem& problem, int tile, const Buffers& buffers, cudaStream_t stream);

}  // namespace sadnet_plugin
