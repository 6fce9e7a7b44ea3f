"""What the rest of the runtime knows of an engine."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from common.padding import MULTIPLE

Images = NDArray[Any]
"""N,C,H,W float32 in [0, 1], or N,H,W,C uint8; C is 1, gray, or 3, RGB."""
Io = Literal["float32", "float16", "uint8"]
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class SizeRange:
    """Sizes from `least` to `most`, axis by axis, all multiples of 8; `most` None: without an end."""

    least: Size = (MULTIPLE, MULTIPLE)
    most: Size | None = None

    def __contains__(self, size: Size) -> bool:
        above = all(side >= low for side, low in zip(size, self.least, strict=True))
        return above and (self.most is None or all(s <= high for s, high in zip(size, self.most, strict=True)))


class Engine(ABC):
    """A loaded network. It may be used from several threads at once."""

    name: str
    """What runs the network and where, for people: "ONNX Runtime 1.31, CPU"."""
    channels: int
    """1, gray, or 3, RGB."""
    sizes: tuple[SizeRange, ...] = (SizeRange(),)
    """What it takes; always multiples of 8."""
    details: Mapping[str, Any] = MappingProxyType({})
    """What the exporter wrote about the model, as `config`, the network's; empty where nothing is known."""
    io: Io = "float32"
    """Type of the images that the network itself takes and gives; what `run` is given is brought into it."""

    def run(self, images: Images) -> Images:
        """Denoise N images, any N; shape and kind (float N,C,H,W, or bytes N,H,W,C) stay. Floats are not clipped.

        Bytes cost no conversion where `io` is uint8. Floats that such an engine is given are clipped and rounded to
        bytes first. Raises InputError for a size that is in none of `sizes`, ModelError where the network cannot be
        run, as when memory runs out.
        """
        (result,) = self.stream([images])
        return result

    def stream(self, batches: Iterable[Images]) -> Generator[Images]:
        """`run` on each of `batches` in turn.

        An engine with a device of its own takes the next batch before it gives a result, so that the transfers and the
        work of successive batches overlap. Close the generator where it is left before its end.
        """
        kinds: deque[np.dtype[Any]] = deque()

        def brought() -> Iterator[Images]:
            for images in batches:
                kinds.append(images.dtype)
                yield to_io(images, self.io)

        for result in self._stream(brought()):
            yield from_io(result, kinds.popleft())

    def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
        """`stream` on images of type `io`, uint8 ones N,H,W,C and others N,C,H,W."""
        return map(self._run, batches)

    @abstractmethod
    def _run(self, images: Images) -> Images:
        """`run` on images of type `io`."""

    def pixels_at_once(self) -> int | None:
        """Pixels that there is memory for at once, by what is free now, with some to spare for the pictures themselves.

        None: nothing is known of it; or what `sizes` allow has its memory already, as with plans.
        """
        return None

    def seconds_on_device(self, images: Images, repeat: int) -> Sequence[float] | None:
        """Of `repeat` runs on images of either kind, brought to the device first; after warm-up, by the device's clock.

        None where the engine has no device of its own.
        """
        return None

    def close(self) -> None:  # noqa: B027 - an engine may hold nothing that has to be given back
        """Give back what the engine holds; it is not used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def size_of(images: Images) -> Size:
    """(height, width) of images of either kind."""
    height, width = images.shape[1:3] if images.dtype == np.uint8 else images.shape[2:4]
    return height, width


def to_io(images: Images, io: Io) -> Images:
    """Images of either kind as an engine of type `io` takes them, contiguous."""
    is_bytes = images.dtype == np.uint8
    if io == "uint8":
        if not is_bytes:
            images = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    elif is_bytes:
        images = np.divide(images.transpose(0, 3, 1, 2), 255, dtype=np.float32)
    return np.ascontiguousarray(images, dtype=io)


def from_io(images: Images, kind: np.dtype[Any]) -> Images:
    """The inverse of `to_io`: `kind` is the type that the images came in."""
    if kind == np.uint8:
        if images.dtype == np.uint8:
            return images
        return np.rint(np.clip(images, 0, 1) * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
    if images.dtype == np.uint8:
        return np.divide(images.transpose(0, 3, 1, 2), 255, dtype=np.float32)
    return images.astype(np.float32, copy=False)
