"""Training steps as a CUDA graph against the same steps without one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from train import loop
from train.checkpoint import read_checkpoint
from train.config import TrainConfig, from_dict
from train.data import Bank
from train.graph import WARM_UP, GraphedStep
from train.loop import Trainer
from train.processes import ALONE
from train.run import make_fabric

SIDE, STEPS = 48, WARM_UP + 7


def settings(**run: object) -> TrainConfig:
    """The rate rises at every step, so that one that a graph had kept would show."""
    values = {
        "data": {"crop": 32, "batch": 3},
        "optimizer": {"lr": 1e-3, "warmup": 2 * STEPS, "ema": 0.9},
        "run": {"steps": STEPS, "precision": "fp32", "log_every": 1, "validation_crop": 32, **run},
    }
    return from_dict(values, "test")


def trainer(folder: Path, config: TrainConfig) -> Trainer:
    pixels = np.random.default_rng(0).integers(0, 256, SIDE * SIDE * 3, dtype=np.uint8)
    bank = Bank(("random",), ((SIDE, SIDE, 3),), pixels)
    return Trainer(config, folder, bank, bank, make_fabric(config, ALONE))


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_replayed_steps_are_the_steps(tmp_path: Path, precision: str, tolerance: float) -> None:
    graphed = trainer(tmp_path / "a", settings(precision=precision))
    plain = trainer(tmp_path / "b", settings(precision=precision, cuda_graph=False))
    assert isinstance(graphed._update, GraphedStep)
    assert not isinstance(plain._update, GraphedStep)
    before = {name: value.clone() for name, value in plain.released.state_dict().items()}
    for step in range(STEPS):
        graphed.train_once(*graphed.sampler.crops(step))
        plain.train_once(*plain.sampler.crops(step))
    losses = [torch.stack(t.losses).cpu().numpy() for t in (graphed, plain)]
    assert len(set(losses[0])) == STEPS  # each step's own, not the last replay's memory
    np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance)
    for ours, theirs in ((graphed.network, plain.network), (graphed.released, plain.released)):
        moved = difference = 0.0
        for name, value in theirs.state_dict().items():
            moved += float((value - before[name]).square().sum())
            difference += float((value - ours.state_dict()[name]).square().sum())
        assert moved > 0
        assert (difference / moved) ** 0.5 < 0.1  # Adam turns rounding near 0 into whole steps


@pytest.mark.gpu
def test_a_graphed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, first, second = (trainer(tmp_path / name, settings(steps=n)) for name, n in (("w", 18), ("f", 9), ("s", 18)))
    assert whole.run()
    assert first.run()
    second.restore(read_checkpoint(tmp_path / "f"))
    assert second.step == 9
    assert second.run()
    ends = [float(t._mean()) if t.losses else t.best for t in (whole, second)]
    assert ends[1] == pytest.approx(ends[0], rel=1e-2)


def test_there_is_no_graph_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loop, "GraphedStep", None)  # would not be called with anything
    t = trainer(tmp_path, settings(steps=2))
    assert t.run()
    assert t.rate.item() == pytest.approx(t.config.optimizer.rate(1))
