"""Training on pairs and on camera noise, through the command line: validation, resumption, old checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common.metrics import psnr
from train.camera import add_camera_noise, draw_camera
from train.config import from_dict
from train.data import Bank
from train.noise import protocol_noise
from train.validation import held_out, noise_name, validation_noises

Train = Callable[..., int]
Logged = Callable[..., dict[int, float]]
State = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def polyu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PolyU's layout: three scenes of two crops each."""
    folder = tmp_path_factory.mktemp("PolyU")
    for number, scene in enumerate(("Canon_desk", "Nikon_wall", "Sony_door")):
        for crop in (1, 2):
            rng = np.random.default_rng((number, crop))
            clean = cv2.resize(rng.integers(60, 200, (5, 6, 3), np.uint8), (40, 32), interpolation=cv2.INTER_CUBIC)
            noisy = np.clip(clean + rng.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)
            for kind, pixels in (("real", noisy), ("mean", clean)):
                assert cv2.imwrite(str(folder / f"{scene}_{crop}_{kind}.JPG"), pixels)
    (folder / "holdout.txt").write_text("Nikon_wall")
    return folder


@pytest.fixture(scope="session")
def real(config: Path, polyu: Path) -> tuple[object, ...]:
    """Arguments of a run on the pairs and on four photos with camera noise."""
    changes = [f"data.holdout={polyu / 'holdout.txt'}", "camera.share=1.0", "optimizer.loss=l1"]
    sets = (word for change in changes for word in ("--set", change))
    return ("--config", config, "--data", polyu, config.parent / "photos", *sets)


