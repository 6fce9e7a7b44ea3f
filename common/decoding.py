"""OpenCV's decoders, and what they say of a file that they decode all the same."""

import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.chatter import quiet_stderr
from common.directories import DamagedError

_CORRUPT = re.compile(r"Corrupt JPEG data: (?:(\d+) extraneous bytes before marker (0x\w\w))?")
_TIFF_ERROR = re.compile(r"TIFF_Error (?!_?TIFFVSetField|TIFFFetchNormalTag|TIFFReadDirectory)")
"""OpenCV's name for what libtiff calls an error, but for those of a tag, on which the samples do not hang."""
_BEHIND_PIXELS = {"0xd9", "0xda", "0xc4", *(f"0xd{n}" for n in range(8))}
"""Markers that come behind coded pixels; what lies before others is none of them."""
_FILLING = 32
"""Bytes that an encoder may leave before the end of a whole JPEG."""
_ZEROS = 512
"""The same of zeros, up to the next sector of a disk."""
_OS2_HEADER = 12
"""Bytes of a BMP's oldest header, behind which OpenCV takes all colours for gray unless it is asked for them."""


def decode(kind: str, data: bytes) -> NDArray[Any]:
    """The samples of a file of that format as OpenCV gives them: (H, W), or (H, W, 3 or 4) in the order BGRA.

    Raises DamagedError where there are none, or where they are not what was encoded, and MemoryError.
    """
    for alone in (False, True):  # what is heard of several threads' files may be about any of them
        with quiet_stderr(alone=alone) as said:
            # Read-only bytes do for OpenCV, which never writes to what it decodes.
            samples = _decode(np.frombuffer(data, np.uint8), kind == "BMP" and data[14] == _OS2_HEADER)
            sound = samples is not None and _sound(kind, said(), data)
        if sound or samples is None:
            break
    if samples is None or not sound:
        raise DamagedError("no samples, or wrong ones")
    return samples


def _decode(data: NDArray[np.uint8], colour: bool) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(data, cv2.IMREAD_COLOR if colour else cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        return None


def _sound(kind: str, said: str, data: bytes) -> bool:
    """Whether what was decoded is what was encoded. libpng and libwebp return nothing where it is not."""
    if kind == "TIFF" and _TIFF_ERROR.search(said):
        return False
    found = _CORRUPT.finditer(said) if kind in ("JPEG", "TIFF") else ()
    return all(match[1] and _harmless(int(match[1]), match[2], data) for match in found)


def _harmless(count: int, marker: str, data: bytes) -> bool:
    if count <= _FILLING or marker not in _BEHIND_PIXELS:
        return True
    last = data[: data.rfind(b"\xff\xd9")][-count:]
    return marker == "0xd9" and count <= _ZEROS and not last.strip(b"\0")
