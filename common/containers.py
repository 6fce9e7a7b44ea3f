"""What a picture file says of itself before anything of it is decoded: its format, its size, its parts."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from common.directories import DamagedError, Reader

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
    ".bmp": "BMP",
}
"""Lower-case file name ending -> format."""

PNG_START = b"\x89PNG\r\n\x1a\n"
_STARTS = {b"\xff\xd8\xff": "JPEG", PNG_START: "PNG", b"BM": "BMP"}
_STARTS |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame, which has the size
_SCAN = 0xDA
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # of a JPEG's segment, not of filling or coded pixels
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, by colour type."""
_DENSEST = 1032
"""Bytes that one of a deflate stream can stand for."""


@dataclass(frozen=True)
class Header:
    """Pixels as they are stored, and bytes of a sample once it is decoded, 1 or 2."""

    width: int
    height: int
    depth: int = 1


def format_of(data: bytes) -> str | None:
    """JPEG, PNG, TIFF, WebP or BMP by the first bytes; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)


def header_of(kind: str, data: bytes) -> Header | None:
    """The size that a file of that format states; None where it states none, because it is damaged."""
    try:
        header = _READERS[kind](data)
    except (struct.error, IndexError, DamagedError):
        return None
    return header if header and header.width > 0 and header.height > 0 else None


def animated(kind: str, data: bytes) -> bool:
    """Whether a PNG or WebP file holds several frames."""
    if kind == "PNG":
        return any(name == b"acTL" for name, _ in png_chunks(data))
    return kind == "WebP" and data[12:16] == b"VP8X" and bool(data[20:21] and data[20] & 2)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of the segments before the first scan; what lies between them is skipped, as libjpeg does."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:  # filling, or a marker without content
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (_SCAN, 0xD9) or length < 2:
            return
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def jpeg_scans(data: bytes) -> int | None:
    """How many scans there are up to the picture's end, None where that is missing; what phones append, such as a film,
    counts for nothing."""
    position, scans = 2, 0
    while found := _MARKER.search(data, position):
        marker = found[1][0]
        if marker == 0xD9:
            return scans
        scans += marker == _SCAN
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks that are there in full; of the pixels' chunks the content is left out."""
    position = len(PNG_START)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            return
        yield name, b"" if name == b"IDAT" else data[position + 8 : position + 8 + length]
        if name == b"IEND":
            return
        position += 12 + length


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of a WebP file's chunks that are there in full."""
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > len(data):
            return
        yield name, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _jpeg(data: bytes) -> Header | None:
    frame = next((content for marker, content in jpeg_segments(data) if marker in _FRAMES), b"")
    height, width = struct.unpack_from(">HH", frame, 1)
    return Header(width, height)


def _png(data: bytes) -> Header | None:
    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR" or width * height * bits * _PNG_SAMPLES.get(colours, 1) // 8 > _DENSEST * len(data):
        return None
    if all(name != b"IEND" for name, _ in png_chunks(data)):  # OpenCV allocates what a chunk states that is not there
        return None
    return Header(width, height, 2 if bits == 16 else 1)


def _bmp(data: bytes) -> Header | None:
    width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
    return Header(width, abs(height))


def _webp(data: bytes) -> Header | None:
    name = data[12:16]
    if name == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif name == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return Header(width, height)


def _tiff(data: bytes) -> Header | None:
    reader = Reader(data)
    entries, _ = reader.read(reader.first)

    def tag(code: int, default: int = 0) -> int:
        return reader.integers(entries.get(code), default)[0]

    # a tile is decoded whole, however little of it is the picture's
    width, height = max(tag(256), tag(322)), max(tag(257), tag(323))
    return Header(width, height, 2 if tag(258, 1) > 8 else 1) if tag(256) > 0 and tag(257) > 0 else None


_READERS = {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff, "WebP": _webp, "BMP": _bmp}
