"""Operands for the op's tests, and TensorRT's Python package as far as a CPU has it."""

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from plugins import nvrtc, op
from tests.plugins.tensorrt_build import ARCH, compile_once
from tests.plugins.tensorrt_double import as_tensorrt

Operands = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def operands() -> Callable[..., Operands]:
    """make(n, c, groups, o, h, w, reach=3, dtype=float64, seed=0): x, offset_mask, weight, bias.

    Offsets reach as many pixels beyond a tap, in every direction, and stay 0.2 away from whole pixels, where bilinear
    interpolation has no derivative.
    """

    def make(
        n: int,
        c: int,
        groups: int,
        o: int,
        h: int,
        w: int,
        *,
        reach: int = 3,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Operands:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        moves = (n, op.offset_channels(groups), h, w)
        whole = torch.randint(-reach, reach, moves, generator=g)
        offset = whole + 0.2 + 0.6 * torch.rand(moves, generator=g, dtype=torch.float64)
        logits = normal(n, op.mask_channels(groups), h, w)
        x, weight, bias = normal(n, c, h, w), normal(o, c, 3, 3) / 3, normal(o)
        return x.to(dtype), torch.cat((offset, logits), 1).to(dtype), weight.to(dtype), bias.to(dtype)

    return make


@pytest.fixture(scope="module")
def trt() -> Iterator[ModuleType]:
    """tensorrt-lean in the place of `tensorrt`."""
    with as_tensorrt() as module:
        yield module


@pytest.fixture
def qdp(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The ahead-of-time plugin, registered for `ARCH`."""
    monkeypatch.setattr(nvrtc, "compile_kernel", compile_once)
    monkeypatch.delenv("SADNET_CUDA_ARCH", raising=False)
    module = importlib.import_module("plugins.tensorrt_qdp")
    module.register(ARCH)
    return module
