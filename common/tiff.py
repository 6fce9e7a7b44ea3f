"""What OpenCV 5 gets wrong in silence about TIFF files: refused here, or mended in the bytes that it will decode.

It returns a picture for a planar file that is cut off; it garbles 16-bit planar files and 16-bit gray with alpha, does
not invert 16-bit white-is-zero, drops 8-bit gray's alpha, gives CMYK an alpha, multiplies 8-bit colours by an
unassociated alpha, and turns 8-bit pictures upright, but not 16-bit ones. The tags are tifffile's to read; decoding
stays OpenCV's, which knows the compressions that tifffile has no decoder for.
"""

import io
import logging
import struct
from typing import Any

import tifffile
from numpy.typing import NDArray

from common.errors import InputError

_ORIENTATION, _EXTRA_SAMPLES, _XMP, _ICC = 274, 338, 700, 34675
_UPRIGHT, _ASSOCIATED = 1, 1

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it complains of is told as an InputError


class TruncatedTiffError(Exception):
    """The file's directories or samples lie beyond its end."""


def mend_tiff(data: bytes, name: str) -> tuple[bytes, int, dict[int, bytes]]:
    """The bytes to decode, the orientation (1 to 8) still to be applied, and the XMP (700) and ICC (34675) tags.

    Raises TruncatedTiffError, and InputError, which names the file `name`, for a kind that would be misread.
    """
    file = io.BytesIO(data)
    try:
        with tifffile.TiffFile(file) as tiff:
            pages = [page.aspage() for page in tiff.pages]
            if not pages:
                raise TruncatedTiffError
            _refuse_misread(pages, len(data), name)
            tags = pages[0].tags
            orientation = int(tags.valueof(_ORIENTATION, _UPRIGHT))
            if orientation != _UPRIGHT:
                tags[_ORIENTATION].overwrite(_UPRIGHT)
            extra = tags.valueof(_EXTRA_SAMPLES, ())
            if any(extra):
                tags[_EXTRA_SAMPLES].overwrite((_ASSOCIATED,) * len(extra))
            chunks = {code: bytes(tags.valueof(code)) for code in (_XMP, _ICC) if code in tags}
    except (tifffile.TiffFileError, struct.error, ValueError, TypeError, IndexError, KeyError) as error:
        raise TruncatedTiffError from error
    return file.getvalue(), orientation if orientation in range(1, 9) else _UPRIGHT, chunks


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply a TIFF orientation: 2 to 4 mirror or turn by 180 degrees, 5 to 8 swap the axes as well."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _refuse_misread(pages: list[tifffile.TiffPage], length: int, name: str) -> None:
    first, *others = pages
    if any(start + count > length for start, count in zip(first.dataoffsets, first.databytecounts, strict=False)):
        raise TruncatedTiffError
    if not all(page.is_reduced for page in others):  # thumbnails of the first are no pages
        raise InputError(f"{name}: expected one picture, found a TIFF of {len(pages)} pages: save each by itself")
    faults = {
        "CMYK": first.photometric == tifffile.PHOTOMETRIC.SEPARATED,
        "gray with alpha": first.samplesperpixel == 2,
        "a planar layout": first.samplesperpixel > 1 and first.planarconfig == tifffile.PLANARCONFIG.SEPARATE,
        "16-bit white-is-zero": first.bitspersample > 8 and first.photometric == tifffile.PHOTOMETRIC.MINISWHITE,
    }
    for fault in (fault for fault, found in faults.items() if found):
        raise InputError(f"{name}: expected an interleaved gray, RGB or RGBA TIFF, found {fault}: save it as PNG")
