"""What the rest of the runtime knows of an engine."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray


class Engine(ABC):
    """A loaded network. `run` may be called from several threads at once."""

    name: str
    """What runs the network and where, for people: "ONNX Runtime 1.31, CPU"."""
    channels: int
    """1, gray, or 3, RGB."""
    size: tuple[int, int] | None
    """The only (height, width) that it takes, or None: all multiples of 8."""

    @abstractmethod
    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise N,C,H,W samples of [0, 1], any N, H and W multiples of 8; the shape stays.

        The output is not clipped. Raises ModelError where the network cannot be run, as when memory runs out.
        """

    def close(self) -> None:  # noqa: B027 - an engine may hold nothing that has to be given back
        """Give back what the engine holds; it is not used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
