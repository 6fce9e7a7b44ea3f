"""enqueue, and its grids. What it computes is compared with the specification where there is a GPU.

Everything before the kernel's launch is tested without, and that a launch without a GPU is an error and no crash.
"""

from collections.abc import Callable
from ctypes import c_uint32
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins import launch, op
from plugins.nvrtc import SADNET_CHANNELS
from plugins.reference import modulated_deform_conv2d
from tests.plugins.v3.driver import (
    ALL_FP16,
    ALL_FP32,
    CHANNELS_LAST,
    COMBINATIONS,
    FAILED_EXECUTION,
    FP16,
    INVALID_ARGUMENT,
    Combination,
    Plugin,
    shapes_of,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.sampled_from(SADNET_CHANNELS),
    n=st.integers(1, 65535),
    h=st.integers(1, 20000),
    w=st.integers(1, 20000),
)
def test_the_grid_is_that_of_launch_py(harness: Any, channels: int, n: int, h: int, w: int) -> None:
    layer = launch.Layer(channels, channels)
    for tile, kernel in zip(launch.tiles(layer), launch.kernels(layer, "fp16", "hwc8"), strict=True):
        grid = (c_uint32 * 3)()
        harness.v3_grid(n, h, w, channels, kernel.width, kernel.height, kernel.tiles, tile.outputs, grid)
        assert tuple(grid) == kernel.grid(n, h, w)


def test_memory_that_is_not_aligned_is_refused(plugin: Plugin) -> None:
    shapes = shapes_of(1, 32, 32, 8, 4, 4)
    for combination, address, bytes_ in ((CHANNELS_LAST, 72, 16), (ALL_FP16, 65, 2), (ALL_FP32, 66, 4)):
        assert plugin.enqueue(shapes, combination, [64, 64, 64, 64, address]) == INVALID_ARGUMENT
        assert f"expected y at a multiple of {bytes_} bytes, found it elsewhere" in plugin.log()


@pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)
def test_no_pixels_are_no_work(plugin: Plugin, combination: Combination) -> None:
    for n, h, w in ((0, 4, 4), (1, 0, 4), (1, 4, 0)):
        shapes = shapes_of(n, 32, 32, 8, h, w)
        assert plugin.shape_change(shapes, combination) == 0
        assert plugin.enqueue(shapes, combination, [0] * 5) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
@pytest.mark.parametrize("channels", SADNET_CHANNELS)
@pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)
def test_without_a_gpu_a_launch_is_an_error(plugin: Plugin, channels: int, combination: Combination) -> None:
    shapes = shapes_of(1, channels, channels, 8, 20, 30)
    assert plugin.configure(shapes, combination) == 0
    assert plugin.shape_change(shapes, combination) == 0
    for tactic in plugin.tactics() or [0]:
        assert plugin.set_tactic(tactic) == 0
        assert plugin.enqueue(shapes, combination, [64] * 5) == FAILED_EXECUTION
        assert "enqueue: the kernel's launch failed: cudaError" in plugin.log()


Operands = Callable[..., tuple[torch.Tensor, ...]]
LAYERS = [(c, c, 8) for c in SADNET_CHANNELS] + [(24, 40, 3), (7, 5, 1), (64, 96, 4)]
Case = tuple[tuple[int, int, int], tuple[int, int, int], float]
"""Channels, outputs and offset groups; batch, height and width; negative slope."""


def compute(made: Plugin, operands: Operands, case: Case, device: str) -> None:
    """Enqueue every format that TensorRT may choose and every tactic of it; compare with the specification in fp64.

    fp16: an error of at most twice that of the specification run in fp16, which rounds the samples too. On a CPU the
    launch must fail, and what the specification gives in the tensors' type stands in for it.
    """
    (channels, outputs, groups), (n, h, w), slope = case
    shapes = shapes_of(n, channels, outputs, groups, h, w)
    for combination in sorted(made.combinations(shapes)):
        dtype = torch.float16 if combination[0][0] == FP16 else torch.float32
        layout = torch.channels_last if combination == CHANNELS_LAST else torch.contiguous_format
        x, offset_mask, weight, bias = (t.to(dtype) for t in operands(n, channels, groups, outputs, h, w))
        right = modulated_deform_conv2d(x.double(), offset_mask.double(), weight.double(), bias.double(), groups, slope)
        rounded = modulated_deform_conv2d(x, offset_mask, weight, bias, groups, slope)
        bound = 1e-5 * right.abs().max().item() + 2 * (rounded - right).abs().max().item()
        inputs = [t.to(device, memory_format=layout) for t in (x, offset_mask, weight)] + [bias.to(device)]
        assert made.configure(shapes, combination) == 0
        for tactic in made.tactics() or [0]:
            y = torch.full(shapes[4], torch.nan, dtype=dtype, device=device).to(memory_format=layout)
            assert made.shape_change(shapes, combination) == 0
            assert made.set_tactic(tactic) == 0
            pointers = [t.data_ptr() for t in (*inputs, y)]
            if device == "cuda":
                stream = torch.cuda.current_stream().cuda_stream
                assert made.enqueue(shapes, combination, pointers, stream) == 0, made.log()
                torch.cuda.synchronize()
            else:
                assert made.enqueue(shapes, combination, pointers) == FAILED_EXECUTION
                y.copy_(rounded)
            error = (y.cpu().double() - right).abs().max().item()
            print(f"{combination[0]} tactic {tactic}: max error {error:.2e}, bound {bound:.2e}")
            assert error <= bound


@pytest.mark.gpu
@pytest.mark.parametrize("slope", [op.NEGATIVE_SLOPE, 1.0])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 37, 53), (1, 64, 96)], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_computes_the_specification(
    make: Callable[..., Plugin],
    operands: Operands,
    layer: tuple[int, int, int],
    size: tuple[int, int, int],
    slope: float,
) -> None:
    compute(make(layer[2], slope), operands, (layer, size, slope), "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
@pytest.mark.parametrize("layer", [LAYERS[0], *LAYERS[4:]], ids=str)
def test_that_test_without_its_gpu(
    make: Callable[..., Plugin], operands: Operands, layer: tuple[int, int, int]
) -> None:
    """So that its own faults show: all of it but the launch."""
    compute(make(layer[2], 0.5), operands, (layer, (2, 9, 7), 0.5), "cpu")
