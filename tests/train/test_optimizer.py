"""Muon's steps against their definition, and that Adam's are torch's."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from train.config import OptimizerConfig
from train.optimizer import FEWEST, MOMENTUM, RMS, make_optimizer, orthogonal

Train = Callable[..., int]
State = Callable[[Path], dict[str, Any]]
OneError = Callable[[], str]
SHAPES = [(32, 288), (216, 288), (64, 64), (128, 32), (256, 2304), (32, 288), (9, 8)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def five_iterations(matrix: Tensor) -> Tensor:
    """Newton-Schulz as Jordan et al. state it, in double precision."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    found: Tensor = x
    return found


def network() -> nn.Sequential:
    """Layers whose kernels are wide, tall, and too narrow for Muon; in the order that training on a CPU has them."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 8, 1), nn.Conv2d(8, 3, 1))
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
    return layers


def backward(layers: nn.Module, seed: int) -> None:
    layers.zero_grad()
    layers(normal(2, 3, 9, 9, seed=seed)).square().mean().backward()


def test_singular_values_are_brought_near_to_1_and_vectors_stay() -> None:
    matrices = [normal(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        assert found.shape == matrix.shape
        torch.testing.assert_close(found.double(), five_iterations(matrix), rtol=0, atol=2e-5)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        seen = left.T @ found.double() @ right.T
        assert (seen - seen.diagonal().diag()).abs().max() < 1e-4
        small = values < 0.01 * values.norm()
        assert seen.diagonal()[~small].min() > 0.6
        assert seen.diagonal().max() < 1.25


@pytest.mark.parametrize("size", [1e-12, 1e-15, 1e-18, 1e-20, 1e-24, 1e-30, 1e-38, 1e12])
def test_whatever_its_size_a_gradient_makes_a_step_of_no_more_than_1(size: float) -> None:
    for shape in ((32, 288), (256, 2304), (9, 8)):
        found = orthogonal([size * normal(*shape)])[0]
        assert found.isfinite().all()
        assert torch.linalg.svdvals(found).max() < 1.25


def test_a_gradient_of_a_trillionth_still_makes_a_whole_step() -> None:
    assert torch.linalg.svdvals(orthogonal([1e-13 * normal(8, 72)])[0]).min() > 0.5


def test_steps_take_all_of_fp32_and_the_rest_of_training_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(matrices: list[Tensor]) -> list[Tensor]:
        seen.append(torch.get_float32_matmul_precision())
        return orthogonal(matrices)

    monkeypatch.setattr("train.optimizer.orthogonal", noted)
    kernel = nn.Parameter(normal(8, 8, 3, 3))
    kernel.grad = normal(8, 8, 3, 3, seed=1)
    optimizer = make_optimizer([kernel], OptimizerConfig(kind="muon"), fused=False, graphed_on=None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        optimizer.step()
        assert (seen, torch.get_float32_matmul_precision()) == (["highest"], "high")
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_layer_that_gets_no_more_gradients_comes_to_rest() -> None:
    layer = nn.Conv2d(16, 16, 3, bias=False)
    optimizer = make_optimizer(layer.parameters(), OptimizerConfig(kind="muon", lr=1e-3), fused=True, graphed_on=None)
    layer.weight.grad = 1e-4 * normal(16, 16, 3, 3)
    for step in range(2000):
        optimizer.step()
        layer.weight.grad.zero_()
        if step == 1900:
            before = layer.weight.detach().clone()
    assert layer.weight.isfinite().all()
    assert torch.equal(layer.weight, before)


def test_directions_without_a_gradient_stay_without_a_step() -> None:
    thin = normal(64, 3) @ normal(3, 576, seed=1)
    for matrix in (thin, torch.zeros(64, 576)):
        found = orthogonal([matrix])[0]
        assert found.isfinite().all()
        assert (torch.linalg.svdvals(found)[3:] < 1e-3).all()


@pytest.mark.parametrize("fused", [True, False])
def test_kernels_step_by_their_momentum_made_orthogonal_and_the_rest_by_adam(fused: bool) -> None:
    ours, theirs = network(), network()
    config = OptimizerConfig(kind="muon", lr=1e-2)
    muon = make_optimizer(ours.parameters(), config, fused=fused, graphed_on=None)
    adam = torch.optim.Adam(theirs.parameters(), 1e-2, (config.beta1, config.beta2), config.eps)
    kernels = {n for n, p in ours.named_parameters() if p.ndim == 4 and min(p.shape[0], p[0].numel()) >= FEWEST}
    assert kernels == {"0.weight", "1.weight", "2.weight"}
    momenta: dict[str, Tensor] = {}
    for step in range(3):
        backward(ours, step)
        before = {name: p.detach().clone() for name, p in ours.named_parameters()}
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
        muon.step()
        adam.step()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            if name not in kernels:
                torch.testing.assert_close(p, q)
                continue
            momenta[name] = MOMENTUM * momenta.get(name, torch.zeros(())) + (1 - MOMENTUM) * p.grad
            ahead = ((1 - MOMENTUM) * p.grad + MOMENTUM * momenta[name]).flatten(1)
            tall = len(ahead) > ahead.shape[1]
            direction = five_iterations(ahead.T).T if tall else five_iterations(ahead)
            length = RMS * 1e-2 * max(ahead.shape) ** 0.5
            torch.testing.assert_close(
                before[name] - p, (length * direction).float().reshape(p.shape), atol=2e-5, rtol=0
            )


def test_a_kernels_step_waits_for_no_value_on_the_gpu() -> None:
    """Or no CUDA graph could hold it. Without a GPU: tensors that have none, on a device that is not there."""
    with FakeTensorMode():
        kernels = [
            nn.Parameter(torch.empty(s, device="cuda")) for s in ((32, 32, 3, 3), (216, 32, 3, 3), (64, 8, 2, 2))
        ]
        config = OptimizerConfig(kind="muon")
        optimizer = make_optimizer(kernels, config, fused=True, graphed_on=torch.device("cuda"))
        for _ in range(2):
            for kernel in kernels:
                kernel.grad = torch.empty_like(kernel)
            optimizer.step()
        assert optimizer.state[kernels[0]]["momentum"].device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            kernels[0].norm().item()


def test_a_steps_size_is_that_of_the_rate_whatever_the_gradients() -> None:
    layer = nn.Conv2d(64, 64, 3, bias=False)
    optimizer = make_optimizer(layer.parameters(), OptimizerConfig(kind="muon", lr=1e-3), fused=True, graphed_on=None)
    for size in (1e-6, 1.0, 1e6):
        before = layer.weight.detach().clone()
        layer.weight.grad = size * normal(64, 64, 3, 3)
        optimizer.step()
        assert float((layer.weight.detach() - before).square().mean().sqrt()) == pytest.approx(RMS * 1e-3, rel=0.3)


def test_a_state_goes_on_in_another_optimizer() -> None:
    one = network()
    first = make_optimizer(one.parameters(), OptimizerConfig(kind="muon"), fused=True, graphed_on=None)
    backward(one, 0)
    first.step()
    other = copy.deepcopy(one)
    second = make_optimizer(other.parameters(), OptimizerConfig(kind="muon"), fused=True, graphed_on=None)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for layers, optimizer in ((one, first), (other, second)):
        backward(layers, 1)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_of_muon_resumes_to_the_bit(config: Path, train: Train, state: State, tmp_path: Path) -> None:
    muon = ("--config", config, "--set", "optimizer.kind=muon")
    assert train(*muon, "--output", tmp_path / "whole") == 0
    assert train(*muon, "--steps", 3, "--output", tmp_path / "run") == 0
    assert train("--resume", tmp_path / "run", "--steps", 6) == 0
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "run")
    assert all(torch.equal(value, resumed["network"][name]) for name, value in whole["network"].items())
    kept = [moments for moments in whole["optimizer"]["state"].values() if moments.keys() == {"momentum"}]
    assert len(kept) == 46  # all but the two at the network's ends


def test_a_run_keeps_to_its_optimizer(
    config: Path, halfway: Path, train: Train, one_error: OneError, tmp_path: Path
) -> None:
    run = shutil.copytree(halfway, tmp_path / "run")
    assert train("--resume", run, "--set", "optimizer.kind=muon") == 2
    assert f"optimizer.kind: expected adam, as {run} has it, found muon: leave it out, or begin" in one_error()
    assert train("--config", config, "--set", "optimizer.kind=muon", "optimizer.weight_decay=0.1") == 2
    assert "optimizer.weight_decay: expected 0 with optimizer.kind = muon, found 0.1" in one_error()
