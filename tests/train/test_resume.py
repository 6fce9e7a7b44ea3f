"""A run that stops, by whatever, goes on as if it had not."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins import cpu_sampling
from train.loop import Trainer
from train.run import Asked, _fast_precision, _plan

Train = Callable[..., int]
Logged = Callable[..., dict[int, float]]
State = Callable[[Path], dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]

KILLED_WHILE_SAVING = """
import os, signal, sys
from common import cli, files
from train.loop import Trainer
from train.run import app

save = Trainer.save

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def save_or_die(self):
    if self.step == 4:
        files._publish = die
    save(self)

Trainer.save = save_or_die
cli.run(app, several=("--data", "--set"), argv=sys.argv[1:])
"""


def assert_equal(found: Any, expected: Any) -> None:
    """Nested states, to the last bit."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def assert_same_run(folder: Path, other: Path, logged: Logged, state: State) -> None:
    assert logged(folder) == logged(other)
    ours, theirs = state(folder), state(other)
    for part in ("network", "ema", "optimizer", "step"):
        assert_equal(ours[part], theirs[part])


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_another(
    config: Path, uninterrupted: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    assert train("--config", config, "--output", tmp_path / "again") == 0
    assert_same_run(tmp_path / "again", uninterrupted, logged, state)
    assert train("--config", config, "--output", tmp_path / "other", "--steps", 1, "--set", "run.seed=1") == 0
    assert logged(tmp_path / "other")[1] != logged(uninterrupted)[1]


def test_a_resumed_run_is_an_uninterrupted_one(
    halfway: Path, uninterrupted: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    folder = shutil.copytree(halfway, tmp_path / "run")
    assert state(folder)["step"] == 3
    assert train("--resume", folder, "--set", "run.steps=6") == 0
    assert_same_run(folder, uninterrupted, logged, state)


def test_it_is_one_in_bf16_too(config: Path, tmp_path: Path, train: Train, logged: Logged, state: State) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    bf16 = ("--set", "run.precision=bf16")
    assert train("--config", config, "--output", whole, "--steps", 4, *bf16) == 0
    assert train("--config", config, "--output", parts, "--steps", 2, *bf16) == 0
    assert train("--resume", parts, "--steps", 4) == 0
    assert_same_run(parts, whole, logged, state)


@pytest.mark.parametrize(
    ("cuda", "bf16", "precision"), [(0, 0, "fp32"), (0, 1, "bf16"), (1, 0, "fp16"), (1, 1, "bf16")]
)
def test_a_machine_trains_in_bf16_where_it_has_instructions_for_it(
    cuda: int, bf16: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step in bf16 by other means takes up to ten times as long."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(cuda))
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda *, including_emulation: bool(bf16 or including_emulation)
    )
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bool(bf16))
    assert _fast_precision() == precision


def test_a_run_goes_on_in_another_precision(halfway: Path, tmp_path: Path, train: Train, state: State) -> None:
    """Also one of a loss that was scaled, in fp16 on a GPU."""
    folder = shutil.copytree(halfway, tmp_path / "run")
    scale = {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 0,
    }
    torch.save(state(halfway) | {"precision": scale}, folder / "checkpoint.pt")
    assert train("--resume", folder, "--steps", 4, "--set", "run.precision=bf16") == 0
    assert state(folder)["step"] == 4


def test_the_first_log_after_a_resumption_counts_the_steps_before_it(
    config: Path, tmp_path: Path, train: Train, logged: Logged, uninterrupted: Path
) -> None:
    assert train("--config", config, "--output", tmp_path / "a", "--steps", 3, "--set", "run.log_every=2") == 0
    assert train("--resume", tmp_path / "a", "--steps", 4) == 0
    each = logged(uninterrupted)
    assert logged(tmp_path / "a") == pytest.approx({2: (each[1] + each[2]) / 2, 4: (each[3] + each[4]) / 2}, rel=1e-6)


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    config: Path, uninterrupted: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    folder = tmp_path / "run"
    arguments = ["--config", str(config), "--output", str(folder), "--set", "run.checkpoint_every=0"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert state(folder)["step"] == 3
    assert max(logged(folder)) == 4
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"step": 5, "lo')  # as a kill may leave it
    assert train("--resume", folder) == 0
    assert_same_run(folder, uninterrupted, logged, state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_exits_with_130(
    config: Path,
    uninterrupted: Path,
    tmp_path: Path,
    train: Train,
    logged: Logged,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    step, handler = Trainer._train_step, signal.getsignal(number)

    def interrupted(self: Trainer, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == 1:
            signal.raise_signal(number)
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        assert train("--config", config, "--output", tmp_path / "run") == 130
    assert signal.getsignal(number) is handler
    assert state(tmp_path / "run")["step"] == 2
    assert train("--resume", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", uninterrupted, logged, state)


def test_a_validation_that_a_signal_forestalled_is_made_up_for(
    config: Path, tmp_path: Path, train: Train, logged: Logged, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, often = Trainer._train_step, ("--set", "run.validate_every=2")

    def interrupted(self: Trainer, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        assert train("--config", config, "--output", tmp_path / "run", *often) == 130
    assert not logged(tmp_path / "run", "psnr_sigma25")
    assert (state(tmp_path / "run")["step"], state(tmp_path / "run")["validated"]) == (2, 0)
    assert train("--resume", tmp_path / "run") == 0
    assert train("--config", config, "--output", tmp_path / "whole", *often) == 0
    assert list(logged(tmp_path / "run", "psnr_sigma25")) == [2, 4, 6]
    assert logged(tmp_path / "run", "psnr_sigma25") == logged(tmp_path / "whole", "psnr_sigma25")
    assert train("--resume", tmp_path / "run") == 0  # nothing is left to do, nor to validate again
    assert list(logged(tmp_path / "run", "psnr_sigma25")) == [2, 4, 6]


def test_what_a_kill_left_unfinished_is_swept_away(halfway: Path, tmp_path: Path, train: Train) -> None:
    folder = shutil.copytree(halfway, tmp_path / "run")
    (folder / ".tmp-0123456789abcdef.pt").write_bytes(b"half a checkpoint")
    assert train("--resume", folder, "--steps", 4) == 0
    assert not list(folder.glob(".tmp-*"))


def test_settings_changed_on_resumption_count(halfway: Path, tmp_path: Path, train: Train, state: State) -> None:
    folder = shutil.copytree(halfway, tmp_path / "run")
    changes = ["optimizer.beta2=0.5", "optimizer.eps=1e-6", "optimizer.lr=2e-3", "run.steps=4"]
    assert train("--resume", folder, *(word for change in changes for word in ("--set", change))) == 0
    group = state(folder)["optimizer"]["param_groups"][0]
    assert (state(folder)["step"], group["betas"], group["eps"], group["lr"]) == (4, (0.9, 0.5), 1e-6, 2e-3)
    assert state(folder)["config"]["optimizer"]["beta2"] == 0.5


def test_scores_of_another_validation_do_not_stand_in_the_way(
    halfway: Path, tmp_path: Path, train: Train, state: State
) -> None:
    """PSNR at sigma 75 is lower than any before it; the best weights are to be of those validations alone."""
    folder = shutil.copytree(halfway, tmp_path / "run")
    before, weights = state(folder)["best"], (folder / "weights.safetensors").read_bytes()
    assert train("--resume", folder, "--set", "run.validation_sigmas=[75.0]", "--set", "run.steps=4") == 0
    assert state(folder)["best"] < before
    assert (folder / "weights.safetensors").read_bytes() != weights


@pytest.mark.parametrize(("held_out", "stands"), [("3.png", True), ("2.png", False)])
def test_nor_do_scores_of_other_held_out_images(
    held_out: str, stands: bool, halfway: Path, tmp_path: Path, train: Train, state: State
) -> None:
    folder = shutil.copytree(halfway, tmp_path / "run")
    assert state(halfway)["held_out"] == ["3.png"]
    torch.save(state(halfway) | {"best": 99.0, "held_out": [held_out]}, folder / "checkpoint.pt")
    assert train("--resume", folder, "--steps", 4) == 0
    assert (state(folder)["best"] == 99.0) == stands


def test_nor_do_scores_of_other_images_of_the_same_names(
    halfway: Path, tmp_path: Path, train: Train, state: State, config: Path
) -> None:
    folder, photos = shutil.copytree(halfway, tmp_path / "run"), tmp_path / "photos"
    photos.mkdir()
    for name, other in (("0", "0"), ("1", "1"), ("2", "2"), ("3", "0")):
        shutil.copy(config.parent / "photos" / f"{other}.png", photos / f"{name}.png")
    torch.save(state(halfway) | {"best": 99.0}, folder / "checkpoint.pt")
    assert train("--resume", folder, "--steps", 4, "--data", photos) == 0
    assert state(folder)["best"] < 99.0


def test_more_images_to_train_on_leave_the_best_score(
    halfway: Path, tmp_path: Path, train: Train, state: State, config: Path
) -> None:
    folder, more = shutil.copytree(halfway, tmp_path / "run"), tmp_path / "more"
    more.mkdir()
    shutil.copy(config.parent / "photos" / "0.png", more / "x.png")
    torch.save(state(halfway) | {"best": 99.0}, folder / "checkpoint.pt")
    assert train("--resume", folder, "--steps", 4, "--data", config.parent / "photos", more) == 0
    assert state(folder)["best"] == 99.0


def test_a_validation_after_the_last_checkpoint_is_logged_once(
    halfway: Path, tmp_path: Path, train: Train, logged: Logged
) -> None:
    """A kill came between the two; the checkpoint before a validation knows of its step, not of its scores."""
    folder = shutil.copytree(halfway, tmp_path / "run")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(checkpoint | {"validated": 0}, folder / "checkpoint.pt")
    assert list(logged(folder, "psnr_sigma25")) == [3]
    assert train("--resume", folder, "--steps", 3) == 0
    assert list(logged(folder, "psnr_sigma25")) == [3]


@pytest.mark.parametrize("change", ["camera.shot=[1e-3,1e-2]", "noise.clip8=false", "run.validation_crop=24"])
def test_scores_of_other_noise_or_crops_do_not_compare(change: str, halfway: Path) -> None:
    asked = Asked(None, halfway, None, None, [], None, None, None, [change])
    state = _plan(asked, 1).state
    assert state is not None
    assert state["best"] == float("-inf")


def test_a_reader_of_the_lines_that_goes_away_does_not_end_the_run(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train/run.py", "--config", str(config), "--output", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr is not None
        assert "cannot write" not in run.stderr.read()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 6


def test_the_optimizer_goes_on_in_another_order_in_memory(
    halfway: Path, tmp_path: Path, train: Train, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler training is channels_last, without it is not: Adam's moments stay with their weights."""
    updates = []
    before = state(halfway)["network"]
    for usable in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(cpu_sampling, "usable", lambda usable=usable: usable)
            folder = shutil.copytree(halfway, tmp_path / str(usable))
            assert train("--resume", folder, "--set", "run.steps=4") == 0
        after = state(folder)["network"]
        updates.append(torch.cat([(after[name] - before[name]).flatten() for name in before]))
    assert (updates[0] - updates[1]).norm() < 0.01 * updates[1].norm()