def test_a_run_on_pairs_and_photos_is_validated_on_the_held_out_scene(
    real: tuple[object, ...],
    tmp_path: Path,
    train: Train,
    logged: Logged,
    state: State,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert train(*real, "--output", tmp_path / "run") == 0
    out = capfd.readouterr().out
    assert "training: 4 images, 4 pairs" in out
    assert "validation: 2 pairs" in out
    score = logged(tmp_path / "run", "psnr_pairs")[6]
    assert 20 < score < 35
    assert state(tmp_path / "run")["best"] == pytest.approx(score)
    card = json.loads((tmp_path / "run/weights.json").read_text())
    assert card["validation"] == {"psnr_pairs": pytest.approx(score, abs=1e-3)}
    assert (card["training_images"], card["validation_images"]) == (8, 2)


def test_it_goes_on_as_if_it_had_not_stopped(
    real: tuple[object, ...], tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    assert train(*real, "--output", tmp_path / "whole") == 0
    assert train(*real, "--output", tmp_path / "parts", "--steps", 3) == 0
    assert train("--resume", tmp_path / "parts", "--steps", 6) == 0
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    ours, theirs = (state(tmp_path / name)["network"] for name in ("parts", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_photos_alone_are_validated_on_the_noise_that_they_are_trained_on(
    config: Path, tmp_path: Path, train: Train, logged: Logged
) -> None:
    folder = tmp_path / "run"
    arguments = ("--config", config, "--output", folder, "--steps", 1, "--set", "noise.sigma_max=0.0")
    assert train(*arguments, "--set", "camera.share=0.5") == 0
    assert [logged(folder, f"psnr_{name}")[1] > 10 for name in ("sigma25", "sigma50", "camera")] == 3 * [True]
    shutil.rmtree(folder)
    assert train(*arguments, "--set", "camera.share=1.0") == 0
    assert logged(folder, "psnr_sigma25") == {}
    assert len(logged(folder, "psnr_camera")) == 1
    assert logged(folder)[1] > 1e-5  # the camera's noise: without any, a new network is exact


def test_a_checkpoint_of_before_there_were_cameras_and_pairs_goes_on_to_the_last_bit(
    halfway: Path, uninterrupted: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    old = shutil.copytree(halfway, tmp_path / "old")
    checkpoint = state(old)
    del checkpoint["config"]["camera"], checkpoint["config"]["data"]["pair_share"]
    torch.save(checkpoint, old / "checkpoint.pt")
    assert train("--resume", old, "--steps", 6) == 0
    assert logged(old) == logged(uninterrupted)
    ours, theirs = (state(folder)["network"] for folder in (old, uninterrupted))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_test_set_and_half_a_pair_are_one_line_and_write_nothing(
    config: Path, polyu: Path, tmp_path: Path, train: Train, one_error: Callable[[], str]
) -> None:
    cc = tmp_path / "CC"
    cc.mkdir()
    for kind in ("real", "mean"):
        shutil.copy(polyu / "Sony_door_1_real.JPG", cc / f"d800_iso1600_1_{kind}.png")
    lost = shutil.copytree(polyu, tmp_path / "lost")
    (lost / "Sony_door_1_mean.JPG").unlink()
    for data, expected in ((cc, "never trained on"), (lost, "expected a clean image for"), (f"sidd={lost}", "sidd")):
        assert train("--config", config, "--output", tmp_path / "run", "--data", data) == 2
        assert expected in one_error()
    assert not (tmp_path / "run").exists()


# --- what is validated ------------------------------------------------------------------------------------------------


def bank(depth: int) -> Bank:
    pixels = np.random.default_rng(0).integers(0, 256, 20 * 24 * depth, np.uint8)
    return Bank(("a",), ((20, 24, depth),), pixels)


@pytest.mark.parametrize(
    ("depth", "share", "expected"),
    [
        (3, 0.0, ["sigma25", "sigma50"]),
        (3, 0.5, ["sigma25", "sigma50", "camera"]),
        (3, 1.0, ["camera"]),
        (6, 0.0, ["pairs"]),
        (6, 1.0, ["pairs"]),
    ],
)
def test_what_is_validated_follows_from_what_is_held_out(depth: int, share: float, expected: list[str]) -> None:
    config = from_dict({"run": {"steps": 1}, "camera": {"share": share}}, "test")
    assert [noise_name(noise) for noise in validation_noises(bank(depth), config)] == expected
    assert noise_name(12.5) == "sigma12.5"


def test_held_out_images_are_cropped_to_the_centre_and_always_the_same() -> None:
    config = from_dict({"run": {"steps": 1, "validation_crop": 8}, "camera": {"share": 0.5}}, "test")
    pair = bank(6)[0][6:14, 8:16].astype(np.float32) / np.float32(255)
    noisy, clean = held_out(bank(6), 0, "pairs", config)
    assert np.array_equal(noisy, pair[..., :3])
    assert np.array_equal(clean, pair[..., 3:])
    for noise in validation_noises(bank(3), config):
        first, second = (held_out(bank(3), 0, noise, config) for _ in range(2))
        assert first[0].shape == first[1].shape == (8, 8, 3)
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], bank(3)[0][6:14, 8:16].astype(np.float32) / np.float32(255))
        assert psnr(*first) < 60


@pytest.mark.parametrize("clip8", [False, True])
def test_held_out_images_that_are_smaller_than_the_crop_are_whole_and_have_the_runs_noise(clip8: bool) -> None:
    config = from_dict({"run": {"steps": 1, "validation_crop": 24}, "noise": {"clip8": clip8}}, "test")
    noisy, clean = held_out(bank(3), 0, 25.0, config)
    assert np.array_equal(clean, bank(3)[0].astype(np.float32) / np.float32(255))
    assert np.array_equal(noisy, protocol_noise(clean, 25.0, 0, clip8=clip8))


def test_held_out_images_have_the_cameras_of_the_runs_own_ranges_by_their_place() -> None:
    camera = {"share": 1.0, "jpeg": 0.0, "shot": [0.01, 0.011]}
    config = from_dict({"run": {"steps": 1, "validation_crop": 0}, "camera": camera}, "test")
    images = bank(3)
    two = Bank(("a", "b"), images.shapes * 2, np.tile(images.pixels, 2))
    scaled = images[0].astype(np.float32) / np.float32(255)
    clean = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None]))
    for index in range(2):
        drawn = draw_camera(config.camera, np.random.default_rng(index))
        expected = add_camera_noise(clean, [drawn], [index])[0].numpy().transpose(1, 2, 0)
        assert np.array_equal(held_out(two, index, "camera", config)[0], expected)
