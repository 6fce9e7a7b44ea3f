"""The op on CUDA tensors as a user meets it: our kernels chosen and run by PyTorch's dispatcher, compiler and graphs.

Every test runs on a CPU too, where the specification computes the op, so that its own faults show without a GPU.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.images import read_picture
from common.metrics import psnr
from common.padding import pad_to_multiple
from plugins import op, reference
from plugins.torch_op import modulated_deform_conv2d
from train.weights import load_weights

specification: Callable[..., Tensor] = reference.modulated_deform_conv2d
ROOT = Path(__file__).resolve().parents[2]
LAYERS = [(32, 32, 8), (64, 64, 8), (128, 128, 8), (256, 256, 8), (24, 40, 3), (12, 12, 4), (8, 5, 2)]
"""Channels, outputs and offset groups; the last two are not for the channels-last kernel."""
DTYPES = [torch.float32, torch.float16]
BOUND = {torch.float32: 2e-4, torch.float16: 4e-3}
"""What rounding, of coordinates in fp32 and of samples and outputs in fp16, may change of an output of about 1."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return str(request.param)


class Deformed(nn.Module):
    """The op behind the convolution that makes its offsets and mask, as in the network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(channels, op.offset_mask_channels(op.OFFSET_GROUPS), 3, padding=1)
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / channels**0.5)
        self.bias = nn.Parameter(0.3 * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, self.offsets(x), self.weight, self.bias)


def layer(device: str, channels: int = 32) -> Deformed:
    torch.manual_seed(0)
    return Deformed(channels).to(device)


def exact(module: Deformed, x: Tensor) -> Tensor:
    """The layer's output by the specification in fp64, on the offsets that the layer itself makes of x."""
    tensors = (x, module.offsets(x), module.weight, module.bias)
    return specification(*(t.double() for t in tensors))


def image(device: str, dtype: torch.dtype, seed: int = 0, channels: int = 32) -> Tensor:
    return torch.randn(2, channels, 19, 37, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "outputs", "groups"), LAYERS)
def test_values_are_the_specifications_in_any_order_of_memory(
    device: str, channels: int, outputs: int, groups: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    moves = op.offset_mask_channels(groups)
    shapes = ((2, channels, 19, 37), (2, moves, 19, 37), (outputs, channels, 3, 3), (outputs,))
    x, offset_mask, weight, bias = (torch.randn(shape, generator=g).to(device, dtype) for shape in shapes)
    weight /= channels**0.5
    ordered = [t.contiguous(memory_format=memory_format) for t in (x, offset_mask, weight)]
    y = modulated_deform_conv2d(ordered[0], ordered[1], ordered[2], bias, groups, 0.1)
    right = specification(*(t.double() for t in (x, offset_mask, weight, bias)), groups, 0.1)
    assert y.dtype == dtype
    assert (y.double() - right).abs().max() <= BOUND[dtype] * right.abs().max()
    if device == "cuda" and dtype == torch.float16 and channels % 8 == 0 and outputs % 8 == 0:
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_layer_agrees_with_the_specification(device: str, dtype: torch.dtype) -> None:
    module = layer(device).to(dtype)
    compiled = torch.compile(module, fullgraph=True, backend={"cpu": "aot_eager", "cuda": "inductor"}[device])
    x = image(device, dtype)
    with torch.no_grad():
        assert (compiled(x).double() - exact(module, x)).abs().max() < 8 * BOUND[dtype]  # its offsets are its own


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cuda_graph_replays_a_layer_on_new_inputs(device: str, dtype: torch.dtype) -> None:
    module, x, later = layer(device).to(dtype), image(device, dtype), image(device, dtype, seed=1)
    with torch.no_grad():
        y = module(x)  # the first call compiles and chooses a kernel
        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = module(x)
            x.copy_(later)
            graph.replay()
        else:
            y = module(x.copy_(later))
        assert (y.double() - exact(module, later)).abs().max() < 2 * BOUND[dtype]


def test_autocast_runs_the_op_in_half(device: str) -> None:
    module, x = layer(device), image(device, torch.float32)
    half = {"cpu": torch.bfloat16, "cuda": torch.float16}[device]
    with torch.no_grad(), torch.autocast(device, dtype=half):
        y = modulated_deform_conv2d(x.to(half), module.offsets(x), module.weight, module.bias)
    with torch.no_grad():
        right = exact(module, x)
    assert y.dtype == half
    assert (y.double() - right).norm() < 0.03 * right.norm()  # the offsets are made in half too


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_network_keeps_its_psnr(device: str, dtype: torch.dtype) -> None:
    """SADNet, channels-last, against itself in fp32 on a CPU, on a real photo with noise: within 0.01 dB."""
    part = {"cpu": slice(200, 264), "cuda": slice(0, 500)}[device]
    noisy, clean = (
        read_picture(ROOT / f"assets/astronaut_{name}.png").pixels[part, part].transpose(2, 0, 1)[None]
        / np.float32(255)
        for name in ("noisy", "clean")
    )
    side = clean.shape[-1]
    network = load_weights(ROOT / "assets/blind_color.safetensors")
    fed = torch.from_numpy(pad_to_multiple(noisy))
    with torch.inference_mode():
        right = network(fed).numpy()[..., :side, :side]
        network.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fed = fed.to(device, dtype, memory_format=torch.channels_last)
        found = network(fed).float().cpu().numpy()[..., :side, :side]
    decibels = psnr(found, clean) - psnr(right, clean)
    print(f"{dtype} on {device}: {psnr(found, clean):.4f} dB, {decibels:+.5f} dB from fp32 on a CPU")
    assert psnr(right, clean) > psnr(noisy, clean) + 5
    assert abs(decibels) <= 0.01
