"""The one padding of images, for every engine, in training's validation, export's parity check and the runtime."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

MULTIPLE = 8
"""Heights and widths that the network takes are multiples of this: three 2x2 stride-2 convolutions."""


def pad_to_multiple(images: NDArray[T], multiple: int = MULTIPLE) -> NDArray[T]:
    """Pad (..., H, W) right and bottom to multiples of `multiple`; crop with `[..., :H, :W]`."""
    height, width = images.shape[-2:]
    return pad_to(images, (height + -height % multiple, width + -width % multiple))


def pad_to(images: NDArray[T], size: tuple[int, int], axes: tuple[int, int] = (-2, -1)) -> NDArray[T]:
    """Pad right and bottom to `size`, (height, width), by reflection, repeated where the image is small.

    axes: those of height and width. The border sample itself is not repeated; of a single row or column it is all
    there is. An image that has the size is returned as it is.
    """
    widths = [(0, 0)] * images.ndim
    for axis, side in zip(axes, size, strict=True):
        widths[axis] = (0, side - images.shape[axis])
    return np.pad(images, widths, mode="reflect") if any(map(any, widths)) else images
