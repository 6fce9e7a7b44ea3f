"""What goes wrong in training: one line, exit code 2, and the last good checkpoint still there."""

import errno
import fcntl
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
from train import run as run_module
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
    with locked(run, 3):
        assert train("--resume", run, "--steps", "10") == 2
        assert f"{run}: expected a run that rests, found one that another process trains" in one_error()
        assert [path.read_bytes() for path in kept] == before
    assert train("--resume", run, "--steps", "4") == 0


@pytest.mark.parametrize("new", [False, True])
def test_what_another_process_trained_meanwhile_is_kept(
    config: Path,
    run: Path,
    train: Train,
    one_error: OneError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new: bool,
) -> None:
    """While this process decodes its images, say."""
    folder, decode, ended = tmp_path / "new" if new else run, run_module._banks, list[dict[str, bytes]]()
    command = ("--config", config, "--output", folder) if new else ("--resume", folder)

    def meanwhile(*arguments: Any) -> Any:
        if not ended:
            ended.append({})
            assert train(*command, "--steps", "5") == 0
            ended[0].update((path.name, path.read_bytes()) for path in folder.iterdir())
        return decode(*arguments)

    monkeypatch.setattr(run_module, "_banks", meanwhile)
    assert train(*command, "--steps", "6") == 2
    told = f"expected the run to be at step {0 if new else 3}, as it was, found it at 5 now"
    assert f"{folder}: {told}: another process trained it meanwhile" in one_error()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == ended[0]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), ImportError("no fcntl")])
def test_a_file_system_without_locks_is_trained_on(
    run: Path, train: Train, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert train("--resume", run, "--steps", "4") == 0


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json", "log.jsonl"])
def test_a_run_is_never_started_over_files_of_one(
    config: Path, tmp_path: Path, train: Train, one_error: OneError, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    assert train("--config", config, "--output", tmp_path / "mine") == 2
    hint = "remove it, or " if name == "log.jsonl" else ""
    assert f"holds a run already ({name}): {hint}choose another" in one_error()
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
        (["--config", "{config}", "--output", "{new}", "--set", "run.threads=5000000000"], "expected at most this"),
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

    def slow_validation(self: Trainer, noise: Noise) -> float | None:
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
