"""What OpenCV 5 gets wrong in silence about TIFF files: refused here, or mended in the bytes before or after it.

It returns a picture for a planar file that is cut off; it garbles 16-bit planar files and 16-bit gray with alpha, does
not invert 16-bit white-is-zero, takes palettes of 1 bit for black and white, drops 8-bit gray's alpha, gives CMYK an
alpha, multiplies 8-bit colours by an unassociated alpha, takes other colour spaces in 16 bits for RGB, and turns 8-bit
pictures upright, but not 16-bit ones. It writes no metadata, and does not mark an alpha channel as one.
"""

import struct
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from common.directories import (
    BYTE,
    EXIF,
    GPS,
    ORIENTATION,
    RATIONAL,
    SHORT,
    UNDEFINED,
    DamagedError,
    Entry,
    Reader,
    Tags,
    pack,
)
from common.errors import InputError
from common.metadata import Metadata, without_orientation

_EXTRA_SAMPLES, _XMP, _ICC, _IPTC = 338, 700, 34675, 33723
_RESOLUTION = (282, 283)
_RESOLUTION_UNIT, _CENTIMETRE = 296, 3
_UPRIGHT = 1
_ASSOCIATED, _UNASSOCIATED = 1, 2
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_SAMPLES = {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,), _RGB: (3, 4), _PALETTE: (1,), _YCBCR: (3,)}
"""Of a pixel, by colour space (TIFF's PhotometricInterpretation)."""
_MOST_PAGES = 100
"""Thumbnails of one picture that are looked through."""

_ABOUT = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, EXIF, GPS, *range(40091, 40096)}
"""Tags of the first directory that EXIF has too, and that say nothing of how the pixels are stored: description, maker,
model, resolution, software, date, artist, computer, copyright, and what Windows adds."""
_EXIF_START = b"II*\0\x08\0\0\0"


@dataclass(frozen=True)
class Mended:
    """A TIFF file as OpenCV decodes it right, and what is to be done after."""

    data: bytes
    orientation: int
    """1 to 8, still to be applied."""
    premultiplied: bool
    """Colours have been multiplied by alpha."""
    metadata: Metadata
    """For pixels that are upright."""


def mend_tiff(data: bytes, name: str) -> Mended:
    """Raises DamagedError where directories or samples lie beyond the file's end, and InputError, which names the file
    `name`, for a kind that would be misread."""
    mended = bytearray(data)
    reader = Reader(mended)
    tags, following = reader.read(reader.first)
    _refuse_other_pages(reader, following, name)
    _refuse_misread(reader, tags, name)
    _check_samples(reader, tags)
    orientation = reader.integers(tags.get(ORIENTATION), _UPRIGHT)[0]
    extra = reader.integers(tags.get(_EXTRA_SAMPLES))
    metadata = _metadata(reader, tags)
    for code, value in ((ORIENTATION, _UPRIGHT), (_EXTRA_SAMPLES, _ASSOCIATED if any(extra) else 0)):
        _overwrite(mended, reader, tags.get(code), value)
    if orientation not in range(1, 9):
        orientation = _UPRIGHT
    if orientation != _UPRIGHT and "XMP" in metadata:
        metadata["XMP"] = without_orientation(metadata["XMP"])
    return Mended(bytes(mended), orientation, extra[0] == _ASSOCIATED, metadata)


def exif_fits(exif: bytes) -> bool:
    """Whether EXIF data can be read, and so be put into a TIFF file."""
    try:
        Reader(exif).copy(_ABOUT | {ORIENTATION})
    except DamagedError:
        return False
    return True


