"""Evaluation of real pairs: the figures, both kinds of set in one call, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat  # type: ignore[import-untyped]  # scipy has no annotations

from common import cli
from common.metrics import psnr, ssim
from runtime import Denoiser
from train.camera import add_camera_noise, draw_camera
from train.config import CameraConfig
from train.evaluate import app

ENGINE = Path(__file__).resolve().parents[2] / "assets/blind_color.onnx"


def scene(seed: int, *size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(noisy, clean)."""
    rng = np.random.default_rng(seed)
    clean = cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), size, interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(np.rint(clean + rng.normal(0, 15, clean.shape)), 0, 255)
    return noisy.astype(np.uint8), np.asarray(clean, np.uint8)


@pytest.fixture
def cc(tmp_path: Path) -> Path:
    folder = tmp_path / "CC"
    folder.mkdir()
    for i, name in enumerate(("5dmark3_iso3200_1", "d800_iso1600_1")):
        for kind, pixels in zip(("real", "mean"), scene(i, 40, 32 + i), strict=True):
            cv2.imwrite(str(folder / f"{name}_{kind}.png"), pixels[..., ::-1])
    return folder


def evaluate(*options: object) -> int:
    """The exit code of `python train/evaluate.py`, run in this process."""
    argv = ["--engine", str(ENGINE), *map(str, options), "--threads", "1"]
    with pytest.raises(SystemExit) as done:
        cli.run(app, several=("--data", "--sigma"), argv=argv)
    assert isinstance(done.value.code, int)
    return done.value.code


def test_figures_are_those_of_the_noisy_and_of_the_denoised_image(
    cc: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--data", cc, "--json", tmp_path / "out.json") == 0
    out = capfd.readouterr().out
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["set"], row["protocol"]) == ("CC", "pairs")
    assert [each["image"] for each in row["images"]] == ["5dmark3_iso3200_1_real.png", "d800_iso1600_1_real.png"]
    expected = []
    with Denoiser(ENGINE, threads=1) as denoiser:
        for i in range(2):
            noisy, clean = (image.astype(np.float32) / np.float32(255) for image in scene(i, 40, 32 + i))
            output = denoiser.denoise(noisy)
            expected.append([f(image, clean) for image in (noisy, output) for f in (psnr, ssim)])
    means = np.mean(expected, axis=0)
    assert [row[key] for key in ("noisy_psnr", "noisy_ssim", "psnr", "ssim")] == pytest.approx(list(means), abs=1e-4)
    assert means[2] > means[0] + 1
    assert f"{means[0]:.2f} / {means[1]:.4f}" in out
    assert f"{means[2]:.2f} / {means[3]:.4f}" in out


def test_pairs_and_clean_images_go_in_one_call_and_a_limit_counts_for_both(cc: Path, tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "clean" / name), scene(3, 24, 24)[1])
    options = ("--data", cc, tmp_path / "clean", "--sigma", "25", "--limit", "1", "--json", tmp_path / "out.json")
    assert evaluate(*options) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["set"], row["protocol"], len(row["images"])) for row in rows] == [
        ("clean", "clip8", 1),
        ("CC", "pairs", 1),
    ]


def test_clean_images_get_the_noise_of_cameras_by_their_place(
    cc: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clean").mkdir()
    for i, name in enumerate(("b.png", "a.png")):
        cv2.imwrite(str(tmp_path / "clean" / name), scene(i, 40, 32)[1][..., ::-1])
    options = ("--data", cc, tmp_path / "clean", "--camera", "--json", tmp_path / "out.json")
    assert evaluate(*options) == 0
    out = capfd.readouterr().out
    row, pairs = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["set"], row["protocol"], pairs["protocol"]) == ("clean", "camera", "pairs")
    assert [each["image"] for each in row["images"]] == ["a.png", "b.png"]
    assert "clean, noise of cameras" in out
    assert "sigma" not in out
    with Denoiser(ENGINE, threads=1) as denoiser:
        for i, each in enumerate(row["images"]):
            clean = scene(1 - i, 40, 32)[1].astype(np.float32) / np.float32(255)
            camera = draw_camera(CameraConfig(), np.random.default_rng(i))
            batch = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)[None]))
            noisy = add_camera_noise(batch, [camera], [i])[0].numpy().transpose(1, 2, 0)
            found = [f(image, clean) for image in (noisy, denoiser.denoise(noisy)) for f in (psnr, ssim)]
            assert [each[key] for key in ("noisy_psnr", "noisy_ssim", "psnr", "ssim")] == pytest.approx(found, abs=1e-4)
    assert row["camera"] == json.loads(json.dumps(asdict(CameraConfig())))
    assert row["psnr"] == pytest.approx(np.mean([each["psnr"] for each in row["images"]]))


def test_sidds_validation_blocks_are_scored(tmp_path: Path) -> None:
    pairs = [scene(i, 16, 16) for i in range(4)]
    for kind, images in zip(("Noisy", "Gt"), zip(*pairs, strict=True), strict=True):
        name = f"Validation{kind}BlocksSrgb"
        savemat(tmp_path / f"{name}.mat", {name: np.stack(images).reshape(2, 2, 16, 16, 3)})
    assert evaluate("--data", f"sidd_validation={tmp_path}", "--json", tmp_path / "out.json") == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(row["images"]) == 4
    assert row["noisy_psnr"] == pytest.approx(np.mean([psnr(n / 255, c / 255) for n, c in pairs]), abs=1e-3)


def test_what_does_not_fit_is_one_line(cc: Path, tmp_path: Path, one_error: Callable[[], str]) -> None:
    (tmp_path / "clean").mkdir()
    cv2.imwrite(str(tmp_path / "clean/a.png"), scene(3, 24, 24)[1])
    (tmp_path / "gray").mkdir()
    cv2.imwrite(str(tmp_path / "gray/a.png"), scene(3, 24, 24)[1][..., 0])
    (tmp_path / "narrow").mkdir()
    cv2.imwrite(str(tmp_path / "narrow/a.png"), scene(3, 24, 24)[1][:, :2])
    (tmp_path / "dnd/images_srgb").mkdir(parents=True)
    (tmp_path / "dnd/images_srgb/0001.mat").touch()
    for options, expected in (
        (("--data", cc, "--sigma", "50"), "--sigma or --camera: expected none, the pairs have noise, found [50.0]"),
        (("--data", cc, "--camera"), "--sigma or --camera: expected none, the pairs have noise, found --camera"),
        (("--data", tmp_path / "clean"), "--sigma or --camera: expected noise for the clean images of"),
        (("--data", tmp_path / "gray", "--camera"), "--camera: expected colour images of 3x3 pixels or more, found"),
        (("--data", tmp_path / "narrow", "--camera"), "--camera: expected colour images of 3x3 pixels or more, found"),
        (("--data", tmp_path / "dnd"), "train/dnd.py"),
        (("--data", f"sidd={cc}"), "expected sidd"),
    ):
        assert evaluate(*options) == 2
        assert expected in one_error()
    (cc / "d800_iso1600_1_mean.png").unlink()
    assert evaluate("--data", cc) == 2
    assert "expected a clean image for" in one_error()
