"""Training steps as a CUDA graph against the same steps without one."""

import math
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
from train.sadnet import SADNet

SIDE, STEPS = 48, WARM_UP + 7


def settings(kind: str = "adam", seams: float = 0.0, **run: object) -> TrainConfig:
    """The rate rises at every step, so that one that a graph had kept would show."""
    values = {
        "data": {"crop": 152 if seams else 32, "batch": 3},
        "optimizer": {"kind": kind, "seams": seams, "lr": 1e-3, "warmup": 2 * STEPS, "ema": 0.9},
        "run": {"steps": STEPS, "precision": "fp32", "log_every": 1, "validation_crop": 32, **run},
    }
    return from_dict(values, "test")


def trainer(folder: Path, config: TrainConfig) -> Trainer:
    pixels = np.random.default_rng(0).integers(0, 256, SIDE * SIDE * 3, dtype=np.uint8)
    bank = Bank(("random",), ((SIDE, SIDE, 3),), pixels)
    return Trainer(config, folder, bank, bank, make_fabric(config, ALONE))


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "seams"), [("adam", 0.0), ("muon", 0.0), ("adam", 0.5)])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_replayed_steps_are_the_steps(
    tmp_path: Path, precision: str, tolerance: float, kind: str, seams: float
) -> None:
    graphed = trainer(tmp_path / "a", settings(kind, seams, precision=precision))
    plain = trainer(tmp_path / "b", settings(kind, seams, precision=precision, cuda_graph=False))
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
        assert distance(ours, theirs.state_dict()) < 0.1 * distance(theirs, before)  # Adam makes steps of rounding


@pytest.mark.gpu
def test_a_graphed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, first, second = (trainer(tmp_path / name, settings(steps=n)) for name, n in (("w", 18), ("f", 9), ("s", 18)))
    assert whole.run()
    assert first.run()
    state = read_checkpoint(tmp_path / "f")
    second.restore(state)
    assert second.step == 9
    assert second.run()
    for ours, theirs, key in ((second.network, whole.network, "network"), (second.released, whole.released, "ema")):
        assert distance(ours, theirs.state_dict()) < 0.1 * distance(theirs, state[key])


def distance(network: SADNet, weights: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((v.cpu() - weights[n].cpu()).square().sum()) for n, v in network.state_dict().items()))


def test_there_is_no_graph_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loop, "GraphedStep", None)  # would not be called with anything
    t = trainer(tmp_path, settings(steps=2))
    assert t.run()
    assert t.optimizer.param_groups[0]["lr"] == t.config.optimizer.rate(1)


@pytest.mark.gpu
def test_fp16_clips_its_gradients_and_runs_without_a_graph(tmp_path: Path) -> None:
    t = trainer(tmp_path, settings(precision="fp16", steps=4))
    assert t.run()
    assert not isinstance(t._update, GraphedStep)
