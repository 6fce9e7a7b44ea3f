"""Picture files: reading them whole or not at all, and writing what was read.

Everything goes through bytes in memory: OpenCV's `imread` returns a picture for a JPEG that is cut off in the middle,
its `imdecode` does not. What OpenCV gets wrong without a word about TIFF is refused, or mended, in `common.tiff`;
metadata is `common.metadata`'s. Calls from several threads run beside each other.
"""

import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray

from common.chatter import quiet_stderr
from common.containers import FORMATS, animated, format_of, header_of, jpeg_scans, png_chunks
from common.decoding import decode
from common.directories import DamagedError
from common.errors import InputError, OutputError
from common.files import ending, write_whole
from common.metadata import Metadata, orientation, png_chunk, put_metadata, read_metadata, storable, without_orientation
from common.tiff import exif_fits, mend_tiff, put_tags, upright

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = frozenset(FORMATS)
"""Lower-case file name endings, with the dot, that are read and written."""

MOST_PIXELS = 2**30
"""OpenCV's own limit."""
_MOST_SIDE = 2**20
_MOST_SIDE_WRITTEN = {"JPEG": 65_500, "WebP": 16_383, "PNG": 1_000_000}
"""The formats' own limits, as their libraries have them."""
_MOST_SCANS = 100
"""Of a progressive JPEG: each costs a pass over all pixels, and takes as little as 30 bytes of the file."""
_ENDINGS = {kind: suffix for suffix, kind in reversed(FORMATS.items())}
"""Of each format the first, which OpenCV knows."""
_NAMES = "JPEG, PNG, TIFF, WebP or BMP"


@dataclass(frozen=True)
class Picture:
    """A decoded picture. `pixels` and `alpha` have one type, uint8 or uint16, and use its whole range."""

    pixels: NDArray[Any]
    """(H, W) gray or (H, W, 3) RGB."""
    alpha: NDArray[Any] | None = None
    """(H, W), 0 is transparent; None where the file has none."""
    metadata: Metadata = field(default_factory=dict)
    """Pixels lie as stored: an EXIF orientation in here is still to be applied, by whoever shows the picture. (A TIFF's
    is applied, and not in here.)"""
    premultiplied: bool = False
    """`pixels` have been multiplied by `alpha`, as in TIFF files with an associated one."""

    @property
    def transparent(self) -> bool:
        """Whether something is hidden; many programs give all pictures an alpha."""
        return self.alpha is not None and bool(self.alpha.min() < np.iinfo(self.alpha.dtype).max)

    @property
    def gray(self) -> bool:
        """It shows no colour: it has one channel, or three that are equal."""

        def equal(pixels: NDArray[Any]) -> bool:
            return bool((pixels[..., 1:] == pixels[..., :1]).all())

        few = self.pixels[::16, ::16]  # as a rule these tell, at once
        return self.pixels.ndim == 2 or (equal(few) and equal(self.pixels))


def read_picture(path: PathLike, *, most_pixels: int = MOST_PIXELS) -> Picture:
    """Read a JPEG, PNG, TIFF, WebP or BMP file, whatever its name says.

    Raises InputError where the file is missing, unreadable, cut off, no picture, an animation, larger than
    `most_pixels`, or of a kind that is neither 8- nor 16-bit gray or RGB.
    """
    return decode_picture(read_file(path, most_pixels=most_pixels), str(path), most_pixels=most_pixels)


def read_file(path: PathLike, *, most_pixels: int = MOST_PIXELS) -> bytes:
    """The bytes of a picture file; of another kind of file, the first few. Raises InputError where there are none, or
    far more than pictures of `most_pixels` have."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: expected an image file, found a folder")
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise InputError(f"{path}: expected an image file, found a device or pipe")
        with open(path, "rb") as file:
            data = file.read(32)
            if format_of(data):  # else a file of any size need not be read
                most = min(2**26 + 16 * most_pixels, 2**31 - 1)  # twice what they take uncompressed; OpenCV's most
                if (size := os.fstat(file.fileno()).st_size) > most:
                    raise InputError(f"{path}: expected at most {most >> 20} MB, found {size >> 20} MB")
                file.seek(0)
                data = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: expected an image file, found nothing of that name") from None
    except OSError as error:
        raise InputError(f"{path}: expected an image file, cannot read it: {error.strerror}") from error
    except MemoryError as error:
        raise InputError(f"{path}: expected a file that fits into memory, found a larger one") from error
    if not data:
        raise InputError(f"{path}: expected an image ({_NAMES}), found an empty file")
    return data


def decoded_size(data: bytes) -> int:
    """Bytes of the pixels and alpha in a picture file, at most; 0 where it does not state its size."""
    kind = format_of(data)
    header = header_of(kind, data) if kind else None
    return 4 * header.depth * header.width * header.height if header else 0


def decode_picture(data: bytes, name: str, *, most_pixels: int = MOST_PIXELS) -> Picture:
    """A picture of a file's bytes; see `read_picture`. `name` is for what is raised."""
    kind = format_of(data)
    if kind is None:
        raise InputError(f"{name}: expected an image ({_NAMES}), found a file of another kind")
    _check_header(kind, data, name, most_pixels)
    turned, premultiplied = 1, False
    if kind == "TIFF":
        try:
            mended = mend_tiff(data, name)
        except DamagedError:
            _undecodable(name, kind)
        data, turned, premultiplied, metadata = mended.data, mended.orientation, mended.premultiplied, mended.metadata
    elif animated(kind, data):
        raise InputError(f"{name}: expected a still picture, found an animated {kind}")
    else:
        metadata = read_metadata(kind, data)
    try:
        decoded = decode(kind, data)
    except DamagedError:
        _undecodable(name, kind)
    except MemoryError as error:
        raise InputError(f"{name}: expected a picture that fits into memory, found a larger one") from error
    if decoded.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name}: expected 8- or 16-bit samples, found {decoded.dtype}: save it as a 16-bit file")
    gray = kind == "PNG" and data[25] in (0, 4)  # OpenCV turns gray with alpha into colour
    pixels, alpha = _split(upright(decoded, turned), gray)
    if gray and alpha is None:
        alpha = _alpha_of_gray(data, pixels)
    if kind == "BMP" and not _bmp_has_alpha(data):
        alpha = None
    return Picture(pixels, alpha, metadata, premultiplied)


def _bmp_has_alpha(data: bytes) -> bool:
    """Masks of three colours alone stand behind headers of 40 and 52 bytes, and longer ones may state that alpha has no
    bits; OpenCV takes the fourth byte for it."""
    header, compression, mask = (int.from_bytes(data[at : at + 4], "little") for at in (14, 30, 66))
    return compression != 3 or (header >= 56 and mask != 0)


def rgb8(picture: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB: gray is repeated, 16 bits are rounded to 8, alpha is dropped."""
    pixels = _rounded(picture.pixels)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def eight_bits(picture: Picture) -> Picture:
    """The picture with 16-bit pixels and alpha rounded to 8 bits."""
    alpha = None if picture.alpha is None else _rounded(picture.alpha)
    return replace(picture, pixels=_rounded(picture.pixels), alpha=alpha)


def encode_picture(
    picture: Picture, suffix: str, quality: int = 95, *, consume: bool = False
) -> tuple[bytes, tuple[str, ...]]:
    """Encode for a file name ending such as ".png"; `quality`, 1 to 100, is that of JPEG and WebP. At 100 a WebP is
    lossless, a JPEG is not.

    `consume`: the picture is not needed any more, and its pixels may be changed, which saves a copy of them.

    Returns the file's bytes and the names of the metadata ("EXIF", "ICC", ...) which they do not hold; where the
    orientation is lost with them, the pixels are turned upright. Raises OutputError where the format cannot hold the
    picture's depth, alpha or size.
    """
    height, width = picture.pixels.shape[:2]
    check_encodable(suffix, picture.pixels.dtype, picture.transparent, (height, width))
    kind = FORMATS[suffix.lower()]
    if kind == "JPEG":
        picture = replace(picture, alpha=None)  # which hides nothing
    gray = picture.pixels.ndim == 2 and kind != "WebP"
    kept = storable(kind, picture.metadata, colour=not gray)
    if kind == "TIFF" and not exif_fits(kept.get("EXIF", b"")):
        kept.pop("EXIF", None)
    turned = orientation(picture.metadata) if "EXIF" not in kept else 1
    if turned != 1 and "XMP" in kept:
        kept["XMP"] = without_orientation(kept["XMP"])
    pixels = upright(picture.pixels, turned)
    alpha = None if picture.alpha is None else upright(picture.alpha, turned)
    if alpha is not None and picture.premultiplied and kind != "TIFF":
        pixels = _unmultiplied(pixels, alpha)
    if alpha is not None and gray and kind == "PNG":
        data = _gray_alpha_png(pixels, alpha)
    else:
        data = _encode(pixels, alpha, kind, quality, consume)
    try:
        if kind == "TIFF":
            data = put_tags(data, kept, alpha=alpha is not None, premultiplied=picture.premultiplied)
        else:
            data = put_metadata(kind, data, kept)
    except DamagedError:
        _unwritable(pixels, kind)
    # sRGB is what pixels are taken for where a file says nothing
    return data, tuple(name for name in picture.metadata if name not in kept and name != "sRGB")


def check_encodable(suffix: str, dtype: np.dtype[Any], transparent: bool, size: tuple[int, int] = (1, 1)) -> None:
    """Raise OutputError where files ending in `suffix` cannot hold samples of `dtype`, transparency, or as many
    rows and columns as `size`."""
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise OutputError(f"expected a file name ending in {', '.join(FORMATS)}, found {ending(suffix)}")
    if dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        raise OutputError(f"{kind} holds 8 bits, the picture has 16: write a PNG or TIFF, or round it (--depth 8)")
    if transparent and kind == "JPEG":
        raise OutputError("JPEG holds no transparency, the picture has some: write a PNG, TIFF, WebP or BMP")
    if max(size) > (most := _MOST_SIDE_WRITTEN.get(kind, _MOST_SIDE)):
        height, width = size
        advice = "scale it down" if kind == "TIFF" else "write a TIFF"
        raise OutputError(f"{kind} holds {most} pixels a side, the picture is {width}x{height}: {advice}")


def write_picture(
    path: PathLike, picture: Picture, *, overwrite: bool, quality: int = 95, consume: bool = False
) -> tuple[str, ...]:
    """Write the file whole or not at all, in the format of its name; see `encode_picture`.

    Returns the names of the metadata that the format does not hold. Raises OutputError.
    """
    data, lost = encode_picture(picture, Path(path).suffix, quality, consume=consume)
    write_whole(path, data, overwrite=overwrite)
    return lost


def _check_header(kind: str, data: bytes, name: str, most_pixels: int) -> None:
    """Refuse what would take its time and memory before it turned out to be damaged or too large."""
    header = header_of(kind, data)
    if header is None:
        _undecodable(name, kind)
    width, height = header.width, header.height
    if max(width, height) > _MOST_SIDE or width * height > MOST_PIXELS:
        raise InputError(f"{name}: expected at most 2^30 pixels and 2^20 a side, found {width}x{height}: scale it down")
    if width * height > most_pixels:
        raise InputError(
            f"{name}: expected at most {most_pixels / 1e6:g} megapixels, found {width * height / 1e6:.1f} "
            f"({width}x{height}): raise --max-megapixels if that is its true size"
        )
    scans = jpeg_scans(data) if kind == "JPEG" else 1
    if scans is None:
        _undecodable(name, kind)
    if scans > _MOST_SCANS:
        raise InputError(f"{name}: expected a JPEG of at most {_MOST_SCANS} scans, found more: save it anew")


def _undecodable(name: str, kind: str) -> NoReturn:
    raise InputError(
        f"{name}: expected an image ({_NAMES}), found a {kind} file that cannot be decoded whole: "
        "is it damaged or cut off?"
    )


def _unwritable(pixels: NDArray[Any], kind: str) -> NoReturn:
    height, width = pixels.shape[:2]
    raise OutputError(f"a picture of {width}x{height} cannot be written as {kind}: write a PNG or TIFF")


def _alpha_of_gray(data: bytes, pixels: NDArray[Any]) -> NDArray[Any] | None:
    """Of a gray PNG that names a transparent value, which OpenCV leaves out."""
    named = dict(png_chunks(data)).get(b"tRNS", b"")
    if len(named) != 2:
        return None
    most, bits = np.iinfo(pixels.dtype).max, data[24]
    transparent = int.from_bytes(named, "big") % 2**bits * (most // (2**bits - 1))  # higher bits have no meaning
    return np.where(pixels == transparent, 0, most).astype(pixels.dtype)


def _split(decoded: NDArray[Any], gray: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """OpenCV's BGR or BGRA as (pixels, alpha)."""
    decoded = np.ascontiguousarray(decoded)
    if decoded.ndim == 2:
        return decoded, None
    alpha = np.ascontiguousarray(decoded[..., 3]) if decoded.shape[2] == 4 else None
    if gray:
        return np.ascontiguousarray(decoded[..., 0]), alpha
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB if alpha is None else cv2.COLOR_BGRA2RGB)), alpha


