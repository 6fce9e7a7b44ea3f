"""Table 1's six networks: trained at one budget, scored by the protocol, gone on with, and shown beside the paper's."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common import cli
from common.images import read_picture
from common.metrics import psnr
from runtime.denoiser import Denoiser
from train.ablation import NETWORKS, app
from train.config import load
from train.loop import Trainer
from train.noise import protocol_noise
from train.results_page import page

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
ONE_LEVEL = ("noise.sigma_min=50.0", "noise.sigma_max=50.0")
NAMES = ("none", "context", "rsab", "rsab-context", "rsab-offset_transfer", "rsab-offset_transfer-context")

Run = Callable[..., int]


@pytest.fixture
def kodak(tmp_path: Path) -> Path:
    """A folder with a Kodak24 of 16x16 pixels an image."""
    folder = tmp_path / "data"
    (folder / "Kodak24").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(24):
        image = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (16, 16), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / f"Kodak24/kodim{i + 1:02d}.png"), image)
    return folder


@pytest.fixture
def ablate(config: Path, kodak: Path, tmp_path: Path) -> Run:
    """ablate(*options): the exit code of `python train/ablation.py`."""

    def run(*more: object) -> int:
        given: list[object] = ["--data", config.parent / "photos", "--test", kodak, "--config", config]
        given += ["--output", tmp_path / "runs", "--set", *ONE_LEVEL, *more]
        with pytest.raises(SystemExit) as done:
            cli.run(app, several=("--data", "--set"), argv=[str(argument) for argument in given])
        assert isinstance(done.value.code, int)
        return done.value.code

    return run


def test_six_networks_are_trained_and_scored_by_the_protocol(ablate: Run, kodak: Path, tmp_path: Path) -> None:
    assert ablate() == 0
    record = json.loads((tmp_path / "runs" / "ablation.json").read_text())
    assert (record["steps"], record["sigma"], record["images"]) == (6, 50, 24)
    rows = {tuple(row[part] for part in ("rsab", "offset_transfer", "context")): row for row in record["rows"]}
    published = json.loads((RESULTS / "published.json").read_text())
    assert {(row["rsab"], row["offset_transfer"], row["context"]) for row in published["ablation"]["rows"]} == set(rows)
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == set(NAMES)
    for name in ("none", "rsab-offset_transfer-context"):
        row = rows["rsab" in name, "offset_transfer" in name, "context" in name]
        card = json.loads((tmp_path / "runs" / name / "weights.json").read_text())
        assert card["config"]["model"] == {"variant": "paper", "channels": 3} | {
            part: part in name for part in ("rsab", "offset_transfer", "context")
        }
        scores = []
        with Denoiser(tmp_path / "runs" / name / "weights.safetensors", threads=1) as denoiser:
            for i, path in enumerate(sorted((kodak / "Kodak24").iterdir())):
                clean = read_picture(path).pixels.astype(np.float32) / np.float32(255)
                scores.append(psnr(denoiser.denoise(protocol_noise(clean, 50, i, clip8=True)), clean))
        assert row["psnr"] == pytest.approx(np.mean(scores), abs=1e-3)
    tables = json.loads((RESULTS / "tables.json").read_text())
    assert page(tables, published, None, record).count("| not measured |") == 6  # another Kodak24 than the page's
    tables["sets"]["kodak24"]["sha256"] = record["set_sha256"]
    text = page(tables, published, None, record)
    whole = rows[True, True, True]
    assert f"| yes | yes | yes | 29.62 | {whole['psnr']:.2f} / {whole['ssim']:.3f} |" in text
    assert "6 steps of 2x16x16" in text
    assert "| not measured |" not in text


def test_the_same_command_goes_on(
    ablate: Run, tmp_path: Path, logged: Callable[[Path], dict[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(trainer: Trainer, draws: Any, crops: Any) -> None:
        if trainer.folder.name == "rsab" and trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of the third network
        once(trainer, draws, crops)

    once = Trainer.train_once
    monkeypatch.setattr(Trainer, "train_once", interrupted)
    assert ablate() == 130
    assert not (tmp_path / "runs" / "ablation.json").exists()
    monkeypatch.setattr(Trainer, "train_once", once)
    before = {name: (tmp_path / "runs" / name / "weights.safetensors").stat().st_mtime_ns for name in NAMES[:2]}
    assert ablate() == 0
    assert {name: (tmp_path / "runs" / name / "weights.safetensors").stat().st_mtime_ns for name in before} == before
    assert list(logged(tmp_path / "runs" / "rsab")) == [1, 2, 3, 4, 5, 6]
    assert len(json.loads((tmp_path / "runs" / "ablation.json").read_text())["rows"]) == 6


def test_trained_networks_are_scored_without_their_photos(
    config: Path, kodak: Path, tmp_path: Path, one_error: Callable[[], str], ablate: Run
) -> None:
    assert ablate() == 0
    (tmp_path / "runs" / "ablation.json").unlink()
    (config.parent / "photos").rename(config.parent / "away")
    try:
        assert ablate() == 0
    finally:
        (config.parent / "away").rename(config.parent / "photos")
    assert (tmp_path / "runs" / "ablation.json").exists()
    (tmp_path / "runs" / "rsab" / "weights.json").unlink()
    assert ablate() == 2
    assert "expected a run's card" in one_error()


def test_runs_of_another_budget_are_not_mixed(ablate: Run, one_error: Callable[[], str], tmp_path: Path) -> None:
    assert ablate("run.steps=2") == 0
    figures = (tmp_path / "runs" / "ablation.json").read_bytes()
    assert ablate() == 2
    assert "holds a run with run.steps 2, not 6" in one_error()
    assert (tmp_path / "runs" / "ablation.json").read_bytes() == figures


def test_a_run_that_was_killed_before_its_checkpoint_is_told_first(
    ablate: Run, one_error: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "runs" / "rsab").mkdir(parents=True)
    (tmp_path / "runs" / "rsab" / "log.jsonl").write_text("")
    assert ablate() == 2
    assert "rsab holds log.jsonl, but no checkpoint to go on from: remove it" in one_error()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["rsab"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("noise.sigma_max=60.0", "expected Table 1's sigma of 50 and 3 channels, found sigma 50 to 60 and 3 channels"),
        ("run.minutes=1.0", "expected a budget of steps alone"),
        ("model.channels=1", "expected Table 1's sigma of 50 and 3 channels, found sigma 50 to 50 and 1 channels"),
        ("data.crop=12", "expected a multiple of 8"),
    ],
)
def test_an_unequal_budget_is_one_line(
    ablate: Run, one_error: Callable[[], str], tmp_path: Path, change: str, expected: str
) -> None:
    assert ablate(change) == 2
    assert expected in one_error()
    assert not (tmp_path / "runs").exists()


def test_gray_images_are_not_table_1(ablate: Run, kodak: Path, one_error: Callable[[], str]) -> None:
    for path in (kodak / "Kodak24").iterdir():
        assert cv2.imwrite(str(path), np.zeros((16, 16), np.uint8))
    assert ablate() == 2
    assert "expected Kodak24 in colour, found gray images" in one_error()


def test_without_kodak_nothing_is_trained(ablate: Run, kodak: Path, one_error: Callable[[], str]) -> None:
    (kodak / "Kodak24" / "kodim07.png").unlink()
    assert ablate() == 2
    assert str(kodak) in one_error()


def test_the_shipped_configuration_is_one_budget_for_all() -> None:
    settings = load(ROOT / "train/configs/ablation.toml")
    assert settings.run.steps == settings.optimizer.decay_from + settings.optimizer.decay_steps
    assert settings.noise.sigma_min == settings.noise.sigma_max == 50
    assert len(NETWORKS) == 6