def put_tags(data: bytes, metadata: Metadata, *, alpha: bool, premultiplied: bool) -> bytes:
    """A TIFF file of OpenCV's with metadata, and its fourth channel marked as alpha.

    A directory that replaces the file's own is added at its end. Offsets within a camera's maker note stay as they
    are. Raises DamagedError where the file would have more than 4 GB.
    """
    if not (metadata or alpha):
        return data
    reader = Reader(data)
    tags: Tags = reader.copy(reader.read(reader.first)[0])
    if "EXIF" in metadata:
        tags |= Reader(metadata["EXIF"]).copy(_ABOUT | {ORIENTATION})
    if "resolution" in metadata and tags.keys().isdisjoint(_RESOLUTION):  # EXIF may have told it
        for code, metre in zip(_RESOLUTION, struct.unpack(">II", metadata["resolution"]), strict=True):
            tags[code] = RATIONAL, struct.pack("<II", metre, 100)
        tags[_RESOLUTION_UNIT] = SHORT, _CENTIMETRE.to_bytes(2, "little")
    if "XMP" in metadata:
        tags[_XMP] = BYTE, metadata["XMP"]
    if "ICC" in metadata:
        tags[_ICC] = UNDEFINED, metadata["ICC"]
    if "IPTC" in metadata:
        tags[_IPTC] = UNDEFINED, metadata["IPTC"]
    if alpha:
        kind = _ASSOCIATED if premultiplied else _UNASSOCIATED
        tags[_EXTRA_SAMPLES] = SHORT, kind.to_bytes(2, "little")
    data += bytes(len(data) % 2)
    return data[:4] + len(data).to_bytes(4, "little") + data[8:] + pack(tags, len(data))


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an orientation of EXIF or TIFF: 2 to 4 mirror or turn by 180 degrees, 5 to 8 swap the axes as well."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _metadata(reader: Reader, tags: dict[int, Entry]) -> Metadata:
    metadata: Metadata = {}
    try:
        about = reader.copy(_ABOUT)
        if about:
            metadata["EXIF"] = _EXIF_START + pack(about, len(_EXIF_START))
    except DamagedError:
        pass  # the pixels may be whole
    if _XMP in tags:
        metadata["XMP"] = reader.raw(tags[_XMP]).rstrip(b"\0")
    if _ICC in tags:
        metadata["ICC"] = reader.raw(tags[_ICC])
    # bytes, though some writers state longs; what starts otherwise is damaged
    if _IPTC in tags and (caption := reader.raw(tags[_IPTC])).startswith(b"\x1c"):
        metadata["IPTC"] = caption
    return metadata


def _refuse_other_pages(reader: Reader, offset: int, name: str) -> None:
    for _ in range(_MOST_PAGES):
        if not offset:
            return
        tags, offset = reader.read(offset)
        if not reader.integers(tags.get(254))[0] & 1:  # thumbnails of the first are no pages
            break
    raise InputError(f"{name}: expected one picture, found a TIFF of several pages: save each by itself")


def _refuse_misread(reader: Reader, tags: dict[int, Entry], name: str) -> None:
    bits = reader.integers(tags.get(258), 1)
    samples, layout = reader.integers(tags.get(277), 1)[0], reader.integers(tags.get(284), 1)[0]
    colours = reader.integers(tags.get(262))[0]
    deep = bits[0] > 8
    faults = {
        "CMYK": colours == _CMYK,
        "gray with alpha": samples == 2,
        "a planar layout": samples > 1 and layout != 1,
        "16-bit white-is-zero": deep and colours == _WHITE_IS_ZERO,
        "a 16-bit palette": deep and colours == _PALETTE,
        f"a palette of {bits[0]} bits": bits[0] not in (4, 8) and colours == _PALETTE,
        f"{bits[0]} bits a sample": 1 < bits[0] < 8 and colours != _PALETTE,
        "16-bit YCbCr": deep and colours == _YCBCR,
        "samples of several depths": len(set(bits)) > 1,
        f"{samples} samples of colour space {colours}": samples not in _SAMPLES.get(colours, ()),
    }
    for fault in (fault for fault, found in faults.items() if found):
        raise InputError(f"{name}: expected an interleaved gray, RGB or RGBA TIFF, found {fault}: save it as PNG")


def _check_samples(reader: Reader, tags: dict[int, Entry]) -> None:
    for offsets, sizes in ((273, 279), (324, 325)):
        if offsets in tags and sizes in tags:
            pairs = zip(reader.integers(tags[offsets]), reader.integers(tags[sizes]), strict=False)
            if any(start + size > len(reader.data) for start, size in pairs):
                raise DamagedError("samples beyond the end")


def _overwrite(data: bytearray, reader: Reader, entry: Entry | None, value: int) -> None:
    """Replace all of a tag's values."""
    if entry is not None:
        count = len(reader.integers(entry))
        one = value.to_bytes(entry.size // count, "little")
        data[entry.offset : entry.offset + entry.size] = (one if reader.order == "<" else one[::-1]) * count