def _encode(pixels: NDArray[Any], alpha: NDArray[Any] | None, kind: str, quality: int, consume: bool) -> bytes:
    image: Any = np.ascontiguousarray(pixels)
    if alpha is not None:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGRA if image.ndim == 3 else cv2.COLOR_GRAY2BGRA)
        image[..., 3] = alpha
    elif image.ndim == 3 and consume and image.flags.writeable:
        red = image[..., 0].copy()
        image[..., 0] = image[..., 2]
        image[..., 2] = red
    elif image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        with quiet_stderr():
            done, data = cv2.imencode(_ENDINGS[kind], image, _options(kind, quality))
    except cv2.error:
        done = False
    if not done:
        _unwritable(pixels, kind)
    del image  # of 100 megapixels each copy counts
    return data.tobytes()


def _options(kind: str, quality: int) -> list[int]:
    """OpenCV's. JPEG keeps the colours' whole size: OpenCV's half would cost 4 dB of what was denoised."""
    if kind == "JPEG":
        return [
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
    if kind == "WebP":
        return [cv2.IMWRITE_WEBP_QUALITY, quality if quality < 100 else 101]  # above 100 OpenCV loses nothing
    return []


def _gray_alpha_png(gray: NDArray[Any], alpha: NDArray[Any]) -> bytes:
    """OpenCV writes none, and would make three channels of one."""
    height, width = gray.shape
    bits = 8 * gray.itemsize
    rows = np.stack([gray, alpha], axis=-1).astype(gray.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    filtered = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # each row less the one above: filter 2
    pixels = np.insert(filtered, 0, 2, axis=1).tobytes()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((bits, 4, 0, 0, 0))
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in parts)


def _rounded(samples: NDArray[Any]) -> NDArray[np.uint8]:
    if samples.dtype == np.uint16:
        samples = samples // 257 + (samples % 257 > 128)  # 65535 = 257 * 255
    return samples.astype(np.uint8)


def _unmultiplied(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Colours as they were before they were multiplied by alpha; those of transparent pixels stay."""
    most = np.iinfo(pixels.dtype).max
    weight = (alpha if pixels.ndim == 2 else alpha[..., None]).astype(np.float32) / np.float32(most)
    colours = np.divide(pixels, weight, out=pixels.astype(np.float32), where=weight > 0)
    return np.asarray(np.clip(np.rint(colours), 0, most), pixels.dtype)
