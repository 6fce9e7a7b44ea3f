"""Picture files: reading them whole or not at all, and writing what was read.

Everything goes through bytes in memory: OpenCV's `imread` returns a picture for a JPEG that is cut off in the middle,
its `imdecode` does not. What OpenCV gets wrong without a word about TIFF is refused, or mended, in `_mend_tiff`.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, OutputError
from common.files import write_whole

Metadata = tuple[tuple[int, bytes], ...]
PathLike = str | os.PathLike[str]

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
    ".bmp": "BMP",
}
_NAMES = "JPEG, PNG, TIFF, WebP or BMP"
_METADATA_NAMES = {
    cv2.IMAGE_METADATA_EXIF: "EXIF",
    cv2.IMAGE_METADATA_XMP: "XMP",
    cv2.IMAGE_METADATA_ICCP: "ICC",
    cv2.IMAGE_METADATA_CICP: "CICP",
}

IMAGE_SUFFIXES = frozenset(_FORMATS)
"""Lower-case file name endings, with the dot, that are read and written."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture. `pixels` and `alpha` have one type, uint8 or uint16, and use its whole range."""

    pixels: NDArray[Any]
    """(H, W) gray or (H, W, 3) RGB."""
    alpha: NDArray[Any] | None = None
    """(H, W), 0 is transparent; None where the file has none."""
    metadata: Metadata = ()
    """(cv2.IMAGE_METADATA_*, chunk) pairs. Pixels lie as stored: an EXIF orientation in here is still to be applied,
    by whoever shows the picture. (A TIFF's orientation is applied, because it is not part of its metadata.)"""


def read_picture(path: PathLike) -> Picture:
    """Read a JPEG, PNG, TIFF, WebP or BMP file, whatever its name says.

    Raises InputError where the file is missing, unreadable, cut off, no picture, an animation, or of a kind that
    is neither 8- nor 16-bit gray or RGB.
    """
    path = Path(path)
    data, name = _read_bytes(path), str(path)
    kind, orientation, chunks = _format(data), 1, ()  # type: str | None, int, Metadata
    if kind is None:
        raise InputError(f"{name}: expected an image ({_NAMES}), found a file of another kind")
    if kind == "TIFF":
        data, orientation, chunks = _mend_tiff(data, name)
    elif _animated(kind, data):
        raise InputError(f"{name}: expected a still picture, found an animated {kind}")
    try:
        with _without_chatter():
            # Read-only bytes do for OpenCV, which never writes to what it decodes.
            decoded, types, blobs = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise InputError(
                f"{name}: expected at most 2^30 pixels and 2^20 a side, found more: scale it down"
            ) from error
        raise InputError(f"{name}: expected an image ({_NAMES}), found a damaged {kind} file ({error.err})") from error
    if decoded is None:
        _undecodable(name, kind)
    if decoded.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name}: expected 8- or 16-bit samples, found {decoded.dtype}: save it as a 16-bit file")
    gray = kind == "PNG" and data[25] in (0, 4)  # OpenCV turns gray with alpha into colour
    pixels, alpha = _split(_upright(decoded, orientation), gray)
    chunks += tuple((int(type_), blob.tobytes()) for type_, blob in zip(types, blobs, strict=True))
    return Picture(pixels, alpha, tuple(chunk for chunk in chunks if not _describes_cmyk(*chunk)))


