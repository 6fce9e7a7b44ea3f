"""How a picture is cut: what the network is given at once, and which of its pixels are kept. Sizes are (height, width).

A tile that is not the whole picture has borders inside it, where the network lacks what lies beyond: neighbouring
tiles share pixels, and each keeps those that are nearer to its own middle. Nothing is blended.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from common.padding import MULTIPLE
from runtime.engines.base import Size, SizeRange

SIDES = (1024, 512, 256)
"""Heights and widths of tiles that are chosen by the memory that is free. Few, and far from each other: a picture is to
come out the same when the machine is a little fuller."""

TILE = 512
"""The side where nothing is known of the memory."""

OVERLAP = 96
"""Pixels that neighbouring tiles share. The seam lies in their middle, so every pixel kept is 48 or more from a border
that is not the picture's. The network sees further, but hardly: with the bundled models tiles of 256 changed 99.99 % of
the samples by at most 2/255, and PSNR by 0.012 dB, on a photo with noise of sigma 50 and of 70. With 64 it would be
2.6/255, with 128 1.6/255, by `blind_color` (tests/runtime/test_seams.py). In tiles of 512 these are 1.5, 1.3 and 1.8
times a large picture's pixels to compute."""

Span = tuple[int, int, int]  # where a tile starts; of it, what is kept: from, to (exclusive)
Window = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True)
class Tile:
    """What the network is given of the padded picture, and of the picture what it is kept for."""

    given: Window
    kept: Window
    inner: Window
    """`kept`, counted from the tile's own corner."""


def choose_side(pixels: int | None) -> int:
    """The largest of SIDES whose square has no more than `pixels`, or else the least; TILE where that is None."""
    if pixels is None:
        return TILE
    return next((side for side in SIDES if side * side <= pixels), SIDES[-1])


def choose_tile(size: Size, ranges: Sequence[SizeRange], side: int | None, automatic: int = TILE) -> Size:
    """The one size of all tiles of a picture of `size`; where it is larger than the picture, that is to be padded.

    ranges: what the engine takes. side: the user's wish. None: the whole picture where it has no more pixels than a
    square of side `automatic` or the engine states a largest size that holds it, and else as few tiles as that square
    or that size allow, none larger than it needs to be. An engine that takes no tile of that side gets the nearest that
    it takes. Of several ranges the one is chosen with which the fewest pixels are computed.
    """
    whole = (_multiple(size[0]), _multiple(size[1]))

    def within(sizes: SizeRange) -> Size:
        limit = side or (automatic if sizes.most is None and math.prod(whole) > automatic**2 else math.inf)
        found = []
        for low, high, length in zip(sizes.least, sizes.most or (math.inf, math.inf), whole, strict=True):
            most = int(max(low, min(limit, high, length)))
            if side is None and most < length:  # as many tiles, but no larger than they need to be
                common = shared(most)
                count = len(spans(length, most, common))
                most = max(low, _multiple(-(-(length + (count - 1) * common) // count)))
            found.append(most)
        return found[0], found[1]

    def cost(tile: Size) -> tuple[int, int]:
        padded = padded_size(size, tile)
        count = math.prod(len(spans(padded[axis], tile[axis], shared(tile[axis]))) for axis in (0, 1))
        return count * math.prod(tile), count

    return min((within(sizes) for sizes in ranges), key=cost)


def padded_size(size: Size, tile: Size) -> Size:
    """What a picture is padded to: a multiple of 8, and no less than a tile."""
    return max(_multiple(size[0]), tile[0]), max(_multiple(size[1]), tile[1])


def shared(side: int) -> int:
    """Pixels that neighbouring tiles of this side share: `OVERLAP`, but at most half of them."""
    return min(OVERLAP, side // 2 // MULTIPLE * MULTIPLE)


def cut(size: Size, tile: Size) -> Iterator[Tile]:
    """The tiles of a picture of `size`, row by row; they keep every pixel of it once."""
    axes = []
    for length, padded, side in zip(size, padded_size(size, tile), tile, strict=True):
        found = []
        for start, first, last in spans(padded, side, shared(side)):
            kept = slice(first, min(last, length))
            if kept.start < kept.stop:  # else it is nothing but padding
                found.append((slice(start, start + side), kept, slice(kept.start - start, kept.stop - start)))
        axes.append(found)
    for rows, columns in product(*axes):
        yield Tile(*zip(rows, columns, strict=True))


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles along one axis: all are of size `tile`, start at multiples of 8, and keep what no other one keeps.

    The network is equivariant to shifts of 8 pixels only: the last tile, which is moved back to end with the
    picture, starts at a multiple of 8 because `length`, `tile` and `overlap` are.
    """
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    seams = [0, *((before + tile + after) // 2 for before, after in pairwise(starts)), length]
    return list(zip(starts, seams[:-1], seams[1:], strict=True))


def _multiple(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE
