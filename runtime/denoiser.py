"""`Denoiser`: pictures as arrays in, denoised pictures out. Pads, cuts into tiles and rounds; an engine does the rest.

with Denoiser("real_color") as denoiser:
    clean = denoiser.denoise(noisy)  # (H, W), (H, W, 3) or (N, H, W, 3); uint8, uint16 or float
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, ModelError
from common.padding import MULTIPLE, pad_to
from runtime.engines import Engine, open_engine
from runtime.engines.base import Images
from runtime.tiles import Tile, Window, choose_side, choose_tile, cut, padded_size

SMALLEST_TILE = 64

T = TypeVar("T", bound=np.generic)

_SCALES = {np.dtype(kind): scale for kind, scale in (("u1", 255), ("u2", 65535), ("f2", 1), ("f4", 1), ("f8", 1))}
_HIGHEST = 16.0  # noisy samples leave [0, 1] a little; samples of [0, 255] are a mistake


class Denoiser:
    """A loaded model that denoises arrays. `denoise` may be called from several threads at once.

    Args:
        engine: the name of a bundled model, a model file or a folder of plans, which is opened here and closed by
            `close`, or an open engine, which stays its owner's.
        tile: side of the square tiles in pixels, a multiple of 8, at least 64. None or 0: chosen by the memory that is
            free, see `side`. An engine that does not take that size gets the nearest that it takes.
        threads: CPU threads of an engine that is opened here; None leaves them to the engine.

    Raises InputError where an argument is out of range, and what `open_engine` raises.
    """

    def __init__(
        self,
        engine: Engine | str | os.PathLike[str],
        *,
        tile: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._tile = check_tile(tile)
        self._owned = not isinstance(engine, Engine)
        self.engine = engine if isinstance(engine, Engine) else open_engine(engine, threads)

    @cached_property
    def side(self) -> int:
        """Of the tiles of pictures that are larger, in pixels: what was asked for, or what the memory that is free when
        it is first wanted allows; then it stays, so that all pictures of a run are cut alike. Engines that state a
        largest size have that instead, unless one was asked for.
        """
        if self._tile:
            return self._tile
        unbounded = any(sizes.most is None for sizes in self.engine.sizes)
        return choose_side(self.engine.pixels_at_once() if unbounded else None)

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
        (result,) = self.denoise_stream([image], strength)
        return result

    def denoise_stream(self, images: Iterable[NDArray[T]], strength: float = 1.0) -> Generator[NDArray[T]]:
        """`denoise` on each of `images` in turn, as on the frames of a video; their sizes and types may differ.

        All their tiles are one stream for the engine, which may ask for the next image before it gives a result (see
        `Engine.stream`): an array must not be changed before its result is there. Close the generator where it is left
        before its end.
        """
        check_strength(strength)
        on_way: deque[tuple[Callable[[Images], None], NDArray[T] | None]] = deque()

        def given() -> Iterator[Images]:
            for image in images:
                for part, keep, finished in self._parts(image, strength):
                    on_way.append((keep, finished))
                    yield part

        # An engine may hold something for what is on its way.
        with contextlib.closing(self.engine.stream(given())) as stream:
            for clean in stream:
                keep, finished = on_way.popleft()
                keep(clean)
                del keep, clean  # they hold the whole image
                if finished is not None:
                    yield finished
                    del finished
        assert not on_way, f"{self.engine.name} gave fewer results than it was given images"

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

    def _parts(
        self, image: NDArray[T], strength: float
    ) -> Iterator[tuple[Images, Callable[[Images], None], NDArray[T] | None]]:
        """What the engine is given of an image, what is done with each result, and with the last the whole result."""
        _check_image(image, self.engine)
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        result = np.empty(image.shape, image.dtype)
        # 8-bit engines take a colour picture's bytes as they are
        as_bytes = image.dtype == np.uint8 and self.engine.io == "uint8" and strength == 1 and image.ndim > 2
        axes = (1, 2) if as_bytes else (2, 3)
        planes, output = (
            array.reshape(-1, *array.shape[-3:]) if as_bytes else _as_planes(array) for array in (image, result)
        )
        size = planes.shape[axes[0]], planes.shape[axes[1]]
        side = self.side
        tile = choose_tile(size, self.engine.sizes, self._tile, side)
        padded = pad_to(planes, padded_size(size, tile), axes)
        batch = max(1, side * side // (tile[0] * tile[1]))
        parts = [
            (slice(first, first + batch), piece) for piece in cut(size, tile) for first in range(0, len(planes), batch)
        ]

        def at(window: Window, images: slice = slice(None)) -> tuple[slice, ...]:
            return (images, *window) if as_bytes else (images, slice(None), *window)

        def keep(images: slice, piece: Tile, clean: Images) -> None:
            kept = clean[at(piece.inner)]
            if not as_bytes:
                kept = self._finished(kept, planes[at(piece.kept, images)], strength)
            output[at(piece.kept, images)] = kept

        for number, (images, piece) in enumerate(parts, 1):
            part = padded[at(piece.given, images)]
            finished = result if number == len(parts) else None
            yield part if as_bytes else self._samples(part), partial(keep, images, piece), finished

    def _samples(self, planes: NDArray[Any]) -> Images:
        """N,C,H,W samples of any type as floats in [0, 1], of as many channels as the network's."""
        noisy = np.divide(planes, _SCALES[planes.dtype], dtype=np.float32)
        return np.repeat(noisy, self.engine.channels, axis=1) if noisy.shape[1] == 1 else noisy

    def _finished(self, clean: Images, noisy: NDArray[T], strength: float) -> NDArray[T]:
        """The network's N,C,H,W output in the type of `noisy`, as many channels, blended by `strength`."""
        scale = _SCALES[noisy.dtype]
        if noisy.shape[1] == 1:
            clean = clean.mean(axis=1, keepdims=True)
        if not np.isfinite(clean).all():
            raise ModelError(f"{self.engine.name}: the network's output is not finite: is the model file damaged?")
        if strength != 1:
            before = np.divide(noisy, scale, dtype=np.float32)
            clean = before + np.float32(strength) * (clean - before)
        clean = np.clip(clean, 0, 1)
        result: NDArray[T] = (clean if scale == 1 else np.rint(clean * scale)).astype(noisy.dtype)
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
    if not isinstance(strength, int | float | np.integer | np.floating) or not 0 <= strength <= 1:
        raise InputError(f"strength: expected 0 (the input) to 1 (denoised), found {strength!r}")


