"""OpenCV's decoders, and what they say of a file that they decode all the same."""

import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.chatter import quiet_stderr
from common.directories import DamagedError

_CORRUPT = re.compile(r"Corrupt JPEG data: (?:(\d+) extraneous bytes)?")
_FILLING = 32
"""Bytes that an encoder may leave before the end of a whole JPEG."""


def decode(kind: str, data: bytes) -> NDArray[Any]:
    """The samples of a file of that format as OpenCV gives them: (H, W), or (H, W, 3 or 4) in the order BGRA.

    Raises DamagedError where there are none, or where they are not what was encoded, and MemoryError.
    """
    for alone in (False, True):  # what is heard of several threads' files may be about any of them
        with quiet_stderr(alone=alone) as said:
            # Read-only bytes do for OpenCV, which never writes to what it decodes.
            samples = _decode(np.frombuffer(data, np.uint8))
            sound = samples is not None and _sound(kind, said())
        if sound or samples is None:
            break
    if samples is None or not sound:
        raise DamagedError("no samples, or wrong ones")
    return samples


def _decode(data: NDArray[np.uint8]) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        return None


def _sound(kind: str, said: str) -> bool:
    """Whether what was decoded is what was encoded. libpng and libwebp return nothing where it is not."""
    if kind == "TIFF":
        return "TIFF_Error" not in said  # OpenCV's name for what libtiff calls an error
    counts = [match[1] for match in _CORRUPT.finditer(said)] if kind == "JPEG" else []
    return all(count and int(count) <= _FILLING for count in counts)
