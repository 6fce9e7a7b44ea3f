"""Table 1's six networks: trained at one budget, scored by the protocol, gone on with, and shown beside the paper's."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import cli
from common.images import read_picture
from common.metrics import psnr
from runtime.denoiser import Denoiser
from train import ablation
from train.ablation import NETWORKS, app
from train.config import load
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
def in_this_process(monkeypatch: pytest.MonkeyPatch, train: Run) -> list[list[str]]:
    """Runs of train/run.py without a process of their own, which would take seconds each; the list gets their
    arguments."""
    seen: list[list[str]] = []

    def run_py(arguments: list[str]) -> int:
        seen.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(ablation, "run_py", run_py)
    return seen


@pytest.fixture
def ablate(config: Path, kodak: Path, tmp_path: Path) -> Run:
    """ablate(*options): the exit code of `python train/ablation.py`."""

    def run(*more: object) -> int:
        given: list[object] = ["--data", config.parent / "photos", "--test", kodak, "--config", config]
        given += ["--output", tmp_path / "runs", "--json", tmp_path / "ablation.json", *more, "--set", *ONE_LEVEL]
        with pytest.raises(SystemExit) as done:
            cli.run(app, several=("--data", "--set"), argv=[str(argument) for argument in given])
        assert isinstance(done.value.code, int)
        return done.value.code

    return run


def test_six_networks_are_trained_and_scored_by_the_protocol(
    ablate: Run, in_this_process: list[list[str]], kodak: Path, tmp_path: Path
) -> None:
    assert ablate() == 0
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert (record["steps"], record["sigma"], record["images"]) == (6, 50, 24)
    rows = {tuple(row[part] for part in ("rsab", "offset_transfer", "context")): row for row in record["rows"]}
    published = json.loads((RESULTS / "published.json").read_text())
    assert {(row["rsab"], row["offset_transfer"], row["context"]) for row in published["ablation"]["rows"]} == set(rows)
    assert [arguments[3] for arguments in in_this_process] == [str(tmp_path / "runs" / name) for name in NAMES]
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
    text = page(json.loads((RESULTS / "tables.json").read_text()), published, None, record)
    whole = rows[True, True, True]
    assert f"| yes | yes | yes | 29.62 | {whole['psnr']:.2f} / {whole['ssim']:.3f} |" in text
    assert "6 steps of 2x16x16" in text
    assert "| not measured |" not in text


def test_the_same_command_goes_on(
    ablate: Run, in_this_process: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = ablation.run_py
    monkeypatch.setattr(ablation, "run_py", lambda given: inside(given) if len(in_this_process) < 2 else 130)
    assert ablate() == 130
    assert not (tmp_path / "ablation.json").exists()
    monkeypatch.setattr(ablation, "run_py", inside)
    before = {name: (tmp_path / "runs" / name / "weights.safetensors").read_bytes() for name in NAMES[:2]}
    assert ablate() == 0
    assert [arguments[0] for arguments in in_this_process] == ["--config"] * 2 + ["--resume"] * 2 + ["--config"] * 4
    assert {name: (tmp_path / "runs" / name / "weights.safetensors").read_bytes() for name in before} == before
    assert len(json.loads((tmp_path / "ablation.json").read_text())["rows"]) == 6


@pytest.mark.usefixtures("in_this_process")
def test_runs_of_another_budget_are_not_mixed(ablate: Run, one_error: Callable[[], str], tmp_path: Path) -> None:
    assert ablate("--set", "run.steps=2") == 0
    figures = (tmp_path / "ablation.json").read_bytes()
    assert ablate() == 2
    assert "holds a run with run.steps 2, not 6" in one_error()
    assert (tmp_path / "ablation.json").read_bytes() == figures


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
    ablate: Run, config: Path, kodak: Path, one_error: Callable[[], str], tmp_path: Path, change: str, expected: str
) -> None:
    given = ["--data", config.parent / "photos", "--test", kodak, "--config", config, "--output", tmp_path / "runs"]
    with pytest.raises(SystemExit) as done:
        cli.run(app, several=("--data", "--set"), argv=[*map(str, given), "--set", *ONE_LEVEL, change])
    assert done.value.code == 2
    assert expected in one_error()
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_not_there_is_told_before_hours_of_training(
    ablate: Run, one_error: Callable[[], str], tmp_path: Path
) -> None:
    assert ablate("--json", tmp_path / "none" / "ablation.json") == 2
    assert "expected a file in a folder that exists" in one_error()
    assert not (tmp_path / "runs").exists()


def test_without_kodak_nothing_is_trained(ablate: Run, kodak: Path, one_error: Callable[[], str]) -> None:
    (kodak / "Kodak24" / "kodim07.png").unlink()
    assert ablate() == 2
    assert str(kodak) in one_error()


def test_a_run_has_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert ablation.run_py(["--config", "none.toml"]) == 2
    assert capfd.readouterr().err.startswith("error: none.toml: expected a TOML configuration")


def test_the_shipped_configuration_is_one_budget_for_all() -> None:
    settings = load(ROOT / "train/configs/ablation.toml")
    assert settings.run.steps == settings.optimizer.decay_from + settings.optimizer.decay_steps
    assert settings.noise.sigma_min == settings.noise.sigma_max == 50
    assert len(NETWORKS) == 6
