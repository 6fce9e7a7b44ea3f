"""EXIF, XMP, ICC profile (and PNG's CICP): taken from a picture file's bytes, and put into those that a codec has made.

OpenCV 5 does this by itself, but not so that other programs find it: it takes a JPEG's XMP with the segment's name
before it and a PNG's with a NUL behind it, writes XMP into a PNG as Latin-1 text, refuses profiles above 64 KB for
JPEG, and has nothing for TIFF. TIFF files are `common.tiff`'s.
"""

import re
import struct
import zlib
from collections import defaultdict
from typing import Literal

from common.containers import header_of, jpeg_segments, png_chunks, riff_chunks
from common.directories import ORIENTATION, DamagedError, Reader

Name = Literal[
    "EXIF",
    "XMP",
    "extended XMP",
    "ICC",
    "CICP",
    "IPTC",
    "comment",
    "text",
    "gamma",
    "sRGB",
    "resolution",
    "CMYK profile",
    "further pictures",
]
Metadata = dict[Name, bytes]
"""EXIF as a TIFF header and directories, XMP as a packet in UTF-8, an ICC profile (one of CMYK apart: the pixels are
RGB by then), CICP's four bytes; resolution as two big-endian numbers of pixels a metre; as they lie in the file, a
JPEG's IPTC, comment and what of its XMP has no room in one segment, a TIFF's IPTC, a PNG's text and gamma (or, where
that is the usual one, sRGB: every other format means it without a word). What no format is given is there to be named:
a profile of CMYK, the directory of a JPEG's further pictures."""

