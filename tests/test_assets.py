"""The bundled model and photos are what they are said to be."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common.files import sha256
from common.images import read_picture
from common.metrics import psnr
from common.padding import pad_to_multiple
from export.to_onnx import ExportedNetwork, Io, Precision
from runtime.denoiser import Denoiser
from runtime.engines.ort import OrtEngine
from train.camera import add_camera_noise, draw_camera
from train.config import CameraConfig
from train.noise import protocol_noise
from train.sadnet import SADNetConfig
from train.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
REAL = ROOT.parent / "shared" / "data" / "CC"


@pytest.fixture(scope="module", params=["blind_color", "blind_gray", "real_color"])
def card(request: pytest.FixtureRequest) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((ASSETS / f"{request.param}.json").read_text())
    return result


def photo(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = read_picture(ASSETS / name).pixels
    assert pixels.dtype == np.uint8
    return pixels.astype(np.uint8)


def test_noisy_photo_is_the_clean_one_with_the_protocols_noise() -> None:
    clean = photo("astronaut_clean.png").astype(np.float32) / np.float32(255)
    noisy = protocol_noise(clean, 50, 0, clip8=True)
    assert np.array_equal(np.rint(noisy * 255).astype(np.uint8), photo("astronaut_noisy.png"))


def test_bundled_model_denoises_the_sample() -> None:
    clean, noisy = (photo(f"astronaut_{kind}.png") for kind in ("clean", "noisy"))
    with Denoiser(ASSETS / "blind_color.onnx") as denoiser:
        denoised = denoiser.denoise(noisy)
    assert psnr(noisy / 255, clean / 255) < 16
    assert psnr(denoised / 255, clean / 255) > 28


def test_the_gray_model_denoises_what_a_colour_one_leaves() -> None:
    clean = cv2.cvtColor(photo("astronaut_clean.png")[:256, :256], cv2.COLOR_RGB2GRAY)
    noisy = np.rint(protocol_noise(clean / np.float32(255), 50, 0, clip8=True) * 255).astype(np.uint8)
    scores = {}
    for name in ("blind_gray", "blind_color"):
        with Denoiser(ASSETS / f"{name}.onnx") as denoiser:
            scores[name] = psnr(denoiser.denoise(noisy) / 255, clean / 255)
    assert scores["blind_gray"] > 26
    assert scores["blind_gray"] > scores["blind_color"] + 5


def test_card_belongs_to_the_files_beside_it(card: dict[str, Any]) -> None:
    weights, model = (f"{card['name']}.{kind}" for kind in ("safetensors", "onnx"))
    assert card["sha256"] == {name: sha256(ASSETS / name) for name in (weights, model)}
    assert SADNetConfig(**card["trained"]["config"]["model"]) == load_weights(ASSETS / weights).config
    for key in ("training_data", "terms", "commit", "scored_on"):
        assert card[key]
    assert card["trained"]["step"] > 0
    assert card["trained"]["seconds"] > 0


def test_card_claims_no_more_than_the_licence(card: dict[str, Any]) -> None:
    assert "non-commercial" in card["terms"]
    assert "non-commercial" in (ASSETS / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("batch", "width", "height"),
    [(1, 480, 320), (1, 481, 321), (1, 37, 53), (1, 8, 8), (1, 5, 3), (1, 1, 1), (3, 104, 72)],
)
def test_bundled_onnx_file_agrees_with_pytorch(batch: int, width: int, height: int) -> None:
    noisy = photo("astronaut_noisy.png").astype(np.float32).transpose(2, 0, 1) / np.float32(255)
    x = pad_to_multiple(np.stack([noisy[:, 50 * i : 50 * i + height, :width] for i in range(batch)]))
    with torch.inference_mode():
        expected = load_weights(ASSETS / "blind_color.safetensors")(torch.from_numpy(x)).numpy()
    with OrtEngine(ASSETS / "blind_color.onnx") as engine:
        assert np.abs(engine.run(x) - expected).max() <= 1e-4


def test_real_model_denoises_what_a_camera_leaves() -> None:
    """On CC pairs where the checkout has them beside it; else on the sample with the noise of its training."""
    if pairs := sorted(REAL.glob("*_real.png"))[:2]:
        images = [
            (read_picture(p).pixels, read_picture(p.with_name(p.name.replace("real", "mean"))).pixels) for p in pairs
        ]
    else:
        clean = torch.from_numpy(photo("astronaut_clean.png")[:256, :256].transpose(2, 0, 1)[None] / np.float32(255))
        noisy = add_camera_noise(clean, [draw_camera(CameraConfig(share=1.0), np.random.default_rng(7))], [7])
        as_bytes = (np.rint(x[0].numpy().transpose(1, 2, 0) * 255).astype(np.uint8) for x in (noisy, clean))
        images = [tuple(as_bytes)]
    with Denoiser(ASSETS / "real_color.onnx") as denoiser:
        for noisy_image, clean_image in images:
            before, after = (psnr(x / 255, clean_image / 255) for x in (noisy_image, denoiser.denoise(noisy_image)))
            assert after > before + 1


def test_a_clean_photo_comes_back_nearly_as_it_is(card: dict[str, Any]) -> None:
    """What is taken from it is grain and, where the model is wrong, detail: `real_color`'s release of 2026-11-27, which
    had never seen a good photo, gave this one back at 39.5 dB."""
    clean = photo("astronaut_clean.png")[:256, :256]
    if card["trained"]["config"]["model"]["channels"] == 1:
        clean = np.asarray(cv2.cvtColor(clean, cv2.COLOR_RGB2GRAY), np.uint8)
    with Denoiser(ASSETS / f"{card['name']}.onnx") as denoiser:
        assert psnr(denoiser.denoise(clean) / 255, clean / 255) > 40


def test_half_arithmetic_costs_less_than_a_hundredth_of_a_decibel() -> None:
    """In PyTorch, whose half kernels round after every layer: ONNX Runtime computes half graphs in fp32 on a CPU."""
    noisy, clean = (
        photo(f"astronaut_{kind}.png")[60:220, 100:340].astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
        for kind in ("noisy", "clean")
    )
    path = ASSETS / "blind_color.safetensors"
    with torch.inference_mode():
        full = load_weights(path)(torch.from_numpy(noisy)).numpy()
        half = ExportedNetwork(load_weights(path), Precision.FP16, Io.FLOAT32).eval()(torch.from_numpy(noisy)).numpy()
    assert 0 < np.abs(half - full).max() <= 4 / 255
    assert abs(psnr(half, clean) - psnr(full, clean)) <= 0.01


@pytest.mark.slow
def test_a_larger_picture_is_denoised_no_worse_than_its_parts(card: dict[str, Any]) -> None:
    """The middles of windows of 128x128, by themselves and within the photo. A model that has learned the size of its
    crops does worse there: one of 128x128 alone lost a decibel, blind_gray's first release 0.16 (docs/training.md)."""
    clean = photo("astronaut_clean.png")[:496, :496].astype(np.float32) / np.float32(255)
    if card["trained"]["config"]["model"]["channels"] == 1:
        clean = np.asarray(cv2.cvtColor(clean, cv2.COLOR_RGB2GRAY), np.float32)
    noisy = protocol_noise(clean, 10 if card["name"] == "real_color" else 15, 0, clip8=True)
    corners = list(product((0, 184, 368), repeat=2))
    with Denoiser(ASSETS / f"{card['name']}.onnx", tile=496) as denoiser:
        whole = denoiser.denoise(noisy)
        parts = [denoiser.denoise(noisy[y : y + 128, x : x + 128])[32:96, 32:96] for y, x in corners]
    middles = [np.s_[y + 32 : y + 96, x + 32 : x + 96] for y, x in corners]
    alone = psnr(np.stack(parts), np.stack([clean[middle] for middle in middles]))
    within = psnr(np.stack([whole[middle] for middle in middles]), np.stack([clean[middle] for middle in middles]))
    print(f"{card['name']}: {alone:.3f} dB by themselves, {within:.3f} dB within the photo")
    assert within > alone - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("io", ["float32", "float16", "uint8"])
def test_bundled_weights_export_in_every_form(tmp_path: Path, precision: str, io: str) -> None:
    """With the command's own parity check; the network's output leaves [0, 1], which 8-bit images cannot."""
    options = ["--weights", str(ASSETS / "blind_color.safetensors"), "--output", str(tmp_path / "out.onnx")]
    command = [sys.executable, str(ROOT / "export" / "to_onnx.py"), *options, "--precision", precision, "--io", io]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
