"""The roofline counts the layers that the network has, and gives the lower bounds that it is known by."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plugins import benchmark
from runtime.roofline import KNOWN, Layer, Rates, layers, measured_rates
from train.sadnet import ModulatedDeformConv, ResBlock, RSABlock, SADNet, SADNetConfig

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
CONFIGS: list[dict[str, Any]] = [
    {},
    {"variant": "official"},
    {"channels": 1},
    {"context": False},
    {"offset_transfer": False},
    {"rsab": False, "offset_transfer": False, "context": False},
]
SIZES = {"480x320": (320, 480), "1920x1080": (1080, 1920), "3840x2160": (2160, 3840)}
LEAST_MS = {  # fp16, the whole network layer by layer, worked out apart from this code
    "NVIDIA GeForce RTX 3090": (1.44, 19.5, 77.9),
    "NVIDIA GeForce RTX 4090": (0.77, 10.4, 41.7),
    "NVIDIA GeForce RTX 5090": (0.54, 7.2, 28.9),
    "NVIDIA H200": (0.145, 1.96, 7.8),
}
DEFORMABLE_MS = {  # the four deformable layers and their offset convolutions at 1920x1080
    "NVIDIA GeForce RTX 3090": 7.7,
    "NVIDIA GeForce RTX 4090": 4.0,
    "NVIDIA GeForce RTX 5090": 2.8,
    "NVIDIA H200": 0.74,
}


def layers_of(network: SADNet, height: int, width: int) -> list[Layer]:
    """The same list from a run of the network without data."""
    found: list[Layer] = []
    ends = {"out", "context.fusion"}  # what these compute is added to something that has to be read for it
    ends |= {
        name + (".conv1" if isinstance(m, RSABlock) else ".conv2")
        for name, m in network.named_modules()
        if isinstance(m, RSABlock | ResBlock)
    }

    def hook(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            weight, *rest = (p.shape for p in module.parameters(recurse=False))
            parameters = weight.numel() + sum(shape.numel() for shape in rest)
            x, taps = given[0], weight[-1] * weight[-2]
            transposed = isinstance(module, nn.ConvTranspose2d)
            macs = taps * (x.numel() * output.shape[1] if transposed else output.numel() * x.shape[1])
            values = x.numel() + output.numel() + parameters + (output.numel() if name in ends else 0)
            if isinstance(module, ModulatedDeformConv):
                values += (2 + 1) * 9 * 8 * x.shape[2] * x.shape[3]  # of each tap and offset group: y, x and mask
            found.append(Layer(name, macs, values, parameters))

        return note

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | ModulatedDeformConv):
            module.register_forward_hook(hook(name))
    with torch.inference_mode():
        network(torch.zeros(1, network.config.channels, height, width, device="meta"))
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_layers_are_the_networks_own(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = SADNet(SADNetConfig(**config)).eval()
    found = layers(48, 72, network.config.as_dict())
    assert found == layers_of(network, 48, 72)
    assert sum(layer.parameters for layer in found) == sum(p.numel() for p in network.parameters())


def test_default_is_the_papers_colour_network() -> None:
    assert layers(64, 64) == layers(64, 64, SADNetConfig().as_dict())
    assert sum(layer.parameters for layer in layers(8, 8)) == 4_233_955


def test_work_of_the_authors_variant() -> None:
    found = layers(320, 480, {"variant": "official"})
    assert sum(layer.macs for layer in found) == pytest.approx(47.1e9, rel=0.002)
    masks = sum(layer.macs for layer in found if layer.name.endswith("conv_offset_mask"))
    assert masks == pytest.approx(12.7e9, rel=0.004)


@pytest.mark.parametrize("gpu", LEAST_MS)
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_least_times_of_known_gpus(gpu: str, variant: str) -> None:
    for (height, width), expected in zip(SIZES.values(), LEAST_MS[gpu], strict=True):
        found = layers(height, width, {"variant": variant})
        assert KNOWN[gpu].seconds(found) * 1e3 == pytest.approx(expected, rel=0.011)
    deformable = [layer for layer in layers(1080, 1920) if "dcnpack" in layer.name]
    assert len(deformable) == 8
    assert KNOWN[gpu].seconds(deformable) * 1e3 == pytest.approx(DEFORMABLE_MS[gpu], rel=0.016)


def test_documented_figures_are_the_computed_ones() -> None:
    rows = re.findall(r"^\| (\d+)x(\d+) ((?:\| [\d.]+ ){6})\|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) == 4
    for width, height, cells in rows:
        found = layers(int(height), int(width))
        gflop, moved = sum(layer.flop for layer in found) / 1e9, sum(layer.bytes_moved for layer in found) / 1e6
        milliseconds = [f"{KNOWN[gpu].seconds(found) * 1e3:.3g}" for gpu in LEAST_MS]
        assert cells.replace("|", "").split() == [f"{gflop:.0f}", f"{moved:.0f}", *milliseconds]


def test_each_layer_takes_the_longer_of_its_bytes_and_operations() -> None:
    moves, computes = Layer("a", macs=1, values=100, parameters=0), Layer("b", macs=1000, values=1, parameters=0)
    rates = Rates(bandwidth=10, product=4, source="test")
    assert rates.seconds([moves]) == 20
    assert rates.seconds([computes]) == 500
    assert rates.seconds([moves, computes]) == 520


def test_rates_are_measured_where_pytorch_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert measured_rates() is None
    machine = benchmark.Machine("cpu", lambda work: (work(), 0.5)[1], 1, {}, copy_bytes=2**16, matrix_side=32)
    monkeypatch.setattr(benchmark, "cuda_machine", lambda: machine)
    assert measured_rates(repeat=2) == Rates(2 * 2**16 / 0.5, 2 * 32**3 / 0.5, "measured")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert measured_rates() is None


@pytest.mark.gpu
def test_measured_rates_are_near_the_data_sheets() -> None:
    found = measured_rates()
    assert found is not None
    if known := KNOWN.get(torch.cuda.get_device_name()):
        assert 0.5 < found.bandwidth / known.bandwidth < 1.1
        assert 0.4 < found.product / known.product < 2.1  # GeForce: where fp16 sums are allowed, twice
    assert found.bandwidth > 1e11
    assert found.product > 1e12
