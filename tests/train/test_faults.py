"""What goes wrong in training: one line, exit code 2, and the last good checkpoint still there."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import OutputError
from train import loop
from train.checkpoint import LOCK, locked
from train.loop import Trainer
from train.sadnet import SADNet
from train.validation import Noise
from train.weights import save_weights

Train = Callable[..., int]
State = Callable[[Path], dict[str, Any]]
OneError = Callable[[], str]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(halfway: Path, tmp_path: Path) -> Path:
    return shutil.copytree(halfway, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    run: Path, train: Train, state: State, one_error: OneError
) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    assert train("--resume", run, "--steps", 9, "--set", "optimizer.lr=1e30") == 2
    line = one_error()
    assert "expected a finite loss" in line
    assert "--resume" in line
    assert (run / "checkpoint.pt").read_bytes() == before
    assert "NaN" not in (run / "log.jsonl").read_text()
    assert train("--resume", run, "--steps", 4) == 0
    assert state(run)["step"] == 4


def test_weights_that_are_not_finite_never_reach_a_checkpoint(
    run: Path, train: Train, one_error: OneError, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, step = (run / "checkpoint.pt").read_bytes(), Trainer._train_step

    def overflowing(self: Trainer, *batch: torch.Tensor) -> torch.Tensor:
        loss = step(self, *batch)  # finite, as the update is what overflows
        nn.init.constant_(self.network.res1.conv1.weight, float("inf"))
        return loss

    monkeypatch.setattr(Trainer, "_train_step", overflowing)
    assert train("--resume", run, "--steps", 4, "--set", "run.checkpoint_every=0") == 2
    assert "finite weights" in one_error()
    assert (run / "checkpoint.pt").read_bytes() == before


def test_a_run_that_fails_at_once_does_not_speak_of_a_checkpoint(
    config: Path, tmp_path: Path, train: Train, one_error: OneError
) -> None:
    assert train("--config", config, "--output", tmp_path / "new", "--set", "optimizer.lr=1e30") == 2
    assert "no checkpoint was written yet" in one_error()
    assert not (tmp_path / "new/checkpoint.pt").exists()


def test_a_full_disk_while_saving_keeps_the_checkpoint(
    run: Path, train: Train, state: State, one_error: OneError
) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    with files_of_at_most(1 << 20):
        assert train("--resume", run, "--steps", 4, "--set", "run.validate_every=1") == 2
    assert "cannot write" in one_error()
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not list(run.glob(".tmp-*"))


def test_a_full_disk_keeps_the_weights_that_were_there(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"earlier")
    with files_of_at_most(1 << 20), pytest.raises(OutputError, match="cannot write"):
        save_weights(SADNet(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    assert path.read_bytes() == b"earlier"


def test_a_folder_that_cannot_be_made_is_one_line(
    config: Path, tmp_path: Path, train: Train, one_error: OneError
) -> None:
    (tmp_path / "file").write_text("x")
    assert train("--config", config, "--output", tmp_path / "file/run", "--steps", 1) == 2
    assert "cannot write" in one_error()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_checkpoint_is_one_line(run: Path, train: Train, one_error: OneError, damage: bytes | None) -> None:
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100_000] if damage is None else damage)
    assert train("--resume", run) == 2
    assert "expected a checkpoint" in one_error()


def test_a_checkpoint_of_something_else_or_another_network_is_one_line(
    run: Path, train: Train, state: State, one_error: OneError
) -> None:
    assert train("--resume", run, "--set", "model.variant=official") == 2
    assert "out.weight" in one_error()
    torch.save({"step": 3, "network": {}}, run / "checkpoint.pt")
    assert train("--resume", run) == 2
    assert "expected a checkpoint" in one_error()
    assert train("--resume", run / "nowhere") == 2
    assert "no such file" in one_error()


def test_a_run_is_never_started_over_another(config: Path, run: Path, train: Train, one_error: OneError) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    assert train("--config", config, "--output", run) == 2
    assert "holds a run already" in one_error()
    assert train("--decay", run, "--output", run, "--steps", "1") == 2
    assert "holds a run already" in one_error()
    assert (run / "checkpoint.pt").read_bytes() == before


def test_one_process_at_a_time_trains_into_a_folder(run: Path, train: Train, one_error: OneError) -> None:
    kept = [path for path in run.iterdir() if path.name != LOCK]
    before = [path.read_bytes() for path in kept]
    with locked(run):
        assert train("--resume", run, "--steps", "10") == 2
        assert f"{run}: expected a run that rests, found one that another process trains" in one_error()
        assert [path.read_bytes() for path in kept] == before
    assert train("--resume", run, "--steps", "10") == 0


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json", "log.jsonl"])
def test_a_run_is_never_started_over_files_of_one(
    config: Path, tmp_path: Path, train: Train, one_error: OneError, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    assert train("--config", config, "--output", tmp_path / "mine") == 2
    assert f"holds a run already ({name}): choose another" in one_error()
    assert [p.read_text() for p in (tmp_path / "mine").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "expected one of --config"),
        (["--config", "{config}", "--resume", "{run}"], "expected one of --config"),
        (["--resume", "{run}", "--init", "x"], "--init starts a new run"),
        (["--resume", "{run}", "--output", "x"], "expected no --output"),
        (["--decay", "{run}"], "--steps N"),
        (["--decay", "{run}", "--steps", "2", "--minutes", "1"], "expected no --minutes"),
        (["--decay", "{run}", "--steps", "0"], "--steps N"),
        (["--config", "{config}", "--output", "{new}", "--set", "run.precision=fp16"], "expected a CUDA GPU"),
        (["--config", "{config}", "--output", "{new}", "--data", "/nowhere"], "expected a folder of images"),
        (["--config", "{config}", "--output", "{new}", "--init", "/nowhere"], "expected SADNet weights"),
        (["--config", "{config}", "--output", "{new}", "--steps", "many"], "--steps"),
        (["--config", "{config}", "--output", "{new}", "--set", "noise.sigma_max=1000"], "sigma_max <= 255"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    config: Path, halfway: Path, tmp_path: Path, train: Train, one_error: OneError, arguments: list[str], named: str
) -> None:
    if torch.cuda.is_available() and "run.precision=fp16" in arguments:
        pytest.skip("fp16 works here")
    places = {"config": config, "run": halfway, "new": tmp_path / "new"}
    assert train(*(argument.format(**places) for argument in arguments)) == 2
    assert named in one_error()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seconds", [7, 29, 50])
def test_a_kill_loses_at_most_a_minute_of_training_however_long_steps_and_validations_take(
    config: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    clock, trained, kept, lost = 0, 0, 0, [0]
    step, validate = Trainer._train_step, Trainer.validate

    def slow_step(self: Trainer, *batch: torch.Tensor) -> torch.Tensor:
        nonlocal clock, trained
        clock, trained = clock + seconds, trained + seconds
        lost.append(trained - kept)  # by a kill at the step's end
        return step(self, *batch)

    def slow_validation(self: Trainer, noise: Noise) -> float:
        nonlocal clock
        clock += 100
        lost.append(trained - kept)
        return validate(self, noise)

    def save(self: Trainer) -> None:
        nonlocal kept
        kept = trained

    monkeypatch.setattr(Trainer, "_train_step", slow_step)
    monkeypatch.setattr(Trainer, "validate", slow_validation)
    monkeypatch.setattr(Trainer, "save", save)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock))
    assert train("--config", config, "--output", tmp_path, "--steps", 24, "--set", "run.validate_every=11") == 0
    assert trained == 24 * seconds
    assert max(lost) <= 60