def rgb8(picture: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB: gray is repeated, 16 bits are rounded to 8, alpha is dropped."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.uint32) + 128) // 257  # 65535 = 257 * 255
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return pixels.astype(np.uint8)


def encode_picture(picture: Picture, suffix: str, quality: int = 95) -> tuple[bytes, tuple[str, ...]]:
    """Encode for a file name ending such as ".png"; `quality`, 1 to 100, is that of JPEG and WebP.

    Returns the file's bytes and the names of the metadata ("EXIF", "ICC", ...) which they do not hold.
    Raises OutputError where the format cannot hold the picture's depth, alpha or size.
    """
    check_encodable(suffix, picture.pixels.dtype, picture.alpha is not None)
    kind = _FORMATS[suffix.lower()]
    image = picture.pixels
    if picture.alpha is not None:
        colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        image = np.dstack([colour[..., ::-1], picture.alpha])
    elif image.ndim == 3:
        image = image[..., ::-1]
    flags = {"JPEG": cv2.IMWRITE_JPEG_QUALITY, "WebP": cv2.IMWRITE_WEBP_QUALITY}
    parameters = [flags[kind], quality] if kind in flags else []
    wanted = picture.metadata if kind in ("JPEG", "PNG", "WebP") else ()
    # JPEG's EXIF ends at 64 KB: a picture without its metadata is better than none.
    for chunks in (wanted, ()) if wanted else ((),):
        data = _encode(np.ascontiguousarray(image), suffix.lower(), chunks, parameters)
        if data is not None:
            lost = () if chunks else tuple(_METADATA_NAMES.get(type_, "other") for type_, _ in picture.metadata)
            return data, lost
    height, width = image.shape[:2]
    raise OutputError(f"a picture of {width}x{height} cannot be written as {kind}: write a PNG or TIFF")


def check_encodable(suffix: str, dtype: np.dtype[Any], alpha: bool) -> None:
    """Raise OutputError where files ending in `suffix` cannot hold samples of `dtype`, or an alpha channel."""
    kind = _FORMATS.get(suffix.lower())
    if kind is None:
        raise OutputError(f"expected a file name ending in {', '.join(_FORMATS)}, found {suffix or 'no ending'!r}")
    if dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        raise OutputError(f"{kind} holds 8 bits, the picture has 16: write a PNG or TIFF")
    if alpha and kind == "JPEG":
        raise OutputError("JPEG holds no transparency, the picture has some: write a PNG, TIFF, WebP or BMP")


def write_picture(path: PathLike, picture: Picture, *, overwrite: bool, quality: int = 95) -> tuple[str, ...]:
    """Write the file whole or not at all, in the format of its name; see `encode_picture`.

    Returns the names of the metadata that the format does not hold. Raises OutputError.
    """
    data, lost = encode_picture(picture, Path(path).suffix, quality)
    write_whole(path, data, overwrite=overwrite)
    return lost


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path}: expected an image file, found a folder")
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise InputError(f"{path}: expected an image file, found a device or pipe")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: expected an image file, found nothing of that name") from None
    except OSError as error:
        raise InputError(f"{path}: expected an image file, cannot read it: {error.strerror}") from error
    if not data:
        raise InputError(f"{path}: expected an image ({_NAMES}), found an empty file")
    return data


def _format(data: bytes) -> str | None:
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP"}
    starts |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for start, kind in starts.items() if data.startswith(start)), None)


def _animated(kind: str, data: bytes) -> bool:
    if kind == "PNG":
        return b"acTL" in data[: max(data.find(b"IDAT"), 0)]
    return kind == "WebP" and data[12:16] == b"VP8X" and bool(data[20:21] and data[20] & 2)


def _undecodable(name: str, kind: str) -> NoReturn:
    raise InputError(
        f"{name}: expected an image ({_NAMES}), found a {kind} file that cannot be decoded: is it complete?"
    )


