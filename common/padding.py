"""The one padding of images, for every engine, in training's validation, export's parity check and the runtime."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

MULTIPLE = 8
"""Heights and widths that the network takes are multiples of this: three 2x2 stride-2 convolutions."""


def pad_to_multiple(images: NDArray[T], multiple: int = MULTIPLE) -> NDArray[T]:
    """Pad (..., H, W) right and bottom to multiples of `multiple` by reflection, repeated where the image is small.

    The border sample itself is not repeated; of a single row or column it is all there is. Crop with `[..., :H, :W]`.
    """
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return images
    widths = [(0, 0)] * (images.ndim - 2) + [(0, bottom), (0, right)]
    return np.pad(images, widths, mode="reflect")
