"""Several processes under torchrun, on a CPU: one run, whose losses are those of one process."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import InputError
from train.config import DataConfig, NoiseConfig
from train.data import Bank, Sampler
from train.processes import Processes
from train.run import Asked, _plan

Train = Callable[..., int]
Logged = Callable[..., dict[int, float]]
State = Callable[[Path], dict[str, Any]]

ROOT = Path(__file__).parents[2]
SAME = 1e-4
"""Relative difference of the losses that another order of summing may make in 50 steps."""
RATE = ("--set", "optimizer.lr=4e-4", "--set", "optimizer.warmup=500")
"""blind_color.toml's. At conftest.py's, 25 times as high at step 50, they double with every step."""


@contextmanager
def torchrun(*arguments: object, processes: int = 2, largest_file: int = -1) -> Iterator[subprocess.Popen[str]]:
    """torchrun's process; it and all that it started are dead after the block."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with subprocess.Popen(
        [*launcher, "train/run.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    ) as process:
        workers: list[int] = []
        try:
            yield process
        finally:
            workers = children(process.pid)
            for pid in (process.pid, *workers):
                with_pid(pid, signal.SIGKILL)


def completed(*arguments: object, processes: int = 2, largest_file: int = -1) -> tuple[int, str, str]:
    with torchrun(*arguments, processes=processes, largest_file=largest_file) as process:
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def children(pid: int) -> list[int]:
    """The processes that `pid` started, oldest first: rank 0 before rank 1."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def with_pid(pid: int, number: int) -> bool:
    """Whether the process was there for the signal."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def alone(config: Path, train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 50 steps by one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert train("--config", config, "--output", folder, "--steps", 50, "--set", "run.validate_every=25", *RATE) == 0
    return folder


def test_two_processes_train_as_one_does_and_one_of_them_writes(
    config: Path, alone: Path, tmp_path: Path, logged: Logged, state: State
) -> None:
    arguments = (
        "--config",
        config,
        "--output",
        tmp_path / "run",
        "--steps",
        50,
        "--set",
        "run.validate_every=25",
        *RATE,
    )
    code, out, err = completed(*arguments)
    assert code == 0, err
    assert list(logged(tmp_path / "run")) == list(range(1, 51))
    assert logged(tmp_path / "run") == pytest.approx(logged(alone), rel=SAME)
    for key in ("psnr_sigma25", "psnr_sigma50"):
        assert logged(tmp_path / "run", key) == pytest.approx(logged(alone, key), abs=1e-3)
    for line in ("training: 3 images", "validation: 1 images", "step 50: finished"):
        assert out.count(line) == 1
    assert out.count("warning: data.crop") == 1
    assert len(out.splitlines()) == 4 + 50 + 2
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
    ours, theirs = state(tmp_path / "run"), state(alone)
    for part in ("network", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        for name, value in theirs[part].items():
            assert torch.allclose(ours[part][name], value, rtol=0, atol=1e-4), name
    assert ours["step"] == ours["validated"] == 50


@pytest.mark.slow
def test_two_processes_look_for_seams_as_one_does(config: Path, tmp_path: Path, train: Train, logged: Logged) -> None:
    """Two forward passes then come before each backward one."""
    seams = ("--set", "optimizer.seams=5.0", "--set", "data.crop=152", *RATE)
    assert train("--config", config, "--output", tmp_path / "one", "--steps", 3, *seams) == 0
    code, _, err = completed("--config", config, "--output", tmp_path / "two", "--steps", 3, *seams)
    assert code == 0, err
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=SAME)


def test_ctrl_c_ends_all_at_one_step_and_one_process_goes_on(
    config: Path, alone: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    folder = tmp_path / "run"
    with torchrun("--config", config, "--output", folder, "--steps", 10_000, *RATE) as process:
        wait_for(lambda: (folder / "log.jsonl").exists() and len(logged(folder)) >= 3)
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert len(workers) == 2
        assert not any(with_pid(worker, 0) for worker in workers)
    stopped = state(folder)["step"]
    assert 3 <= stopped < 48
    assert f"step {stopped}: stopped, state in" in out
    assert max(logged(folder)) == stopped
    assert not errors(err)
    assert train("--resume", folder, "--steps", stopped + 2) == 0
    assert logged(folder) == pytest.approx({s: logged(alone)[s] for s in range(1, stopped + 3)}, rel=SAME)


def test_two_go_on_from_one_until_the_writers_disk_is_full(
    halfway: Path, uninterrupted: Path, tmp_path: Path, logged: Logged
) -> None:
    folder = shutil.copytree(halfway, tmp_path / "run")
    before = (folder / "checkpoint.pt").read_bytes()
    code, _, err = completed("--resume", folder, "--steps", 6, largest_file=1 << 20)
    assert code != 0
    assert len(errors(err)) == 1
    assert f"cannot write {folder / 'checkpoint.pt'}" in errors(err)[0]
    assert errors(err)[0].removeprefix("error: ") in err.split("Root Cause")[1]  # torchrun's last lines say it too
    assert logged(folder) == pytest.approx(logged(uninterrupted), rel=SAME)
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob(".tmp-*"))


def test_shares_are_the_batch(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 40 * 50 * 3, dtype=np.uint8)
    bank, data = Bank(("a.png",), ((40, 50, 3),), pixels), DataConfig(crop=16, batch=6)
    whole = Sampler(bank, data, NoiseConfig(), seed=3)
    noisy, clean = whole.batch(*whole.crops(7))
    shares = [Processes(rank, 3).share(6) for rank in range(3)]
    assert [sample for share in shares for sample in share] == list(range(6))
    parts = [Sampler(bank, data, NoiseConfig(), seed=3, share=share) for share in shares]
    for one, other in zip((noisy, clean), zip(*(p.batch(*p.crops(7)) for p in parts), strict=True), strict=True):
        assert torch.equal(one, torch.cat(other))


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(config: Path, tmp_path: Path) -> None:
    asked = Asked(config, None, None, None, [], tmp_path / "run", None, None, ["data.batch=4"])
    with pytest.raises(InputError, match=r"data.batch: expected a multiple of torchrun's 3 processes, found 4"):
        _plan(asked, 3)
    assert _plan(replace(asked, changes=["data.batch=6"]), 3).settings.data.batch == 6
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.batch=3", "data.batch: expected a multiple of torchrun's 2 processes, found 3"),
        ("data.batch=0", "data.batch: expected at least 1"),
        ("data.folders=/nowhere", "expected a folder of images"),
        ("run.precision=fp16", "expected a CUDA GPU"),
        ("optimizer.lr=1e30", "expected a finite loss"),
    ],
)
def test_an_error_is_one_line_from_one_process(config: Path, tmp_path: Path, change: str, said: str) -> None:
    if torch.cuda.is_available() and "fp16" in change:
        pytest.skip("fp16 works here")
    code, _, err = completed("--config", config, "--output", tmp_path / "run", "--set", change)
    assert code != 0
    assert len(errors(err)) == 1
    assert said in errors(err)[0]
    assert err.count("Traceback") == 1  # torchrun's own