def _check_image(image: NDArray[Any], engine: Engine) -> None:
    if type(image) not in (np.ndarray, np.memmap):
        raise InputError(f"expected a NumPy array, found {type(image).__name__}: np.asarray makes one of many things")
    if image.dtype.newbyteorder("=") not in _SCALES:
        raise InputError(f"expected samples of uint8, uint16 or a float type, found {image.dtype}")
    if image.ndim not in (2, 3, 4) or (image.ndim > 2 and image.shape[-1] != 3):
        raise InputError(f"expected an array of (H, W), (H, W, 3) or (N, H, W, 3), found {image.shape}")
    if image.size == 0:
        raise InputError(f"expected at least one pixel, found an array of {image.shape}")
    if image.ndim > 2 and engine.channels == 1:
        raise InputError(
            "expected a gray picture, because the model is for gray ones, found colour: use a model for colour ones"
        )
    if image.dtype == np.uint16 and engine.io == "uint8":
        raise InputError(
            "expected an 8-bit picture, because the model's images have 8 bits, found 16: use a model exported with "
            "--io float32"
        )
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            raise InputError("expected finite samples, found NaN or infinity")
        if (most := float(np.abs(image).max())) > _HIGHEST:
            raise InputError(f"expected float samples of [0, 1], found {most:g}: divide by 255 or 65535")


def _as_planes(image: NDArray[T]) -> NDArray[T]:
    """An N,C,H,W view of an array that `denoise` takes."""
    return image[None, None] if image.ndim == 2 else np.moveaxis(image.reshape(-1, *image.shape[-3:]), -1, 1)
