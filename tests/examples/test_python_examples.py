"""The three programs do what they say, and what they print as an error is one line."""

import http.client
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.images import Picture, decode_picture, encode_picture, read_picture, write_picture
from runtime import Denoiser

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "assets" / "real_color.onnx"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    with Denoiser(MODEL) as denoiser:
        yield denoiser


def program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def picture(seed: int, dtype: type[Any] = np.uint8, *, gray: bool = False, alpha: bool = False) -> Picture:
    rng = np.random.default_rng(seed)
    most = np.iinfo(dtype).max
    pixels = np.clip(rng.normal(0.5, 0.2, (37, 53) if gray else (37, 53, 3)), 0, 1) * most
    return Picture(pixels.astype(dtype), rng.integers(0, most, (37, 53), dtype) if alpha else None)


def assert_denoised(denoiser: Denoiser, noisy: Picture, clean: Picture) -> None:
    assert clean.pixels.dtype == noisy.pixels.dtype
    np.testing.assert_allclose(clean.pixels, denoiser.denoise(noisy.pixels), atol=1)
    if noisy.pixels.ndim == 3:  # the model is for colour: noise that is alike in all channels looks like detail to it
        assert clean.pixels.std() < noisy.pixels.std() / 2
    if noisy.alpha is None:
        assert clean.alpha is None
    else:
        assert clean.alpha is not None
        np.testing.assert_array_equal(clean.alpha, noisy.alpha)


@pytest.mark.parametrize(
    ("name", "arguments"), [("photo", []), ("serve", []), ("frames", []), ("serve", ["http"]), ("frames", ["-1"])]
)
def test_without_its_arguments_it_says_how(name: str, arguments: list[str]) -> None:
    result = program(name, *arguments)
    assert result.returncode == 1
    assert f"python examples/{name}.py" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "noisy",
    [picture(0), picture(1, np.uint16, gray=True), picture(2, np.uint16, alpha=True)],
    ids=["colour", "gray 16 bits", "alpha 16 bits"],
)
def test_photo(noisy: Picture, tmp_path: Path, denoiser: Denoiser) -> None:
    write_picture(tmp_path / "noisy.png", noisy, overwrite=False)
    result = program("photo", tmp_path / "noisy.png", tmp_path / "clean.png")
    assert (result.returncode, result.stderr) == (0, "")
    assert_denoised(denoiser, noisy, read_picture(tmp_path / "clean.png"))


def test_photo_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "noisy.png").write_text("nothing")
    result = program("photo", tmp_path / "noisy.png", tmp_path / "clean.png")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"error: {tmp_path / 'noisy.png'}: expected an image")
    assert not (tmp_path / "clean.png").exists()


@contextmanager
def service() -> Iterator[str]:
    """Its address."""
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "0"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip().removeprefix("http://")
        finally:
            process.kill()


def post(address: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("POST", "/", body, headers)
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def test_serve(denoiser: Denoiser) -> None:
    """Many at once, good and bad ones: each gets what is its own."""
    pictures = [picture(0), picture(1, np.uint16), picture(2, gray=True), picture(3, alpha=True)] * 3
    with service() as address, ThreadPoolExecutor(12) as pool:
        good = [pool.submit(post, address, encode_picture(noisy, ".png")[0]) for noisy in pictures]
        damaged = encode_picture(pictures[0], ".png")[0][:500]
        bad = [pool.submit(post, address, body) for body in (b"", b"nothing", damaged)]
        bad += [pool.submit(post, address, b"", **{"Content-Length": length}) for length in ("-1", "x", str(2**40))]
        for noisy, answer in zip(pictures, good, strict=True):
            status, body = answer.result()
            assert status == 200
            assert_denoised(denoiser, noisy, decode_picture(body, "the answer"))
        for answer in bad:
            status, body = answer.result()
            assert status == 400
            assert b"expected" in body or b"invalid literal" in body
        assert post(address, encode_picture(pictures[0], ".png")[0])[0] == 200, "it serves on"


def test_frames(denoiser: Denoiser) -> None:
    result = program("frames", 3)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["frame 1", "frame 2", "frame 3"]
    assert all("(120, 160, 3) uint8" in line for line in lines)
    camera = runpy.run_path(str(ROOT / "examples" / "frames.py"))["camera"]
    frames = list(camera(2))
    assert not np.array_equal(*frames)
    for noisy, clean in zip(frames, denoiser.denoise_stream(camera(2)), strict=True):
        np.testing.assert_array_equal(clean, denoiser.denoise(noisy))
