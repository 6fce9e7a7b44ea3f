"""A release: the run's best weights, exported and scored, with a card that belongs to them."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.errors import InputError, ModelError
from common.files import sha256
from common.images import read_picture
from common.metrics import psnr, ssim
from export import release
from runtime.denoiser import Denoiser
from train.noise import protocol_noise
from train.sadnet import SADNet
from train.weights import load_weights, save_weights

TRAINED = {"config": {"data": {"folders": ["/home/somebody/photos"]}}, "step": 7, "seconds": 3}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    network = SADNet()
    torch.nn.init.normal_(network.out.weight, std=0.01)
    save_weights(network, folder / "weights.safetensors")
    (folder / "weights.json").write_text(json.dumps(TRAINED))
    return folder


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    folder = tmp_path / "Set2"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 256, (24, 17, 3), np.uint8))
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "Pairs"
    for seed, kind in enumerate(("noisy", "clean")):
        (folder / kind).mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 17, 3), np.uint8)
        cv2.imwrite(str(folder / kind / "a.png"), pixels)
    return folder


def test_release_writes_weights_onnx_file_and_card(
    run: Path, test_set: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "ASSETS", tmp_path)
    release.main(run, "small", "two noise pictures", [str(test_set), str(pairs)], sigma=[25.0])
    assert (tmp_path / "small.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()
    card = json.loads((tmp_path / "small.json").read_text())
    assert card["sha256"] == {f"small.{kind}": sha256(tmp_path / f"small.{kind}") for kind in ("safetensors", "onnx")}
    assert card["trained"]["config"]["data"]["folders"] == ["photos"]  # not where they lay
    white, real = card["scores"]
    assert (white["set"], white["images"], white["sigma"], white["protocol"]) == ("Set2", 2, 25.0, "clip8")
    assert (real["set"], real["images"], real["protocol"]) == ("Pairs", 1, "pairs")
    assert 0 < real["noisy_psnr"] < 20
    with Denoiser(tmp_path / "small.onnx") as denoiser:
        clean = [
            read_picture(test_set / name).pixels.astype(np.float32) / np.float32(255) for name in ("a.png", "b.png")
        ]
        of_white = [(denoiser.denoise(protocol_noise(c, 25.0, i, clip8=True)), c) for i, c in enumerate(clean)]
        noisy, right = (read_picture(pairs / kind / "a.png").pixels / np.float32(255) for kind in ("noisy", "clean"))
        for row, outputs in ((white, of_white), (real, [(denoiser.denoise(noisy), right)])):
            assert row["psnr"] == pytest.approx(np.mean([psnr(*pair) for pair in outputs]), abs=1e-3)
            assert row["ssim"] == pytest.approx(np.mean([ssim(*pair) for pair in outputs]), abs=1e-4)
    with Denoiser(tmp_path / "small.onnx") as denoiser, torch.inference_mode():
        x = np.random.default_rng(1).random((8, 16, 3), dtype=np.float32)
        expected = load_weights(tmp_path / "small.safetensors")(torch.from_numpy(x.transpose(2, 0, 1)[None].copy()))
        assert np.abs(denoiser.denoise(x) - expected[0].numpy().transpose(1, 2, 0).clip(0, 1)).max() < 1e-5
    with pytest.raises(InputError, match="--overwrite"):
        release.main(run, "small", "two noise pictures", [str(test_set)])


def test_the_mean_with_other_weights_is_released(
    run: Path, test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be those of the model that is replaced."""
    monkeypatch.setattr(release, "ASSETS", tmp_path)
    torch.manual_seed(1)
    save_weights(SADNet(), tmp_path / "small.safetensors")
    before = sha256(tmp_path / "small.safetensors")
    ours, theirs = (load_weights(p).state_dict() for p in (run / "weights.safetensors", tmp_path / "small.safetensors"))
    start = tmp_path / "small.safetensors"
    release.main(run, "small", "two noise pictures", [str(test_set)], [25.0], start, 0.25, overwrite=True)
    found = load_weights(tmp_path / "small.safetensors").state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value, 0.25 * ours[key] + 0.75 * theirs[key], atol=1e-6, rtol=1e-3)  # stored in fp16
    assert json.loads((tmp_path / "small.json").read_text())["mean_with"] == {
        "weights_sha256": before,
        "share": 0.25,
    }

    save_weights(SADNet(replace(SADNet().config, context=False)), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="expected weights of the network of"):
        release.main(run, "new", "", [str(test_set)], mean_with=tmp_path / "other.safetensors")
    assert not list(tmp_path.glob("new.*"))


@pytest.mark.parametrize("name", ["../real", "/tmp/real", ".real", ""])
def test_a_name_that_is_a_path_is_refused(run: Path, test_set: Path, name: str) -> None:
    with pytest.raises(InputError, match="--name: expected letters, digits"):
        release.main(run, name, "none", [str(test_set)])


def test_a_run_without_weights_is_refused(test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "ASSETS", tmp_path)
    with pytest.raises(ModelError, match=r"expected a run with weights\.safetensors"):
        release.main(tmp_path, "small", "none", [str(test_set)])
    assert not (tmp_path / "small.onnx").exists()
