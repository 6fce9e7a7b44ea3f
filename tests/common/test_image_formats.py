"""What is particular to a format: a JPEG's scans, markers and end, a PNG's transparent value, sizes in headers."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.containers import PNG_START
from common.errors import InputError
from common.images import Picture, decoded_size, encode_picture, read_picture
from common.metadata import png_chunk
from tests.common.test_images import RGB, read, saved, tiff


def test_scans_of_a_jpeg_are_counted(tmp_path: Path) -> None:
    """Each scan of 31 bytes costs a pass over all pixels: a file of a megabyte would be hours of work."""
    data = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    read(tmp_path, data[:last] + data[last:end] * 50 + data[end:])
    with pytest.raises(InputError, match="at most 100 scans"):
        read(tmp_path, data[:last] + data[last:end] * 200 + data[end:])


def test_what_is_appended_to_a_jpeg_is_no_scan(tmp_path: Path) -> None:
    """Phones append a film; of random bytes one pair in 65,536 looks like a scan."""
    data = saved(Image.fromarray(RGB), "JPEG") + b"\xff\xda" * 1000 + np.random.default_rng(0).bytes(10 * 2**20)
    assert read(tmp_path, data).pixels.shape == RGB.shape
    after_end = saved(Image.new("L", (8, 8)), "JPEG", comment=b"\xff\xda" * 1000)
    assert read(tmp_path, after_end).pixels.shape == (8, 8)


def test_a_jpeg_keeps_the_colours_of_every_pixel() -> None:
    checks = np.zeros((32, 32, 3), np.uint8)
    checks[::2, ::2], checks[1::2, 1::2] = (255, 0, 0), (0, 0, 255)
    image = Image.open(io.BytesIO(encode_picture(Picture(checks), ".jpg", 100)[0]))
    assert np.abs(np.asarray(image, int) - checks).max() < 12


def test_a_jpeg_of_another_frame_and_with_filling_is_read(tmp_path: Path) -> None:
    """Of SOF1, whose tables may have more entries than SOF0's."""
    data = saved(Image.fromarray(RGB), "JPEG")
    pixels, at = read(tmp_path, data).pixels, data.index(b"\xff\xc0")
    for other in (data[: at + 1] + b"\xc1" + data[at + 2 :], data[:at] + b"\xff" + data[at:]):
        np.testing.assert_array_equal(read(tmp_path, other).pixels, pixels)


def test_a_bmp_whose_first_row_is_the_upper_one_is_read(tmp_path: Path) -> None:
    data = bytearray(encode_picture(Picture(RGB), ".bmp")[0])
    struct.pack_into("<i", data, 22, -60)
    np.testing.assert_array_equal(read(tmp_path, bytes(data)).pixels, RGB[::-1])


def test_memory_is_counted_for_all_that_is_decoded() -> None:
    assert decoded_size(saved(Image.new("RGB", (4, 9000)), "WEBP", lossless=True)) == 4 * 4 * 9000
    tiled = tiff(RGB, photometric="rgb", tile=(512, 1024))  # a tile is decoded whole
    assert decoded_size(tiled) == 4 * 512 * 1024
    of_os_2 = struct.pack("<2sIHHIIHHHH", b"BM", 26 + RGB.size, 0, 0, 26, 12, 80, 60, 1, 24) + RGB.tobytes()
    assert decoded_size(of_os_2) == 4 * 60 * 80


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 7, 7), ("1", 1, 255), ("I;16", 4660, 4660)])
def test_a_gray_png_that_names_its_transparent_value(tmp_path: Path, mode: str, value: int, expected: int) -> None:
    dtype = np.uint16 if mode == "I;16" else np.uint8
    samples = np.full((4, 6), 0, dtype)
    samples[1, 2] = expected
    image = Image.fromarray(samples > 0) if mode == "1" else Image.fromarray(samples)
    picture = read(tmp_path, saved(image, "PNG", transparency=value))
    np.testing.assert_array_equal(picture.pixels, samples)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, np.where(samples == expected, 0, np.iinfo(dtype).max))


def test_a_png_that_is_too_wide_for_opencv(tmp_path: Path) -> None:
    side = 2**20 + 1
    header = side.to_bytes(4, "big") + bytes((0, 0, 0, 1, 8, 0, 0, 0, 0))
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(side + 1))), (b"IEND", b""))
    with pytest.raises(InputError, match=r"2\^20 a side, found 1048577x1"):
        read(tmp_path, PNG_START + b"".join(png_chunk(*part) for part in parts))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_of_a_transparent_value_only_the_samples_bits_count(tmp_path: Path, bits: int) -> None:
    """PNG 11.3.2.1."""
    header = bytes((0, 0, 0, 8, 0, 0, 0, 1, bits, 0, 0, 0, 0))
    row = zlib.compress(b"\0" + bytes(bits - 1) + b"\1")  # seven zeros and a one
    parts = ((b"IHDR", header), (b"tRNS", b"\xff\x01"), (b"IDAT", row), (b"IEND", b""))
    picture = read(tmp_path, PNG_START + b"".join(png_chunk(*part) for part in parts))
    assert picture.pixels.tolist() == [[0] * 7 + [255 // (2**bits - 1)]]
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255] * 7 + [0]]


@pytest.mark.parametrize("palette", [False, True])
def test_the_colours_of_a_bmp_with_the_oldest_header(palette: bool, tmp_path: Path) -> None:
    """As OS/2 wrote it; its size has 16 bits."""
    size = np.array(RGB.shape[1::-1], "<u2").tobytes()
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8) if palette else np.zeros((0, 3), np.uint8)
    indexes = RGB[..., 0]
    samples = (indexes if palette else RGB[..., ::-1])[::-1].tobytes()  # a row is a multiple of 4 bytes
    head = (12).to_bytes(4, "little") + size + b"\1\0" + (b"\x08\0" if palette else b"\x18\0")
    start = 14 + len(head) + colours.size
    sizes = (start + len(samples)).to_bytes(4, "little") + bytes(4) + start.to_bytes(4, "little")
    (tmp_path / "x.bmp").write_bytes(b"BM" + sizes + head + colours[:, ::-1].tobytes() + samples)
    assert np.array_equal(read_picture(tmp_path / "x.bmp").pixels, colours[indexes] if palette else RGB)
