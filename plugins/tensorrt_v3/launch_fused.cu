// fused.cuh, compiled for every line of tiles.def: one kernel for each.
#include <fused.cuh>

#include "kernels.h"
#include "op.h"

namespace sadnet_plugin {
namespace {

constexpr int GROUPS = Attributes{}.offset_groups;
constexpr int PITCH = offset_mask_channels(GROUPS);
static_assert(PITCH % 8 == 0, "TensorRT's HWC8 pads the channels of offset_mask to a multiple of 8");

template <class Layer, class Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::min_blocks)
    fused(const __half* __restrict__ x, const __half* __restrict__ offset_mask, const __half* __restrict__ weight,
          const __half* __restrict__ bias, int h, int w, float negative_slope, __half* __restrict__ y) {
  sadnet::fused<Layer, Tile>(x, offset_mask, weight, bias, h, w, negative_slope, y);
}

struct Row {
  int channels;
  Block block;
  void (*kernel)(const __half*, const __half*, const __half*, const __half*, int, int, float, __half*);
};

template <class Layer, class Tile>
constexpr Row row() {
  return {
      Layer::channels, {Tile::threads, sadnet::PIXELS, Tile::warps, Tile::tiles, Tile::outputs}, fused<Layer, Tile>};
}

#define TILE(CHANNELS, ...) row<sadnet::Layer<CHANNELS, CHANNELS, GROUPS, PITCH>, sadnet::Tile<__VA_ARGS__>>(),
constexpr Row ROWS[] = {
#include <tiles.def>
};
#undef TILE

}  // namespace

int fused_tiles(long long channels, long long outputs, int offset_groups) {
  int tiles = 0;
  for (const Row& row : ROWS) tiles += row.channels == channels && channels == outputs && offset_groups == GROUPS;
  return tiles;
}

cudaError_t launch_fused(const Problem& problem, int tile, const Buffers& buffers, cudaStream_t stream) {
  for (const Row& row : ROWS) {
    if (row.channels != problem.c || tile-- > 0) continue;
    const auto memory = [](const void* pointer) { return static_cast<const __half*>(pointer); };
    const cudaLaunchConfig_t config = config_of(problem, row.block, stream);
    return cudaLaunchKernelEx(&config, row.kernel, memory(buffers.x), memory(buffers.offset_mask),
                              memory(buffers.weight), memory(buffers.bias), problem.h, problem.w,
                              problem.negative_slope, static_cast<__half*>(buffers.y));
  }
  return cudaErrorInvalidValue;
}

}  // namespace sadnet_plugin
