"""The fused kernel's functions of places and of order, by themselves, where whole images would be too large to run."""

from pathlib import Path

import numpy as np

from plugins.launch import Kernel
from tests.plugins.cpu_shim.build import NEEDS_COMPILER, Array, Compiled, build

pytestmark = NEEDS_COMPILER

ARGUMENTS = (
    """const float* x, const float* size, const float*, const float*, int, int, int, int w, int, int, float* y"""
)
ORDER = f"""
#include <fused.cuh>
extern "C" void modulated_deform_conv2d({ARGUMENTS}) {{ y[threadIdx.x] = sadnet::output_of_row(threadIdx.x); }}
"""
# In: planes of tap y, tap x, offset y and offset x. Out: two halves of the first corner's place, and four weights.
PLACES = f"""
#include <fused.cuh>
extern "C" void modulated_deform_conv2d({ARGUMENTS}) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= w) return;
  const sadnet::Image image = sadnet::image_of(nullptr, 0, (int)size[0], (int)size[1], 32);
  const unsigned infinite = 0x7c00;  // its sigmoid is 1
  const sadnet::Move move = {{sadnet::pack(x[2 * w + i], x[3 * w + i]), infinite}};
  const auto place = sadnet::place_of<sadnet::Layer<32, 32, 8, 216>>(image, move, x[i], x[w + i]);
  y[i] = place.top_left & 0xffff;
  y[w + i] = place.top_left >> 16;
  for (int k = 0; k < 4; ++k) y[(2 + k) * w + i] = place.weight[k];
}}
"""
PIXEL_BYTES = 2 * 32


def probe(source: str, threads: int, folder: Path) -> Compiled:
    kernel = Kernel("probe.cu", (("SADNET_TYPE", "float"),), threads, threads, 1, 1, 1)
    return build(kernel, folder, {"probe.cu": source})


def operands(x: Array, size: tuple[int, int], planes: int) -> tuple[Array, Array, Array, Array]:
    """What a kernel takes, for a probe that reads x and an image's size."""
    return x, np.array(size, np.float32), np.zeros((planes, 1, 1, 1), np.float32), np.zeros(planes, np.float32)


def test_output_of_row_is_a_permutation(tmp_path: Path) -> None:
    rows = 128
    x = np.zeros((1, 1, 1, rows), np.float32)
    order = probe(ORDER, rows, tmp_path)(operands(x, (1, rows), 1), 1).ravel()
    for first in range(0, rows, 32):
        assert sorted(order[first : first + 32]) == list(range(first, first + 32))


def axis(rng: np.random.Generator, size: int, count: int) -> tuple[Array, Array]:
    """Places of taps in or beside an image, and offsets: small, whole, far, on borders, none at all."""
    tap = rng.integers(-1, size + 1, count)
    tap = np.where(rng.random(count) < 0.3, rng.choice([-1, 0, size - 2, size - 1, size], count), tap)
    tiny = 2.0**-24  # the least half above 0
    odd: list[float] = [0, 0.5, -0.5, 1, -1, 2, tiny, -tiny, 1 - 2**-11, 2**-11 - 1, 6e4, -6e4, np.inf, -np.inf, np.nan]
    offset = np.where(rng.random(count) < 0.4, rng.choice(odd, count), 3 * rng.standard_normal(count))
    return tap.astype(np.float32), offset.astype(np.float16).astype(np.float32)


def tent(place: Array, pixel: Array) -> Array:
    """Weight of a pixel in linear interpolation at a place."""
    return np.where(np.isfinite(place), np.maximum(0, 1 - np.abs(place - pixel)), 0)


def all_tents(place: Array, size: int) -> Array:
    """Sum of the weights of pixels 0 to size - 1."""
    return np.where(np.isfinite(place), np.clip(np.minimum(place + 1, size - place), 0, 1), 0)


def test_places_are_the_four_neighbours_in_images_of_up_to_4_gb(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 50_000
    places = probe(PLACES, 128, tmp_path)
    for h, w in (
        (1, 1),
        (1, 17),
        (17, 1),
        (2, 2),
        (3, 2),
        (7, 40),
        (2160, 3840),
        (8191, 8191),
        (40, 2**20),
        (2**20, 60),
    ):
        assert h * w * PIXEL_BYTES < 2**32
        (tap_y, dy), (tap_x, dx) = axis(rng, h, count), axis(rng, w, count)
        x = np.stack([tap_y, tap_x, dy, dx])[None, :, None, :]
        low, high, *weights = places(operands(x, (h, w), 6), 1)[0, :, 0].astype(np.float64)
        pixel = (low + high * 2**16) / PIXEL_BYTES
        top, left = pixel // w, pixel % w
        at_y, at_x = tap_y.astype(np.float64) + dy, tap_x.astype(np.float64) + dx  # the kernel rounds neither
        assert (pixel % 1 == 0).all()
        assert (top <= max(h - 2, 0)).all()
        assert (left <= max(w - 2, 0)).all()
        total: Array = np.zeros(count)
        for k, weight in enumerate(weights):
            row, column = top + k // 2, left + k % 2
            inside = (row < h) & (column < w)
            right = np.where(inside, tent(at_y, row) * tent(at_x, column), 0)
            assert np.abs(weight - right).max() <= 2**-22
            total += right
        assert np.abs(total - all_tents(at_y, h) * all_tents(at_x, w)).max() <= 1e-6  # no pixel is missing
