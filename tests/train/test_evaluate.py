"""Evaluation: the protocol's figures, for every kind of model file, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from common.images import read_picture
from export.to_onnx import Io, Precision, export_network
from runtime import memory
from train.evaluate import open_denoiser
from train.noise import protocol_noise
from train.sadnet import SADNet
from train.weights import load_weights, save_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    torch.manual_seed(0)
    network = SADNet()
    torch.nn.init.normal_(network.out.weight, std=0.02)
    save_weights(network, path)
    return path


@pytest.fixture(scope="module")
def onnx_file(weights: Path) -> Path:
    path = weights.with_suffix(".onnx")
    path.write_bytes(export_network(load_weights(weights), Precision.FP32, Io.FLOAT32, {}).SerializeToString())
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images whose names sort as text: 1, 10, 2."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for name, size in (("1.png", (29, 40)), ("10.png", (33, 21)), ("2.png", (16, 16))):
        smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), smooth)
    return folder


def evaluate(engine: Path, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train/evaluate.py", "--engine", str(engine), "--data", str(data), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def restated(network: SADNet, data: Path, sigma: int, clip8: bool) -> tuple[float, float]:
    """The protocol again, from its text, as one loop."""
    scores = []
    for index, name in enumerate(["1.png", "10.png", "2.png"]):
        clean = read_picture(data / name).pixels.astype(np.float32) / np.float32(255)
        noise = np.random.default_rng(1000 * sigma + index).standard_normal(clean.shape, dtype=np.float32)
        noisy: NDArray[Any] = clean + noise * np.float32(sigma / 255)
        if clip8:
            noisy = np.rint(np.clip(noisy, 0, 1) * np.float32(255)) / np.float32(255)
        height, width = clean.shape[:2]
        padded = np.pad(noisy, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="reflect")
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)[None], dtype=np.float32))
            output = network(x)[0].numpy().transpose(1, 2, 0)[:height, :width].clip(0, 1)
        error = np.mean((output.astype(np.float64) - clean) ** 2)
        similarity = structural_similarity(
            clean,
            output,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        scores.append((10 * np.log10(1 / error), similarity))
    psnr, ssim = np.mean(scores, axis=0)
    return float(psnr), float(ssim)


@pytest.mark.parametrize("protocol", ["clip8", "float"])
def test_figures_are_the_protocols_for_weights_and_onnx(
    weights: Path, onnx_file: Path, photos: Path, tmp_path: Path, protocol: str
) -> None:
    network = load_weights(weights)
    for engine in (weights, onnx_file):
        out = tmp_path / f"{engine.suffix[1:]}.json"
        result = evaluate(engine, photos, "--sigma", "25", "50", "--protocol", protocol, "--json", str(out))
        assert result.returncode == 0, result.stderr
        rows = json.loads(out.read_text())["rows"]
        assert [row["sigma"] for row in rows] == [25, 50]
        for row in rows:
            psnr, ssim = restated(network, photos, int(row["sigma"]), protocol == "clip8")
            assert row["psnr"] == pytest.approx(psnr, abs=0.005)
            assert row["ssim"] == pytest.approx(ssim, abs=1e-4)
            assert [each["image"] for each in row["images"]] == ["1.png", "10.png", "2.png"]
            assert f"{psnr:.2f} / {ssim:.4f}" in result.stdout


def test_gray_images_go_through_a_colour_model(onnx_file: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((20, 24), 128, np.uint8))
    result = evaluate(onnx_file, tmp_path, "--sigma", "15")
    assert result.returncode == 0, result.stderr


def test_sigma_0_is_the_clean_image(weights: Path, photos: Path, tmp_path: Path) -> None:
    result = evaluate(weights, photos, "--sigma", "0", "--json", str(tmp_path / "out.json"))
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["psnr"] == pytest.approx(restated(load_weights(weights), photos, 0, True)[0], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sigma", "1000"], "expected a noise level from 0 to 255, found 1000"),
        (["--sigma", "-1"], "expected a noise level from 0 to 255, found -1"),
        (["--sigma", "loud"], "--sigma"),
        (["--sigma", "25", "--limit", "-2"], "--limit"),
        (["--sigma", "25", "--protocol", "clip16"], "--protocol"),
    ],
)
def test_wrong_options_are_one_line(onnx_file: Path, photos: Path, options: list[str], expected: str) -> None:
    result = evaluate(onnx_file, photos, *options)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert expected in result.stderr


def test_bad_files_are_one_line(onnx_file: Path, photos: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = tmp_path / "nothing.safetensors"
    nothing.touch()
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.png").write_text("no picture")
    deep = tmp_path / "deep"
    deep.mkdir()
    cv2.imwrite(str(deep / "a.png"), np.zeros((9, 9), np.uint16))
    for engine, data, expected in (
        (onnx_file, empty, "expected images"),
        (onnx_file, tmp_path / "missing", "found nothing"),
        (onnx_file, text, "a.png: expected an image"),
        (onnx_file, deep, "expected an 8-bit image"),
        (nothing, photos, "expected SADNet weights"),
        (tmp_path / "missing.onnx", photos, "no such file"),
    ):
        result = evaluate(engine, data, "--sigma", "25")
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert expected in result.stderr


def test_existing_json_is_refused_before_anything_is_computed(onnx_file: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    out.write_text("mine")
    result = evaluate(onnx_file, photos, "--sigma", "25", "--json", str(out))
    assert (result.returncode, result.stdout) == (2, "")
    assert out.read_text() == "mine"


def test_figures_do_not_depend_on_the_memory_that_is_free(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = protocol_noise(np.random.default_rng(1).random((264, 304, 3), np.float32), 50, 0, clip8=True)
    outputs = []
    for free in (10**9, 10**12):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        with open_denoiser(onnx_file, 1) as denoiser:
            outputs.append(denoiser.denoise(noisy))
    np.testing.assert_array_equal(outputs[0], outputs[1])
