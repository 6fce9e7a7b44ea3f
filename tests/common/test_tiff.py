"""TIFF files: every kind comes back right, or is refused by its name."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from common.errors import InputError
from common.images import Picture, encode_picture
from tests.common.test_images import ALPHA, RGB, exif, read, saved, tiff


def of_bits(bits: int, data: bytes) -> bytes:
    """A TIFF file of one sample of 8 bits, said to have other ones."""
    was, is_said = (struct.pack("<HHII", 258, 3, 1, depth) for depth in (8, bits))
    assert data.count(was) == 1
    return data.replace(was, is_said)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [8, 16])
def test_tiffs_come_back_upright(tmp_path: Path, orientation: int, depth: int) -> None:
    eight = saved(Image.fromarray(RGB), "TIFF", exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(eight))))
    if depth == 8:
        np.testing.assert_array_equal(read(tmp_path, eight).pixels, expected)
    else:
        deep = tiff(RGB.astype(np.uint16) * 257, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        np.testing.assert_array_equal(read(tmp_path, deep).pixels, expected.astype(np.uint16) * 257)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiffs_alpha_is_not_multiplied_in(tmp_path: Path, kind: str, dtype: Any) -> None:
    image = np.dstack([RGB, ALPHA]).astype(dtype)
    picture = read(tmp_path, tiff(image, photometric="rgb", extrasamples=[kind]))
    np.testing.assert_array_equal(picture.pixels, image[..., :3])
    np.testing.assert_array_equal(picture.alpha, image[..., 3])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_turned_tiff_with_alpha_of_either_byte_order(tmp_path: Path, dtype: Any, order: Any) -> None:
    """Both tags are overwritten before OpenCV sees them, in the file's own order."""
    image = np.dstack([RGB, ALPHA]).astype(dtype)
    options: dict[str, Any] = {"extrasamples": ["unassalpha"], "extratags": [(274, 3, 1, 6, True)]}
    picture = read(tmp_path, tiff(image, photometric="rgb", byteorder=order, **options))
    np.testing.assert_array_equal(picture.pixels, np.rot90(image[..., :3], -1))
    np.testing.assert_array_equal(picture.alpha, np.rot90(image[..., 3], -1))


@pytest.mark.parametrize(
    "options", [{"compression": "zlib"}, {"tile": (32, 32)}, {"bigtiff": True}, {"byteorder": ">"}]
)
def test_kinds_of_tiff(tmp_path: Path, options: dict[str, Any]) -> None:
    data = tiff(RGB, photometric="rgb", **options)
    np.testing.assert_array_equal(read(tmp_path, data).pixels, RGB)
    for part in (0.02, 0.3, 0.9):
        with pytest.raises(InputError, match="is it damaged or cut off"):
            read(tmp_path, data[: int(len(data) * part)])


def test_tiffs_that_would_be_misread_are_refused(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    palette = tiff(ALPHA, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    for data, word in (
        (tiff(RGB.astype(np.float32), photometric="rgb"), "float32"),
        (tiff(RGB.astype(np.int16), photometric="rgb"), "int16"),
        (tiff(planes, photometric="rgb", planarconfig="separate"), "planar"),
        (tiff(ALPHA.astype(np.uint16), photometric="miniswhite"), "white-is-zero"),
        (saved(Image.fromarray(RGB).convert("LA"), "TIFF"), "gray with alpha"),
        (saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "CMYK"),
        (tiff(np.stack([RGB, RGB]), photometric="rgb"), "several pages"),
        (tiff(RGB.astype(np.uint16), photometric="cielab"), "3 samples of colour space 8"),
        (tiff(np.dstack([RGB, RGB])[..., :5], photometric="rgb"), "5 samples"),
        (
            tiff(ALPHA.astype(np.uint16), photometric="palette", colormap=np.zeros((3, 65536), np.uint16)),
            "16-bit palette",
        ),
        (of_bits(2, tiff(ALPHA)), "2 bits a sample"),
        (of_bits(4, tiff(ALPHA)), "4 bits a sample"),
        (of_bits(6, tiff(ALPHA)), "6 bits a sample"),
        (of_bits(1, palette), "a palette of 1 bits"),
        (of_bits(2, palette), "a palette of 2 bits"),
    ):
        with pytest.raises(InputError, match=word):
            read(tmp_path, data)


def test_a_thumbnail_page_is_no_second_picture(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[::4, ::4], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read(tmp_path, file.getvalue()).pixels, RGB)


def test_pages_that_say_they_are_pages_are_no_thumbnails(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(2):
            writer.write(RGB, photometric="rgb", subfiletype=2)
    with pytest.raises(InputError, match="several pages"):
        read(tmp_path, file.getvalue())


def test_a_tiffs_alpha_is_marked_as_one() -> None:
    with tifffile.TiffFile(io.BytesIO(encode_picture(Picture(RGB, ALPHA), ".tif")[0])) as file:
        assert file.pages.first.extrasamples == (2,)
