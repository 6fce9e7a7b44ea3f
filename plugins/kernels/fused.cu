// One layer of fused.cuh, compiled for the layer and the tile that plugins/launch.py names.
#include <fused.cuh>

using Compiled = sadnet::Layer<SADNET_CHANNELS, SADNET_LAYER_OUTPUTS, SADNET_GROUPS, SADNET_OFFSET_PITCH>;
using Divided = sadnet::Tile<SADNET_TILE>;

extern "C" __global__ void __launch_bounds__(Divided::threads, Divided::min_blocks)
    modulated_deform_conv2d(const __half* __restrict__ x, const __half* __restrict__ offset_mask,
                            const __half* __restrict__ weight, const __half* __restrict__ bias, int n, int c, int h,
                            int w, int o, int groups, __half* __restrict__ y) {
  sadnet::fused<Compiled, Divided>(x, offset_mask, weight, bias, h, w, SADNET_NEGATIVE_SLOPE, y);
}
