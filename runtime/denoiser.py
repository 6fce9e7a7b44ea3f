"""`Denoiser`: pictures as arrays in, denoised pictures out. Pads, cuts into tiles and rounds; an engine does the rest.

with Denoiser("assets/blind_color.onnx") as denoiser:
    clean = denoiser.denoise(noisy)  # (H, W), (H, W, 3) or (N, H, W, 3); uint8, uint16 or float
"""

import os
from itertools import pairwise
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, ModelError
from common.padding import MULTIPLE, pad_to_multiple
from runtime.engines import Engine, open_engine

WORKING_PIXELS = 512 * 512
"""Pixels that go through the network at once unless a tile size is given. In ONNX Runtime in fp32 SADNet was measured
to need 6 KB a pixel, 12 KB once the allocator has settled: 3 GB at most, on any machine, and the output depends on
no machine. Larger pieces were measured to be no faster on a CPU."""

TILE = 512
"""Height and width of the tiles of a larger picture."""

OVERLAP = 128
"""Pixels that neighbouring tiles share. The seam lies in their middle, so every pixel kept is 64 or more from a border
that is not the picture's. The network sees further, but hardly: with the bundled model tiles of 256 changed the sample
photo by at most 0.2/255 at this overlap, by 2/255 at 64 and by 4/255 at 32."""

SMALLEST_TILE = 64

T = TypeVar("T", bound=np.generic)
Span = tuple[int, int, int]  # where a tile starts; of it, what is kept: from, to (exclusive)

_SCALES = {np.dtype(kind): scale for kind, scale in (("u1", 255), ("u2", 65535), ("f2", 1), ("f4", 1), ("f8", 1))}
_HIGHEST = 16.0  # noisy samples leave [0, 1] a little; samples of [0, 255] are a mistake


