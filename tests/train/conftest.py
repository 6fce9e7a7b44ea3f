"""Tiny photos and a tiny run: 6 steps at 2x16x16, through the command line's own code, in this process."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common import cli
from train.run import app

CONFIG = """
[data]
crop = 16
batch = 2
folders = ["{root}/photos"]
holdout = "{root}/holdout.txt"
cache = "{root}/banks"
[optimizer]
warmup = 2
lr = 1e-3
ema = 0.9
[run]
steps = 6
threads = 1
precision = "fp32"
log_every = 1
validate_every = 1000
validation_crop = 16
"""

Train = Callable[..., int]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration beside its photos, whose bank is shared by all runs."""
    root = tmp_path_factory.mktemp("training")
    (root / "photos").mkdir()
    for seed in range(4):
        small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = cv2.resize(small, (32, 24), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(root / f"photos/{seed}.png"), image)
    (root / "holdout.txt").write_text("3.png")
    (root / "tiny.toml").write_text(CONFIG.format(root=root))
    return root / "tiny.toml"


@pytest.fixture(scope="session")
def train() -> Train:
    """train(*arguments) is `python train/run.py arguments`; returns the exit code."""

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as done:
            cli.run(app, several=("--data", "--set"), argv=[str(argument) for argument in arguments])
        assert isinstance(done.value.code, int)
        return done.value.code

    return run


@pytest.fixture(scope="session")
def uninterrupted(config: Path, train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 6 steps in one go."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train("--config", config, "--output", folder) == 0
    return folder


@pytest.fixture(scope="session")
def halfway(config: Path, train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 3 steps; copy it before going on."""
    folder = tmp_path_factory.mktemp("runs") / "halfway"
    assert train("--config", config, "--output", folder, "--steps", 3) == 0
    return folder


@pytest.fixture(scope="session")
def logged() -> Callable[..., dict[int, float]]:
    """logged(folder, key="loss"): step to value, no step twice."""

    def read(folder: Path, key: str = "loss") -> dict[int, float]:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        values = [(line["step"], line[key]) for line in lines if key in line]
        assert len(dict(values)) == len(values), f"a step twice in {values}"
        return dict(values)

    return read


@pytest.fixture(scope="session")
def state() -> Callable[[Path], dict[str, Any]]:
    """The checkpoint of a run's folder, read without the code under test."""

    def read(folder: Path) -> dict[str, Any]:
        values: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
        return values

    return read


@pytest.fixture
def one_error(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line on stderr."""

    def read() -> str:
        sys.stderr.flush()
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return read
