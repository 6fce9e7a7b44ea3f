"""examples/cpp/image.h against NumPy, common/padding.py and OpenCV: padding, cropping and PPM files."""

import ctypes
import os
import stat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.padding import pad_to_multiple
from tests.examples.conftest import HERE, SOURCE, compile_cpp

Array = NDArray[Any]
KINDS = ("uint8", "float32")
sides = st.integers(1, 40)
images = st.tuples(sides, sides, st.integers(0, 2**32 - 1))
SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """image.cpp's."""
    path = tmp_path_factory.mktemp("image") / "image.so"
    compile_cpp("-O1", "-shared", "-fPIC", f"-I{SOURCE}", HERE / "image.cpp", "-o", path)
    library = ctypes.CDLL(str(path))
    for name in ("crop_uint8", "crop_float32", "copy_ppm"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def noise(height: int, width: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pad(functions: Any, image: Array, height: int, width: int, kind: str) -> Array:
    """As the plan takes it: (H, W, 3), or (3, H, W) of floats."""
    tensor = np.full((height, width, 3) if kind == "uint8" else (3, height, width), 77, kind)
    sizes = [ctypes.c_int64(side) for side in (image.shape[1], image.shape[0], width, height)]
    getattr(functions, f"pad_{kind}")(pointer(image), *sizes, pointer(tensor))
    return tensor


def crop(functions: Any, tensor: Array, height: int, width: int) -> Array:
    """The upper left of it, (H, W, 3) of bytes. Raises ValueError with what Error says."""
    image = np.full((height, width, 3), 77, np.uint8)
    rows, columns = tensor.shape[:2] if tensor.dtype == np.uint8 else tensor.shape[1:]
    sizes = [ctypes.c_int64(side) for side in (columns, rows, width, height)]
    error = getattr(functions, f"crop_{tensor.dtype}")(pointer(tensor), *sizes, pointer(image))
    if error:
        raise ValueError(error.decode())
    return image


def pointer(array: Array) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(image=images, more=st.tuples(st.integers(0, 90), st.integers(0, 90)))
def test_padding_is_numpys_repeated_reflection(
    functions: Any, kind: str, image: tuple[int, int, int], more: tuple[int, int]
) -> None:
    samples = noise(*image)
    height, width = samples.shape[0] + more[0], samples.shape[1] + more[1]
    expected = np.pad(samples, [(0, more[0]), (0, more[1]), (0, 0)], mode="reflect")
    if kind == "float32":
        expected = np.divide(expected.transpose(2, 0, 1), 255, dtype=np.float32)
    np.testing.assert_array_equal(pad(functions, samples, height, width, kind), expected)


@SETTINGS
@given(image=images)
def test_padding_to_multiples_of_8_is_the_runtimes(functions: Any, image: tuple[int, int, int]) -> None:
    samples = noise(*image)
    expected = pad_to_multiple(samples.transpose(2, 0, 1)).transpose(1, 2, 0)
    np.testing.assert_array_equal(pad(functions, samples, expected.shape[0], expected.shape[1], "uint8"), expected)


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(image=images, more=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_what_was_padded_and_cropped_is_as_before(
    functions: Any, kind: str, image: tuple[int, int, int], more: tuple[int, int]
) -> None:
    samples = noise(*image)
    height, width = samples.shape[:2]
    padded = pad(functions, samples, height + more[0], width + more[1], kind)
    np.testing.assert_array_equal(crop(functions, padded, height, width), samples)


@SETTINGS
@given(image=images)
def test_floats_are_clipped_and_rounded_as_by_the_runtime(functions: Any, image: tuple[int, int, int]) -> None:
    height, width, seed = image
    rng = np.random.default_rng(seed)
    tensor = rng.uniform(-0.5, 1.5, (3, height, width)).astype(np.float32)
    halves = rng.random(tensor.shape) < 0.3
    tensor[halves] = (rng.integers(-3, 260, halves.sum()).astype(np.float32) + np.float32(0.5)) / np.float32(255)
    expected = np.rint(np.clip(tensor, 0, 1) * np.float32(255)).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(crop(functions, tensor, height, width), expected)


@pytest.mark.parametrize("sample", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(functions: Any, sample: float) -> None:
    tensor = np.zeros((3, 4, 5), np.float32)
    tensor[2, 3, 4] = sample
    assert crop(functions, tensor, 3, 4).max() == 0  # the padding is nobody's business
    with pytest.raises(ValueError, match="expected finite samples from the network, found NaN or infinity"):
        crop(functions, tensor, 4, 5)


# ---- PPM files


def copy(functions: Any, given: bytes, folder: Path) -> Array | str:
    """What is read from such a file and written again, as OpenCV sees it, or the error."""
    source, target = folder / "given.ppm", folder / "copied.ppm"
    source.write_bytes(given)
    target.unlink(missing_ok=True)
    error: str = functions.copy_ppm(str(source).encode(), str(target).encode()).decode()
    if error:
        assert not target.exists()
        return error.replace(str(source), "PPM")
    assert sorted(folder.iterdir()) == [target, source]
    picture = cv2.imread(str(target), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.ascontiguousarray(picture[..., ::-1])


@SETTINGS
@given(image=images)
def test_opencvs_ppm_files_come_back(functions: Any, tmp_path: Path, image: tuple[int, int, int]) -> None:
    samples = noise(*image)
    _, encoded = cv2.imencode(".ppm", samples[..., ::-1])
    copied = copy(functions, encoded.tobytes(), tmp_path)
    assert not isinstance(copied, str), copied
    np.testing.assert_array_equal(copied, samples)


@pytest.mark.parametrize(
    "header",
    [b"P6 2 1 255\n", b"P6\n# by a camera\n2 1\n255\n", b"P6\n#\n#2 3\n 2\t\n1\r\n#4\n255 ", b"P6\n002 1\n255\t"],
)
def test_headers_as_the_format_allows_them(functions: Any, tmp_path: Path, header: bytes) -> None:
    copied = copy(functions, header + b"\n #a5\x00", tmp_path)
    assert not isinstance(copied, str), copied
    assert copied.tobytes() == b"\n #a5\x00"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (b"", "PPM: expected a binary PPM picture (P6), found another file"),
        (b"P5 1 1 255 a", "PPM: expected a binary PPM picture (P6), found another file"),
        (b"P6", "PPM: expected the width in the header, found none"),
        (b"P62 1 255 aaaaaa", "PPM: expected the width in the header, found none"),
        (b"P6 -2 1 255 aaaaaa", "PPM: expected the width in the header, found none"),
        (b"P6 # 2 1 255 aaaaaa", "PPM: expected the width in the header, found none"),
        (b"P6 2", "PPM: expected the height in the header, found none"),
        (b"P6 2x1 255 aaaaaa", "PPM: expected the height in the header, found none"),
        (b"P6 12345678901 1 255 a", "PPM: expected the height in the header, found none"),
        (b"P6 2 1", "PPM: expected the highest sample value in the header, found none"),
        (b"P6 0 1 255 ", "PPM: expected at least one pixel, found 0x1"),
        (b"P6 2 1 65535 aaaaaaaaaaaa", "PPM: expected 8-bit samples, of at most 255, found 65535"),
        (b"P6 2 1 15 aaaaaa", "PPM: expected 8-bit samples, of at most 255, found 15"),
        (b"P6 2 1 255", "PPM: expected 8-bit samples, of at most 255, found 255"),
        (b"P6 2 1 255 aaaaa", "PPM: expected 6 bytes for 2x1 pixels, found 5"),
        (b"P6 2 1 255 aaaaaaa", "PPM: expected 6 bytes for 2x1 pixels, found 7"),
        (
            b"P6 999999999 999999999 255 a",
            "PPM: expected 2999999994000000003 bytes for 999999999x999999999 pixels, found 1",
        ),
    ],
)
def test_malformed_files_are_refused_in_one_line(functions: Any, tmp_path: Path, given: bytes, error: str) -> None:
    assert copy(functions, given, tmp_path) == error


def test_a_file_cut_anywhere_is_refused(functions: Any, tmp_path: Path) -> None:
    whole = b"P6\n# cut\n3 2\n255\n" + bytes(range(18))
    assert not isinstance(copy(functions, whole, tmp_path), str)
    for end in range(len(whole)):
        assert isinstance(copy(functions, whole[:end], tmp_path), str), end


@SETTINGS
@given(garbage=st.binary(max_size=40))
def test_garbage_is_refused(functions: Any, tmp_path: Path, garbage: bytes) -> None:
    found = copy(functions, b"P6 " + garbage, tmp_path)
    assert isinstance(found, str) or found.size <= len(garbage)


def test_paths_that_are_no_files(functions: Any, tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 255 abc")
    os.mkfifo(tmp_path / "pipe")
    for source, target, error in (
        ("none.ppm", "b.ppm", f"{tmp_path}/none.ppm: expected a file, found none"),
        (".", "b.ppm", f"{tmp_path}/.: expected a file, found something else"),
        ("a.ppm", "none/b.ppm", f"{tmp_path}/none/b.ppm: cannot be written"),
        ("a.ppm", ".", f"{tmp_path}/.: expected a file there, or nothing, found a folder, device or pipe"),
        ("a.ppm", "pipe", f"{tmp_path}/pipe: expected a file there, or nothing, found a folder, device or pipe"),
    ):
        found = functions.copy_ppm(f"{tmp_path}/{source}".encode(), f"{tmp_path}/{target}".encode()).decode()
        assert found.startswith(error)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ppm", "pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_is_followed(functions: Any, tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 255 abc")
    (tmp_path / "b.ppm").write_bytes(b"old")
    (tmp_path / "link.ppm").symlink_to("b.ppm")
    assert functions.copy_ppm(f"{tmp_path}/a.ppm".encode(), f"{tmp_path}/link.ppm".encode()) == b""
    assert (tmp_path / "link.ppm").is_symlink()
    assert (tmp_path / "b.ppm").read_bytes().startswith(b"P6")
