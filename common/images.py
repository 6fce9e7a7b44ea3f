"""Picture files: reading them whole or not at all, and writing what was read.

Everything goes through bytes in memory: OpenCV's `imread` returns a picture for a JPEG that is cut off in the middle,
its `imdecode` does not. What OpenCV gets wrong without a word about TIFF is refused, or mended, in `common.tiff`.
"""

import contextlib
import os
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
from common.tiff import TruncatedTiffError, mend_tiff, upright

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
_TIFF_METADATA = {700: cv2.IMAGE_METADATA_XMP, 34675: cv2.IMAGE_METADATA_ICCP}

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
        try:
            data, orientation, tags = mend_tiff(data, name)
        except TruncatedTiffError:
            _undecodable(name, kind)
        chunks = tuple((_TIFF_METADATA[code], chunk) for code, chunk in tags.items())
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
    pixels, alpha = _split(upright(decoded, orientation), gray)
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
