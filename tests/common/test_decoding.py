"""Pictures whose samples are partly wrong are refused, though OpenCV returns them; whole ones that it has heard of are
not."""

import io
import os
import threading
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from common.chatter import quiet_stderr
from common.errors import InputError
from common.images import Picture, decode_picture, encode_picture

NOISE: NDArray[Any] = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 2)
JPEG = encode_picture(Picture(NOISE), ".jpg")[0]
COMPRESSIONS = {"LZW": 5, "Deflate": 8, "PackBits": 32773}


def damaged(data: bytes) -> Iterator[bytes]:
    """Files as broken disks, cards and downloads leave them: none of them is shorter than it should be."""
    half, quarter = len(data) // 2, len(data) // 4
    end = b"\xff\xd9"
    yield data[:half] + end
    yield data[:half] + data[half + quarter :]
    yield data[:half] + bytes(quarter) + data[half + quarter :]
    yield data[:half] + os.urandom(quarter).replace(b"\xff", b"\xfe") + data[half + quarter :]
    yield data[:half] + bytes(half)
    yield data[:half] + bytes(half) + end


@pytest.mark.parametrize("place", range(6))
def test_a_jpeg_with_wrong_samples_is_refused(place: int) -> None:
    bad = list(damaged(JPEG))[place]
    assert cv2.imdecode(np.frombuffer(bad, np.uint8), cv2.IMREAD_UNCHANGED) is not None
    with pytest.raises(InputError, match=r"x: expected an image .* JPEG file that cannot be decoded whole"):
        decode_picture(bad, "x")


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_tiff_with_wrong_strips_is_refused(name: str) -> None:
    data = cv2.imencode(".tif", NOISE, [cv2.IMWRITE_TIFF_COMPRESSION, COMPRESSIONS[name]])[1].tobytes()
    assert np.array_equal(decode_picture(data, "x").pixels[..., ::-1], NOISE)
    half, quarter = len(data) // 2, len(data) // 4
    bad = data[:half] + bytes(quarter) + data[half + quarter :]
    assert cv2.imdecode(np.frombuffer(bad, np.uint8), cv2.IMREAD_UNCHANGED) is not None
    with pytest.raises(InputError, match=r"x: expected an image .* TIFF file that cannot be decoded whole"):
        decode_picture(bad, "x")


def test_bytes_before_a_whole_jpegs_end_are_no_damage() -> None:
    pixels = decode_picture(JPEG, "x").pixels
    tables = JPEG.index(b"\xff\xdb")
    for padded in (
        JPEG[:-2] + bytes(20) + JPEG[-2:],
        JPEG[:-2] + bytes(500) + JPEG[-2:],
        JPEG[:tables] + bytes(64) + JPEG[tables:],
        JPEG + bytes(1000),
    ):
        assert np.array_equal(decode_picture(padded, "x").pixels, pixels)
    with quiet_stderr(alone=True) as said:  # the first of them is one that libjpeg speaks of
        cv2.imdecode(np.frombuffer(JPEG[:-2] + bytes(20) + JPEG[-2:], np.uint8), cv2.IMREAD_UNCHANGED)
        assert "extraneous bytes" in said()


def test_a_tag_that_says_nothing_of_the_samples_is_no_damage() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, NOISE, photometric="rgb", compression="zlib", extratags=[(65001, "i", 1, 5, True)])
    data = bytearray(file.getvalue())
    data[data.index((65001).to_bytes(2, "little")) + 2] = 99  # a type that there is not
    with quiet_stderr(alone=True) as said:
        cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_UNCHANGED)
        assert "TIFF_Error" in said()
    assert np.array_equal(decode_picture(bytes(data), "x").pixels, NOISE)


def test_a_damaged_jpeg_in_a_tiff_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "TIFF", compression="jpeg")
    data = bytearray(file.getvalue())
    assert decode_picture(bytes(data), "x").pixels.shape == NOISE.shape
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    assert cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_UNCHANGED) is not None
    with pytest.raises(InputError, match="TIFF file that cannot be decoded whole"):
        decode_picture(bytes(data), "x")


def test_files_beside_a_damaged_one_are_read() -> None:
    bad = list(damaged(JPEG))[2]
    outcomes: list[tuple[bool, bool]] = []

    def decode(wrong: bool) -> None:
        for _ in range(25):
            try:
                refused = decode_picture(bad if wrong else JPEG, "x") is None
            except InputError:
                refused = True
            outcomes.append((wrong, refused))

    threads = [threading.Thread(target=decode, args=(wrong,)) for wrong in (True, False, False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 100
    assert all(refused == wrong for wrong, refused in outcomes)


def test_a_whole_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    imdecode = cv2.imdecode

    def counted(data: Any, flags: int) -> Any:
        calls.append(flags)
        return imdecode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", counted)
    decode_picture(JPEG, "x")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (cv2.Error.StsNoMem, "x: expected a picture that fits into memory"),
        (cv2.Error.StsError, "x: .* cannot be decoded"),
    ],
)
def test_what_opencv_raises_is_told(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    error = cv2.error("OpenCV's words")
    error.code = code

    def refuse(data: Any, flags: int) -> Any:
        raise error

    monkeypatch.setattr(cv2, "imdecode", refuse)
    with pytest.raises(InputError, match=words):
        decode_picture(JPEG, "x")