def _split(decoded: NDArray[Any], gray: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if decoded.ndim == 2:
        return np.ascontiguousarray(decoded), None
    alpha = np.ascontiguousarray(decoded[..., 3]) if decoded.shape[2] == 4 else None
    return np.ascontiguousarray(decoded[..., 0] if gray else decoded[..., 2::-1]), alpha


def _describes_cmyk(type_: int, chunk: bytes) -> bool:
    return type_ == cv2.IMAGE_METADATA_ICCP and chunk[16:20] == b"CMYK"  # OpenCV has turned the pixels into RGB


def _encode(image: NDArray[Any], suffix: str, metadata: Metadata, parameters: list[int]) -> bytes | None:
    types = [type_ for type_, _ in metadata]
    blobs = [np.frombuffer(chunk, np.uint8) for _, chunk in metadata]
    with _without_chatter():
        try:
            done, data = cv2.imencodeWithMetadata(suffix, image, types, blobs, parameters)
        except cv2.error:
            return None
    return data.tobytes() if done else None


_chatter = threading.Lock()


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Send the process's stderr nowhere for a moment: libpng and libjpeg print there, and have no switch in OpenCV."""
    with _chatter:
        try:
            kept = os.dup(2)
        except OSError:  # the process has no stderr
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


# --- TIFF ------------------------------------------------------------------------------------------------------------

_Tag = tuple[int, str, tuple[int, ...]]  # where its first value lies, the struct code of its values, the values
_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q", 18: "Q"}
_SUBFILE, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _EXTRA = 254, 258, 262, 274, 277, 284, 338
_PLACES = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_XMP, _ICC = 700, 34675
_READ = {_SUBFILE, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _EXTRA, _XMP, _ICC}.union(*_PLACES)
_MINISWHITE, _SEPARATED = 0, 5


def _mend_tiff(data: bytes, name: str) -> tuple[bytes, int, Metadata]:
    """What OpenCV 5 does wrong in silence: refused, or mended in the bytes that it will read.

    It returns a picture for a planar file that is cut off; it garbles 16-bit planar files and 16-bit gray with alpha,
    does not invert 16-bit white-is-zero, drops 8-bit gray's alpha, gives CMYK an alpha, multiplies 8-bit colours
    by an unassociated alpha, and turns 8-bit pictures upright, but not 16-bit ones.
    Returns the bytes to decode, the orientation (1 to 8) which is still to be applied, and ICC and XMP chunks.
    """
    try:
        order, (first, *others) = _tiff_directories(data)
    except (struct.error, ValueError):
        _undecodable(name, "TIFF")

    def value(tag: int, default: int) -> int:
        return first[tag][2][0] if tag in first and first[tag][2] else default

    for offsets, counts in _PLACES:
        if offsets in first and counts in first:
            ends = map(sum, zip(first[offsets][2], first[counts][2], strict=False))
            if max(ends, default=0) > len(data):
                _undecodable(name, "TIFF")
    if any(
        not sum(tags[_SUBFILE][2][:1] if _SUBFILE in tags else ()) & 1 for tags in others
    ):  # 1: a thumbnail of the first
        raise InputError(f"{name}: expected one picture, found a TIFF of {len(others) + 1} pages: save each by itself")
    samples, deep = value(_SAMPLES, 1), value(_BITS, 1) > 8
    faults = {
        "CMYK": value(_PHOTOMETRIC, 1) == _SEPARATED,
        "gray with alpha": samples == 2,
        "a planar layout": samples > 1 and value(_PLANAR, 1) == 2,
        "16-bit white-is-zero": deep and value(_PHOTOMETRIC, 1) == _MINISWHITE,
    }
    for fault in (fault for fault, found in faults.items() if found):
        raise InputError(f"{name}: expected an interleaved gray, RGB or RGBA TIFF, found {fault}: save it as PNG")
    mended = {tag: 1 for tag in (_ORIENTATION, _EXTRA) if value(tag, 1) > 1}  # 1: upright; associated alpha
    if mended:
        patched = bytearray(data)
        for tag, replacement in mended.items():
            struct.pack_into(order + first[tag][1], patched, first[tag][0], replacement)
        data = bytes(patched)
    types = {_XMP: cv2.IMAGE_METADATA_XMP, _ICC: cv2.IMAGE_METADATA_ICCP}
    chunks = ((type_, bytes(first[tag][2])) for tag, type_ in types.items() if tag in first and first[tag][1] == "B")
    orientation = value(_ORIENTATION, 1)
    return data, orientation if orientation in range(1, 9) else 1, tuple(chunks)


def _tiff_directories(data: bytes) -> tuple[str, list[dict[int, _Tag]]]:
    """The byte order, "<" or ">", and the tags of every page. Raises struct.error or ValueError where cut off."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    word, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    width = struct.calcsize(word)
    offset = struct.unpack_from(order + word, data, 8 if big else 4)[0]
    directories: list[dict[int, _Tag]] = []
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise ValueError("the directories form a circle")
        seen.add(offset)
        tags: dict[int, _Tag] = {}
        at = offset + struct.calcsize(count)
        for _ in range(struct.unpack_from(order + count, data, offset)[0]):
            tag, type_, number = struct.unpack_from(f"{order}HH{word}", data, at)
            at += entry
            code = _TIFF_TYPES.get(type_)
            # One value of each tag, so that a hostile file cannot have its bytes read a million times.
            if code is None or tag in tags or tag not in (_READ if not directories else (_SUBFILE,)):
                continue
            place = at - width
            if number * struct.calcsize(code) > width:
                place = struct.unpack_from(order + word, data, place)[0]
            tags[tag] = (place, code, struct.unpack_from(f"{order}{number}{code}", data, place))
        directories.append(tags)
        offset = struct.unpack_from(order + word, data, at)[0]
    if not directories:
        raise ValueError("no directory")
    return order, directories


def _upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply a TIFF orientation: 2 to 4 mirror or turn by 180 degrees, 5 to 8 swap the axes as well."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
