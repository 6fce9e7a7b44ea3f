"""Pictures of every format come back as they were, and damaged files never come back at all."""

import io
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageCms

from common.errors import InputError, OutputError
from common.images import (
    IMAGE_SUFFIXES,
    Picture,
    decoded_size,
    eight_bits,
    encode_picture,
    read_picture,
    rgb8,
    write_picture,
)

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]


def photo(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """Smooth with some detail, so that a JPEG of it is close."""
    small = np.random.default_rng(seed).random((6, 8, *shape[2:]))
    big = cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC).reshape(shape)
    return np.asarray(np.rint(np.clip(big, 0, 1) * np.iinfo(dtype).max).astype(dtype))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(image: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


def read(folder: Path, data: bytes) -> Picture:
    (folder / "x").write_bytes(data)
    return read_picture(folder / "x")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = orientation, "Maker"
    return tags


RGB = photo(60, 80, 3)
ALPHA = photo(60, 80, seed=1)


@settings(max_examples=40, deadline=None)
@given(
    suffix=st.sampled_from([".png", ".PNG", ".tif", ".tiff", ".bmp"]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    colour=st.booleans(),
    has_alpha=st.booleans(),
    consume=st.booleans(),
    data=st.data(),
)
def test_lossless_formats_return_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    dtype: Any,
    height: int,
    width: int,
    colour: bool,
    has_alpha: bool,
    consume: bool,
    data: st.DataObject,
) -> None:
    assume(not (suffix == ".bmp" and dtype == np.uint16) and (colour or not has_alpha))
    pixels = data.draw(hnp.arrays(dtype, (height, width, 3) if colour else (height, width)))
    alpha = data.draw(hnp.arrays(dtype, (height, width))) if has_alpha else None
    path = tmp_path_factory.mktemp("p") / f"x{suffix}"
    given_away = pixels.copy()
    assert write_picture(path, Picture(given_away, alpha), overwrite=False, consume=consume) == ()
    assert consume or np.array_equal(given_away, pixels)
    again = read_picture(path)
    assert again.pixels.dtype == dtype
    np.testing.assert_array_equal(again.pixels, pixels)
    assert (again.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(again.alpha, alpha)


@pytest.mark.parametrize(
    ("header", "mask", "alpha"),
    [
        (40, True, False),
        (52, True, False),
        (56, True, True),
        (108, True, True),
        (56, False, False),
        (124, False, False),
    ],
)
def test_a_bmp_has_alpha_where_its_header_has_a_mask_for_it(
    header: int, mask: bool, alpha: bool, tmp_path: Path
) -> None:
    """32 bits a pixel, of which a shorter header, or one that says so, leaves 8 unused, as screenshots do."""
    pixels = np.dstack([photo(9, 8, 3), np.full((9, 8), 128 if alpha else 0, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000 if mask else 0)
    fields = struct.pack("<IiiHHIIiiII", header, 8, 9, 1, 32, 3, pixels.nbytes, 2835, 2835, 0, 0)
    head = (fields + masks).ljust(header, b"\0")[: max(52, header)]
    file = struct.pack("<2sIHHI", b"BM", 14 + len(head) + pixels.nbytes, 0, 0, 14 + len(head)) + head
    found = read(tmp_path, file + pixels[::-1].tobytes())
    assert np.array_equal(found.pixels, pixels[..., 2::-1])
    assert (found.alpha is not None) == alpha
    assert found.alpha is None or (found.alpha == 128).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_are_close_and_quality_counts(tmp_path: Path, suffix: str) -> None:
    fine, _ = encode_picture(Picture(RGB), suffix, quality=100)
    coarse, _ = encode_picture(Picture(RGB), suffix, quality=20)
    assert len(coarse) < len(fine)
    assert np.abs(read(tmp_path, fine).pixels.astype(int) - RGB).mean() < 3


def test_webp_keeps_alpha_exactly_and_jpeg_keeps_gray(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tmp_path, encode_picture(Picture(RGB, ALPHA), ".webp")[0]).alpha, ALPHA)
    assert read(tmp_path, encode_picture(Picture(ALPHA), ".jpg")[0]).pixels.shape == ALPHA.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_png_with_alpha_stays_gray(tmp_path: Path, dtype: Any) -> None:
    gray, alpha = photo(60, 80, dtype=dtype), photo(60, 80, dtype=dtype, seed=1)
    data, lost = encode_picture(Picture(gray, alpha, {"ICC": GRAY_PROFILE}), ".png")
    assert (data[25], lost) == (4, ())  # PNG's colour type of gray with alpha
    picture = read(tmp_path, data)
    np.testing.assert_array_equal(picture.pixels, gray)
    np.testing.assert_array_equal(picture.alpha, alpha)
    if dtype == np.uint8:
        np.testing.assert_array_equal(Image.open(io.BytesIO(data)), np.dstack([gray, alpha]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_multiplied_alpha_stays_or_is_divided_out(tmp_path: Path, dtype: Any) -> None:
    most = np.iinfo(dtype).max
    straight, alpha = photo(60, 80, 3, dtype=dtype), np.maximum(photo(60, 80, dtype=dtype, seed=1), most // 4)
    multiplied = np.rint(straight * (alpha[..., None] / most)).astype(dtype)
    source = tiff(np.dstack([multiplied, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    picture = read(tmp_path, source)
    again, _ = encode_picture(picture, ".tif")
    with tifffile.TiffFile(io.BytesIO(again)) as file:
        assert file.pages.first.extrasamples == (1,)
    np.testing.assert_array_equal(read(tmp_path, again).pixels, multiplied)
    png = read(tmp_path, encode_picture(picture, ".png")[0])
    np.testing.assert_array_equal(png.alpha, alpha)
    assert np.abs(png.pixels.astype(int) - straight).max() <= 2  # an error of 1/2 over an alpha of 1/4


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, _ = encode_picture(Picture(RGB), suffix)
    for length in {*(int(len(data) * part) for part in np.linspace(0, 0.99, 25)), len(data) - 1}:
        with pytest.raises(InputError, match="expected an image"):
            read(tmp_path, data[:length])
    assert capfd.readouterr().err == ""


@settings(max_examples=150, deadline=None)
@given(
    suffix=st.sampled_from(sorted(IMAGE_SUFFIXES)),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 7)), min_size=1, max_size=20),
)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(encode_picture(Picture(RGB[:20, :20]), suffix)[0])
    for position, bit in flips:
        data[position % len(data)] ^= 1 << bit
    try:
        picture = read(tmp_path_factory.mktemp("d"), bytes(data))
    except InputError:
        return
    assert picture.pixels.dtype in (np.uint8, np.uint16)


def test_progressive_jpegs_are_refused_where_cut(tmp_path: Path) -> None:
    data = saved(Image.fromarray(RGB), "JPEG", progressive=True)
    read(tmp_path, data)
    with pytest.raises(InputError, match="JPEG file that cannot be decoded"):
        read(tmp_path, data[: len(data) * 9 // 10])


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (
        ("missing.png", "found nothing of that name"),
        ("folder.png", "found a folder"),
        ("empty.png", "found an empty file"),
        ("text.png", "found a file of another kind"),
        ("pipe.png", "found a device or pipe"),
    ):
        with pytest.raises(InputError, match=words):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    with pytest.raises(InputError, match="animated"):
        read(tmp_path, saved(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_sizes_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {suffix: encode_picture(Picture(RGB), suffix)[0] for suffix in sorted(IMAGE_SUFFIXES)}
    files["lossless.webp"] = saved(Image.fromarray(RGB), "WEBP", lossless=True)
    files["extended.webp"] = encode_picture(Picture(RGB, ALPHA), ".webp")[0]
    files["big.tif"] = tiff(RGB, photometric="rgb", bigtiff=True)
    for data in files.values():
        assert read_picture_of(tmp_path, data, 60 * 80).pixels.shape == RGB.shape
    monkeypatch.setattr(cv2, "imdecode", None)
    for name, data in files.items():
        with pytest.raises(InputError, match=r"at most 0.004799 megapixels, found 0.0 \(80x60\)"):
            read_picture_of(tmp_path, data, 60 * 80 - 1)
        assert decoded_size(data) == 4 * 60 * 80, name
    deep = encode_picture(Picture(RGB.astype(np.uint16)), ".png")[0]
    assert decoded_size(deep) == 8 * 60 * 80
    assert decoded_size(b"hello") == 0


def read_picture_of(folder: Path, data: bytes, most_pixels: int) -> Picture:
    (folder / "x").write_bytes(data)
    return read_picture(folder / "x", most_pixels=most_pixels)


@pytest.mark.parametrize("depth", [8, 16])
def test_rounding_to_8_bits(depth: int) -> None:
    ramp = (np.arange(65536) >> (16 - depth)).astype(np.uint8 if depth == 8 else np.uint16).reshape(256, 256)
    rounded = eight_bits(Picture(ramp, ramp[::-1]))
    expected = np.rint(ramp * (255 / (2**depth - 1))).astype(np.uint8)
    np.testing.assert_array_equal(rounded.pixels, expected)
    np.testing.assert_array_equal(rounded.alpha, expected[::-1])
    assert rounded.pixels.dtype == np.uint8


def test_a_png_without_all_of_its_chunks_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV allocates and clears the gigabytes that a chunk states."""
    data = encode_picture(Picture(RGB), ".png")[0]
    at = data.index(b"IDAT") - 4
    monkeypatch.setattr(cv2, "imdecode", None)
    for bad in (data[:at] + b"\x70" + data[at + 1 :], data[:-12], data[:at] + data[-12:-1]):
        with pytest.raises(InputError, match="is it damaged or cut off"):
            read(tmp_path, bad)


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    for suffix in (".jpg", ".webp", ".bmp"):
        with pytest.raises(OutputError, match="8 bits"):
            encode_picture(Picture(RGB.astype(np.uint16)), suffix)
    with pytest.raises(OutputError, match="transparency"):
        encode_picture(Picture(RGB, ALPHA), ".jpg")
    opaque = np.full_like(ALPHA, 255)
    assert encode_picture(Picture(RGB, opaque), ".jpg")[0] == encode_picture(Picture(RGB), ".jpg")[0]
    opaque[-1, -1] = 254
    with pytest.raises(OutputError, match="transparency"):
        encode_picture(Picture(RGB, opaque), ".jpg")
    with pytest.raises(OutputError, match="file name ending"):
        write_picture(tmp_path / "x.gif", Picture(RGB), overwrite=False)
    for suffix, most in ((".webp", 16_383), (".jpg", 65_500), (".png", 1_000_000)):
        encode_picture(Picture(np.zeros((most, 1), np.uint8)), suffix)
        with pytest.raises(OutputError, match=f"holds {most} pixels a side, the picture is {most + 1}x1: write a TIFF"):
            encode_picture(Picture(np.zeros((1, most + 1), np.uint8)), suffix)
    with pytest.raises(OutputError, match="TIFF holds 1048576 pixels a side, the picture is 1048577x1: scale it down"):
        encode_picture(Picture(np.zeros((1, 2**20 + 1), np.uint8)), ".tif")
    assert not list(tmp_path.iterdir())


def test_pictures_without_colour() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    equal = np.repeat(noise[..., None], 3, axis=2)
    spot = equal.copy()
    spot[39, 49, 2] ^= 1  # the only sample that differs
    assert [Picture(pixels).gray for pixels in (noise, equal, equal[:1, :1], spot)] == [True, True, True, False]
    assert not Picture(spot[39:, 49:]).gray


def test_rgb8() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 257).astype(np.uint8)
    np.testing.assert_array_equal(rgb8(Picture(ramp)), np.repeat(expected[..., None], 3, axis=2))
    np.testing.assert_array_equal(rgb8(Picture(RGB, ALPHA)), RGB)
    assert rgb8(Picture(ALPHA)).shape == (*ALPHA.shape, 3)