_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_FURTHER_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_PNG_XMP = b"XML:com.adobe.xmp"
_SEGMENT = 65533  # bytes of content in a JPEG segment
_MOST = 2**26
"""Bytes that a compressed profile or text may have once it is not."""
_HELD_BY: dict[Name, tuple[str, ...]] = {
    "CICP": ("PNG",),
    "text": ("PNG",),
    "gamma": ("PNG",),
    "sRGB": ("PNG",),
    "comment": ("JPEG",),
    "extended XMP": ("JPEG",),
    "resolution": ("JPEG", "PNG", "TIFF"),
    "CMYK profile": (),
    "further pictures": (),
}
_APART: dict[int, Name] = {0xED: "IPTC", 0xFE: "comment"}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_USUAL = {
    b"gAMA": (45455).to_bytes(4, "big"),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
"""sRGB's, which are taken where none are told."""
_INCHES = 10000 / 254
"""In a metre."""
_WEBP_FLAGS = {"ICC": 0x20, "EXIF": 0x08, "XMP": 0x04}


def read_metadata(kind: str, data: bytes) -> Metadata:
    """What a JPEG, PNG or WebP file holds; damaged parts are left out."""
    try:
        found = {"JPEG": _from_jpeg, "PNG": _from_png, "WebP": _from_webp}[kind](data) if kind != "BMP" else {}
    except (struct.error, IndexError):
        return {}
    if found.get("ICC", b"")[16:20] == b"CMYK":  # they are decoded to RGB
        found["CMYK profile"] = found.pop("ICC")
    return {name: chunk for name, chunk in found.items() if chunk}


def storable(kind: str, metadata: Metadata, colour: bool) -> Metadata:
    """Those that a file of this format can hold. colour: whether the pixels are; profiles are for one or the other."""

    def fits(name: Name, chunk: bytes) -> bool:
        if name == "IPTC":  # within a segment of Photoshop's, or bare
            return kind == ("JPEG" if chunk.startswith(b"\xff") else "TIFF")
        if name in _HELD_BY:
            return kind in _HELD_BY[name]
        if name == "ICC" and (chunk[16:20] == b"GRAY") == colour and (colour or kind == "PNG"):
            return False  # a profile for gray beside colours, or in a PNG the other way round
        if kind == "JPEG":
            most = {"EXIF": _SEGMENT - len(_EXIF), "XMP": _SEGMENT - len(_XMP), "ICC": 255 * (_SEGMENT - 14)}
            return len(chunk) <= most[name]
        return kind != "BMP"

    return {name: chunk for name, chunk in metadata.items() if fits(name, chunk)}


def put_metadata(kind: str, data: bytes, metadata: Metadata) -> bytes:
    """A JPEG, PNG or WebP file without metadata, with it; what `storable` has left."""
    if not metadata:
        return data
    return {"JPEG": _into_jpeg, "PNG": _into_png, "WebP": _into_webp}[kind](data, metadata)


def orientation(metadata: Metadata) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 where there is none."""
    try:
        reader = Reader(metadata.get("EXIF", b""))
        found = reader.integers(reader.read(reader.first)[0].get(ORIENTATION), 1)[0]
    except DamagedError:
        return 1
    return found if found in range(1, 9) else 1


def without_orientation(xmp: bytes) -> bytes:
    """An XMP packet for pixels that have been turned upright; its length stays."""
    return re.sub(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]", rb"\g<1>1", xmp)


def _from_jpeg(data: bytes) -> Metadata:
    found: Metadata = {}
    profile: dict[int, bytes] = {}
    apart: defaultdict[Name, bytearray] = defaultdict(bytearray)  # a file may have a million of them
    for marker, content in jpeg_segments(data):
        if marker == 0xE1 and content.startswith(_EXIF):
            found.setdefault("EXIF", content[len(_EXIF) :])
        elif marker == 0xE1 and content.startswith(_XMP):
            found.setdefault("XMP", content[len(_XMP) :])
        elif marker == 0xE1 and content.startswith(_FURTHER_XMP):
            apart["extended XMP"] += _segment(marker, content)
        elif marker == 0xE2 and content.startswith(_ICC) and len(content) > 14:
            profile[content[12]] = content[14:]
            if len(profile) == content[13]:  # all parts are there
                found["ICC"] = b"".join(part for _, part in sorted(profile.items()))
        elif marker == 0xE2 and content.startswith(b"MPF\0"):  # their directory: a gain map's, a second lens's
            found["further pictures"] = content
        elif marker in _APART:
            apart[_APART[marker]] += _segment(marker, content)
        elif marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 12 and content[7] in (1, 2):
            scale = _INCHES if content[7] == 1 else 100
            found["resolution"] = struct.pack(">II", *(round(n * scale) for n in struct.unpack_from(">HH", content, 8)))
    return found | {name: bytes(segments) for name, segments in apart.items()}


def _into_jpeg(data: bytes, metadata: Metadata) -> bytes:
    parts = [(0xE1, start + metadata[name]) for name, start in (("EXIF", _EXIF), ("XMP", _XMP)) if name in metadata]
    step = _SEGMENT - 14
    profile = [metadata["ICC"][at : at + step] for at in range(0, len(metadata.get("ICC", b"")), step)]
    parts += [(0xE2, _ICC + bytes((i, len(profile))) + part) for i, part in enumerate(profile, start=1)]
    segments = b"".join(_segment(marker, part) for marker, part in parts)
    for name in (*_APART.values(), "extended XMP"):
        segments += metadata.get(name, b"")
    # JFIF's own segment comes first
    after = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    first = data[:after]
    if "resolution" in metadata and after >= 20:
        inches = (min(max(round(n / _INCHES), 1), 65535) for n in struct.unpack(">II", metadata["resolution"]))
        first = first[:13] + struct.pack(">BHH", 1, *inches) + first[18:]
    return first + segments + data[after:]


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _from_png(data: bytes) -> Metadata:
    found: Metadata = {}
    text = bytearray()
    colours: dict[bytes, bytes] = {}
    for chunk, content in png_chunks(data):
        word, _, rest = content.partition(b"\0")
        if chunk == b"eXIf":
            found["EXIF"] = content.removeprefix(_EXIF)
        elif chunk == b"cICP":
            found["CICP"] = content
        elif chunk == b"iCCP":
            found["ICC"] = _inflated(rest[1:])
        elif word == _PNG_XMP and chunk in (b"iTXt", b"tEXt"):  # OpenCV writes the second
            if chunk == b"iTXt":
                compressed = rest[:1] == b"\1"
                *_, rest = rest[2:].split(b"\0", 2)  # behind the language and the translated keyword
                rest = _inflated(rest) if compressed else rest
            found["XMP"] = rest.rstrip(b"\0")
        elif chunk in _TEXTS:
            text += png_chunk(chunk, content)
        elif chunk in (b"gAMA", b"cHRM", b"sRGB"):
            colours.setdefault(chunk, content)
        elif chunk == b"pHYs" and content[8:] == b"\1":  # else it states no more than the pixels' shape
            found["resolution"] = content[:8]
    usual = b"sRGB" in colours or colours.items() <= _USUAL.items()
    found["sRGB" if usual else "gamma"] = b"".join(png_chunk(*colour) for colour in colours.items())
    return found | {"text": bytes(text)}


def _into_png(data: bytes, metadata: Metadata) -> bytes:
    chunks = b""
    if "ICC" in metadata:
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata["ICC"]))
    if "CICP" in metadata:
        chunks += png_chunk(b"cICP", metadata["CICP"])
    if "EXIF" in metadata:
        chunks += png_chunk(b"eXIf", metadata["EXIF"])
    if "XMP" in metadata:
        chunks += png_chunk(b"iTXt", _PNG_XMP + bytes(5) + metadata["XMP"])
    if "resolution" in metadata:
        chunks += png_chunk(b"pHYs", metadata["resolution"] + b"\1")
    for name in ("gamma", "sRGB", "text"):  # the first two have to come before the pixels
        chunks += metadata.get(name, b"")
    header = 33  # signature and IHDR
    return data[:header] + chunks + data[header:]


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk as it lies in a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _from_webp(data: bytes) -> Metadata:
    chunks = dict(riff_chunks(data))
    exif, xmp, icc = (chunks.get(name, b"") for name in (b"EXIF", b"XMP ", b"ICCP"))
    return {"EXIF": exif.removeprefix(_EXIF), "XMP": xmp, "ICC": icc}


def _into_webp(data: bytes, metadata: Metadata) -> bytes:
    chunks = dict(riff_chunks(data))
    extended = bytearray(chunks.pop(b"VP8X", b""))
    if not extended:  # OpenCV's lossless files, and its lossy ones without alpha, have none
        size = header_of("WebP", data)
        if size is None:
            raise DamagedError
        extended = bytearray(4) + (size.width - 1).to_bytes(3, "little") + (size.height - 1).to_bytes(3, "little")
        extended[0] = chunks.get(b"VP8L", bytes(5))[4] & 0x10  # alpha, at the same bit
    for kept in metadata:
        extended[0] |= _WEBP_FLAGS[kept]
    before = {b"VP8X": bytes(extended), b"ICCP": metadata.get("ICC", b"")}
    after = {b"EXIF": metadata.get("EXIF", b""), b"XMP ": metadata.get("XMP", b"")}
    body = b"WEBP"
    for name, content in (before | chunks | after).items():
        if content:
            body += struct.pack("<4sI", name, len(content)) + content + bytes(len(content) % 2)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _inflated(data: bytes) -> bytes:
    """Decompressed; nothing where it is damaged, or larger than anything of use."""
    try:
        inflater = zlib.decompressobj()
        result = inflater.decompress(data, _MOST)
    except zlib.error:
        return b""
    return result if inflater.eof else b""