@pytest.mark.slow
def test_a_run_goes_on_with_two_then_one_then_two(
    config: Path, alone: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    folder = tmp_path / "run"
    assert completed("--config", config, "--output", folder, "--steps", 6, *RATE)[0] == 0
    assert train("--resume", folder, "--steps", 12) == 0
    assert completed("--resume", folder, "--steps", 18)[0] == 0
    assert logged(folder) == pytest.approx({s: logged(alone)[s] for s in range(1, 19)}, rel=SAME)
    assert state(folder)["step"] == 18


@pytest.mark.slow
def test_muon_trains_in_two_processes_as_in_one(config: Path, tmp_path: Path, train: Train, logged: Logged) -> None:
    arguments = ("--config", config, "--steps", 10, "--set", "optimizer.kind=muon", *RATE)
    assert completed(*arguments, "--output", tmp_path / "two")[0] == 0
    assert train(*arguments, "--output", tmp_path / "one") == 0
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=SAME)


@pytest.mark.slow
def test_three_processes_share_the_validation_and_begin_at_released_weights(
    config: Path, alone: Path, tmp_path: Path, train: Train, logged: Logged
) -> None:
    (tmp_path / "holdout.txt").write_text("2.png\n3.png")
    changes = ["data.batch=3", f"data.holdout={tmp_path / 'holdout.txt'}", "optimizer.loss=l1", "optimizer.ema=0.0"]
    changes += ["model.offset_transfer=true", "optimizer.clip_norm=0.0", "run.log_every=4"]
    sets = [*RATE, *(word for change in changes for word in ("--set", change))]
    begin = ("--init", alone / "weights.safetensors", "--steps", 10)
    assert completed("--config", config, "--output", tmp_path / "three", *begin, *sets, processes=3)[0] == 0
    assert train("--config", config, "--output", tmp_path / "one", *begin, *sets) == 0
    assert list(logged(tmp_path / "three")) == [4, 8]
    for key, near in (("loss", SAME), ("psnr_sigma25", 1e-5), ("psnr_sigma50", 1e-5)):
        assert logged(tmp_path / "three", key) == pytest.approx(logged(tmp_path / "one", key), rel=near)


@pytest.mark.slow
def test_minutes_end_all_at_one_step(config: Path, tmp_path: Path, logged: Logged, state: State) -> None:
    code, out, err = completed("--config", config, "--output", tmp_path / "run", "--steps", 0, "--minutes", 0.1)
    assert code == 0, err
    assert state(tmp_path / "run")["step"] == max(logged(tmp_path / "run"))
    assert f"step {state(tmp_path / 'run')['step']}: finished" in out


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_loses_what_came_after_the_checkpoint(
    config: Path, alone: Path, tmp_path: Path, train: Train, logged: Logged, state: State, rank: int
) -> None:
    folder = tmp_path / "run"
    every = ("--set", "run.checkpoint_every=1")
    with torchrun("--config", config, "--output", folder, "--steps", 10_000, *every, *RATE) as process:
        wait_for(lambda: (folder / "checkpoint.pt").exists() and len(logged(folder)) >= 5)
        workers = children(process.pid)
        assert with_pid(workers[rank], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert not any(with_pid(worker, 0) for worker in workers)
    assert len(errors(err)) == (1 if rank else 0)  # the first speaks, unless it was the one
    assert "SIGKILL" in err.split("Root Cause")[1]
    kept = state(folder)["step"]
    assert train("--resume", folder, "--steps", kept + 2) == 0
    assert logged(folder) == pytest.approx({s: logged(alone)[s] for s in range(1, kept + 3)}, rel=SAME)


@pytest.mark.slow
def test_a_killed_torchrun_leaves_no_process_behind_and_the_state_saved(
    config: Path, tmp_path: Path, logged: Logged, state: State
) -> None:
    folder = tmp_path / "run"
    with torchrun("--config", config, "--output", folder, "--steps", 10_000, *RATE) as process:
        wait_for(lambda: (folder / "log.jsonl").exists() and len(logged(folder)) >= 3)
        workers = children(process.pid)
        process.kill()
        out, _ = process.communicate(timeout=60)  # until the last of them has closed its end
        wait_for(lambda: not any(with_pid(worker, 0) for worker in workers))
    assert f"step {state(folder)['step']}: stopped" in out
