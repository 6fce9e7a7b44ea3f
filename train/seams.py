"""What a tile's border changes, as a part of the loss: so that tiles of a large picture come out as the whole would."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.padding import MULTIPLE

EDGE = 48
"""Pixels at a tile's border that are not kept of it: half of what neighbours share by `runtime/tiles.py`."""


def border_of_a_tile(crop: int) -> int:
    """Pixels of a crop on each side of the tile that is cut out of its middle: a fifth of it."""
    return crop // 5 // MULTIPLE * MULTIPLE


def wide_enough(crop: int) -> bool:
    """Whether such a tile has pixels further than `EDGE` from its border: from 152 pixels on,
    but for 160."""
    return crop - 2 * border_of_a_tile(crop) > 2 * EDGE


def seam_loss(model: Callable[[Tensor], Tensor], noisy: Tensor, denoised: Tensor, order: torch.memory_format) -> Tensor:
    """Mean absolute difference between a tile from the crops' middle, denoised by itself, and what the crops gave
    there: of the pixels that would be kept of a tile.

    noisy, denoised: (N, C, S, S) crops that are `wide_enough`, and what `model` made of them.
    """
    border = border_of_a_tile(noisy.shape[-1])
    tile, kept = slice(border, -border), slice(border + EDGE, -border - EDGE)
    given = noisy[..., tile, tile].contiguous(memory_format=order)
    alone = model(given).float()[..., EDGE:-EDGE, EDGE:-EDGE]
    return F.l1_loss(alone, denoised[..., kept, kept])
