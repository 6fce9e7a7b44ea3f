"""How CUDA tensors reach a kernel, on the CPU: everything but the launch, in whose place the specification computes."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins import cuda_driver, launch, op, reference, torch_op
from plugins.torch_op import kernel_form
from tests.plugins.test_gpu_kernels import stand_in

DTYPES = [torch.float32, torch.float16]
LAYERS = [(32, 32, 8), (64, 64, 8), (24, 40, 3), (12, 12, 4), (8, 5, 2)]
"""Channels, outputs and offset groups; the last two are not for the channels-last kernel."""
BOUND = {torch.float32: 2e-4, torch.float16: 4e-3}


class Clock:
    """`torch.cuda.Event`; time passes where a test lets it."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Clock.now

    def elapsed_time(self, end: "Clock") -> float:
        return end.at - self.at


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[launch.Kernel]:
    """The kernels that were launched; the second of those that a layer has is the fastest."""
    kernels: list[launch.Kernel] = []

    def record(kernel: launch.Kernel, *arguments: Any) -> None:
        kernels.append(kernel)
        Clock.now += 1 if kernel in second else 2
        stand_in(kernel, *arguments)

    second = [launch.kernels(launch.Layer(c, c, 8, 0.1), "fp16", "hwc8")[1] for c in (32, 64)]
    monkeypatch.setattr(cuda_driver, "launch", record)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch_op, "_chosen", {})
    return kernels


def operands(
    n: int, c: int, o: int, groups: int, h: int, w: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((n, c, h, w), (n, op.offset_mask_channels(groups), h, w), (o, c, 3, 3), (o,))
    x, offset_mask, weight, bias = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    return x, offset_mask, weight, bias


def shifted(t: Tensor) -> Tensor:
    """The same values, at an address that is no multiple of 16 bytes."""
    return t.new_zeros(t.numel() + 1)[1:].as_strided(t.shape, t.stride()).copy_(t)


def check(y: Tensor, x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, groups: int) -> None:
    right = reference.modulated_deform_conv2d(
        x.double(), offset_mask.double(), weight.double(), bias.double(), groups, negative_slope=0.1
    )
    assert (y.double() - right).abs().max() <= BOUND[x.dtype] * right.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("c", "o", "groups"), LAYERS)
def test_tensors_in_any_order_and_place_reach_a_kernel(
    launched: list[launch.Kernel], c: int, o: int, groups: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    for n, h, w in ((2, 5, 7), (1, 1, 1), (2, 1, 5)):
        x, offset_mask, weight, bias = operands(n, c, o, groups, h, w, dtype)
        x, offset_mask, weight = (t.contiguous(memory_format=memory_format) for t in (x, offset_mask, weight))
        y = kernel_form(shifted(x), offset_mask, weight, shifted(bias), groups, 0.1)
        check(y, x, offset_mask, weight, bias, groups)
    last = dtype == torch.float16 and c % 8 == o % 8 == 0
    assert {kernel.source for kernel in launched} == {"fused.cu" if last else "linear.cu"}


def test_expanded_and_sliced_tensors_reach_a_kernel(launched: list[launch.Kernel]) -> None:
    x, offset_mask, weight, bias = operands(3, 32, 32, 8, 4, 5, torch.float16)
    views = x[:1].expand(3, -1, -1, -1), torch.cat((offset_mask, offset_mask), 1)[:, 216:], weight.flip(0), bias[::1]
    check(kernel_form(*views, 8, 0.1), *views, 8)
    assert launched


def test_the_fastest_kernel_is_found_once_for_sizes_up_to_the_next_power_of_two(launched: list[launch.Kernel]) -> None:
    tensors = operands(1, 32, 32, 8, 4, 5, torch.float16)
    kernels = launch.kernels(launch.Layer(32, 32, 8, 0.1), "fp16", "hwc8")
    kernel_form(*tensors, 8, 0.1)
    assert set(launched) == set(kernels)
    assert launched[-1] == kernels[1]
    launched.clear()
    kernel_form(*tensors, 8, 0.1)
    kernel_form(*operands(1, 32, 32, 8, 6, 5, torch.float16), 8, 0.1)
    assert launched == [kernels[1]] * 2
    kernel_form(*operands(1, 32, 32, 8, 4, 8, torch.float16), 8, 0.1)
    assert len(launched) > 3


def test_nothing_is_timed_while_a_graph_is_captured(
    launched: list[launch.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tensors = operands(1, 32, 32, 8, 4, 5, torch.float16)
    kernel_form(*tensors, 8, 0.1)
    assert launched == [launch.kernels(launch.Layer(32, 32, 8, 0.1), "fp16", "hwc8")[0]]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    kernel_form(*tensors, 8, 0.1)
    assert len(launched) > 2  # what was taken unmeasured is not kept