class Denoiser:
    """A loaded model that denoises arrays. `denoise` may be called from several threads at once.

    Args:
        engine: a model file, which is opened here and closed by `close`, or an open engine, which stays its owner's.
        tile: side of the square tiles in pixels, a multiple of 8, at least 64. None or 0: the whole picture where
            it has no more than `WORKING_PIXELS`, tiles of `TILE` where it has. Ignored by an engine of one size.
        overlap: pixels that neighbouring tiles share, a multiple of 8; None: `OVERLAP`, or half a small tile.
        threads: CPU threads of an engine that is opened here; None leaves them to the engine.

    Raises InputError where an argument is out of range, and what `open_engine` raises.
    """

    def __init__(
        self,
        engine: Engine | str | os.PathLike[str],
        *,
        tile: int | None = None,
        overlap: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._tile = check_tile(tile)
        if overlap is not None and (overlap < 0 or overlap % MULTIPLE or overlap >= (self._tile or TILE)):
            raise InputError(
                f"overlap: expected a multiple of {MULTIPLE} from 0 to less than the tile's {self._tile or TILE} "
                f"pixels, found {overlap}"
            )
        self._overlap = overlap
        self._owned = not isinstance(engine, Engine)
        self.engine = engine if isinstance(engine, Engine) else open_engine(engine, threads)

    def denoise(self, image: NDArray[T], strength: float = 1.0) -> NDArray[T]:
        """Denoise one picture or a batch; the result has the shape and type of `image`, which stays as it is.

        Args:
            image: (H, W) gray, (H, W, 3) RGB or (N, H, W, 3) RGB pictures of one size, any size; uint8, uint16, or
                floats of [0, 1] (noise may leave that range). Gray goes through a colour model as
                three equal channels, whose mean is taken after.
            strength: 0 to 1, how much of the result is the network's; the rest is `image`.

        Integers are rounded, floats clipped to [0, 1]. Raises InputError for another shape, type or range, samples
        that are not finite, or colour on a gray model; ModelError where the network cannot be run.
        """
        check_strength(strength)
        _check_image(image, self.engine.channels)
        result = np.empty(image.shape, image.dtype)
        planes, output = _as_planes(image), _as_planes(result)
        size, (height, width) = self.engine.size, planes.shape[-2:]
        padded = pad_to_multiple(planes) if size is None else _pad_to_least(planes, size)
        tile = self._tile_size(padded.shape[-2], padded.shape[-1])
        batch = max(1, WORKING_PIXELS // (tile[0] * tile[1]))
        for top, first_row, last_row in _spans(padded.shape[-2], tile[0], self._shared(tile[0])):
            for left, first_column, last_column in _spans(padded.shape[-1], tile[1], self._shared(tile[1])):
                rows = slice(first_row, min(last_row, height))
                columns = slice(first_column, min(last_column, width))
                inner = (
                    ...,
                    slice(rows.start - top, rows.stop - top),
                    slice(columns.start - left, columns.stop - left),
                )
                if rows.start >= rows.stop or columns.start >= columns.stop:
                    continue  # nothing but padding
                for start in range(0, len(padded), batch):
                    piece = padded[start : start + batch, :, top : top + tile[0], left : left + tile[1]]
                    output[start : start + batch, :, rows, columns] = self._denoise_piece(piece, strength, inner)
        return result

    def close(self) -> None:
        """Close the engine, if it was opened here."""
        if self._owned:
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tile_size(self, height: int, width: int) -> tuple[int, int]:
        """The one size of all tiles of a padded picture."""
        if self.engine.size is not None:
            return self.engine.size
        if self._tile is None and height * width <= WORKING_PIXELS:
            return height, width
        side = self._tile or TILE
        return min(side, height), min(side, width)

    def _shared(self, side: int) -> int:
        most = side // 2 // MULTIPLE * MULTIPLE
        return min(OVERLAP, most) if self._overlap is None else min(self._overlap, most)

    def _denoise_piece(self, piece: NDArray[T], strength: float, inner: tuple[Any, ...]) -> NDArray[T]:
        """Run N,C,H,W samples of any type; returns those at `inner`, in the same type."""
        scale = _SCALES[piece.dtype]
        noisy = np.divide(piece, scale, dtype=np.float32)
        gray = noisy.shape[1] == 1
        fed = np.repeat(noisy, self.engine.channels, axis=1) if gray else noisy
        clean = self.engine.run(np.ascontiguousarray(fed))[inner]
        if gray:
            clean = clean.mean(axis=1, keepdims=True)
        if not np.isfinite(clean).all():
            raise ModelError(f"{self.engine.name}: the network's output is not finite: is the model file damaged?")
        if strength != 1:
            clean = noisy[inner] + np.float32(strength) * (clean - noisy[inner])
        clean = np.clip(clean, 0, 1)
        result: NDArray[T] = (clean if scale == 1 else np.rint(clean * scale)).astype(piece.dtype)
        return result


def check_tile(tile: int | None) -> int | None:
    """A tile size as `Denoiser` takes it, None for automatic. Raises InputError."""
    if not tile:
        return None
    if tile < SMALLEST_TILE or tile % MULTIPLE:
        raise InputError(
            f"tile: expected 0 (automatic) or a multiple of {MULTIPLE} from {SMALLEST_TILE} pixels up, found {tile}"
        )
    return tile


def check_strength(strength: float) -> None:
    """Raises InputError where `strength` is not in 0 to 1."""
    if not 0 <= strength <= 1:
        raise InputError(f"strength: expected 0 (the input) to 1 (denoised), found {strength}")


def _check_image(image: NDArray[Any], channels: int) -> None:
    if image.dtype not in _SCALES:
        raise InputError(f"expected samples of uint8, uint16 or a float type, found {image.dtype}")
    if image.ndim not in (2, 3, 4) or (image.ndim > 2 and image.shape[-1] != 3):
        raise InputError(f"expected an array of (H, W), (H, W, 3) or (N, H, W, 3), found {image.shape}")
    if image.size == 0:
        raise InputError(f"expected at least one pixel, found an array of {image.shape}")
    if image.ndim > 2 and channels == 1:
        raise InputError("expected a gray picture, because the model is for gray ones, found colour")
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            raise InputError("expected finite samples, found NaN or infinity")
        if (most := float(np.abs(image).max())) > _HIGHEST:
            raise InputError(f"expected float samples of [0, 1], found {most:g}: divide by 255 or 65535")


def _as_planes(image: NDArray[T]) -> NDArray[T]:
    """An N,C,H,W view of an array that `denoise` takes."""
    return image[None, None] if image.ndim == 2 else np.moveaxis(image.reshape(-1, *image.shape[-3:]), -1, 1)


def _pad_to_least(planes: NDArray[T], size: tuple[int, int]) -> NDArray[T]:
    """Pad as `pad_to_multiple`, and each axis to the engine's `size` where it is smaller."""
    height, width = planes.shape[-2:]
    tall = pad_to_multiple(planes, size[0] if height < size[0] else MULTIPLE)[..., :width]
    return pad_to_multiple(tall, size[1] if width < size[1] else MULTIPLE)[..., : tall.shape[-2], :]


def _spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles along one axis: all are of size `tile`, start at multiples of 8, and keep what no other one keeps.

    The network is equivariant to shifts of 8 pixels only: the last tile, which is moved back to end with the
    picture, starts at a multiple of 8 because `length`, `tile` and `overlap` are.
    """
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    seams = [0, *((before + tile + after) // 2 for before, after in pairwise(starts)), length]
    return list(zip(starts, seams[:-1], seams[1:], strict=True))
