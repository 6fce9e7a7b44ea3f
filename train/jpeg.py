"""What JPEG does to images, on their own device: baseline, 4:2:0, Huffman coding left out because it loses nothing.

The host's encoder would cost a GPU a round trip for every batch. Compared with libjpeg by tests/train/test_jpeg.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MCU = 16
"""Pixels a side of the unit that the image is padded to: four blocks of luma, one of each subsampled chroma."""

# The example tables of ITU-T T.81, annex K.1, which encoders scale by quality.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def compress(images: Tensor, qualities: Sequence[int], origins: Sequence[tuple[int, int]]) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], once encoded with qualities 1 to 100 and decoded, as whole 8-bit levels in [0, 1].

    origins: for each image the row and column, 0 to 15, of its first pixel in the first unit of the file: a crop of a
    photo begins anywhere in the photo's grid of blocks.
    """
    height, width = images.shape[2:]
    rows, columns = (-(-(side + MCU - 1) // MCU) * MCU for side in (height, width))  # room for any origin
    edged = F.pad(images, (MCU - 1, columns - width, MCU - 1, rows - height), mode="replicate")
    files = [
        image[:, MCU - 1 - top :, MCU - 1 - left :][:, :rows, :columns]
        for image, (top, left) in zip(edged, origins, strict=True)
    ]
    decoded = _decode(torch.stack(files).mul_(255).round_(), torch.tensor(qualities, device=images.device))
    crops = [image[:, top:, left:][:, :height, :width] for image, (top, left) in zip(decoded, origins, strict=True)]
    return torch.stack(crops).round_().clamp_(0, 255).div_(255)


def _decode(files: Tensor, quality: Tensor) -> Tensor:
    """What (N, 3, 16h, 16w) RGB in 0..255 is after encoding and decoding, neither rounded nor clipped."""
    red, green, blue = files.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1).add_(128).round_()
    luma = _quantise(luma.round_(), _table(_LUMA, quality))
    half = F.avg_pool2d(chroma, 2).round_().flatten(0, 1)
    half = _quantise(half, _table(_CHROMA, quality).repeat_interleave(2, 0)).unflatten(0, (-1, 2))
    blue_difference, red_difference = F.interpolate(half, scale_factor=2, mode="bilinear").sub_(128).unbind(1)
    red, blue = luma + 1.402 * red_difference, luma + 1.772 * blue_difference
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], 1)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (N, 8h, 8w) in 0..255 with each 8x8 block's DCT coefficients rounded to multiples of table (N, 64)."""
    transform = _dct(planes.device)
    count, height, width = planes.shape
    grid = planes.double().sub_(128).view(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    steps = table[:, None]
    coefficients = (grid.reshape(count, -1, 64) @ transform.T).div_(steps).round_().mul_(steps)
    blocks = (coefficients @ transform).view(count, height // 8, width // 8, 8, 8)
    return blocks.transpose(2, 3).reshape(planes.shape).add_(128).round_().clamp_(0, 255).to(planes.dtype)


def _table(base: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """(N, 64) double: libjpeg's scaling of a table, linear above quality 50 and reciprocal below."""
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None]
    steps = torch.tensor(base, device=quality.device).flatten()
    return steps.mul(scale).add_(50).floor_divide_(100).clamp_(1, 255).double()


def _dct(device: torch.device) -> Tensor:
    """(64, 64) double, orthonormal: an 8x8 block's two-dimensional DCT-II. Half or TF32 would move coefficients."""
    k = torch.arange(8, dtype=torch.float64)
    one = torch.cos((2 * k + 1) * k[:, None] * (math.pi / 16)) / 2
    one[0] /= math.sqrt(2)
    return torch.kron(one, one).to(device)
