"""The least time in which a GPU can run the network, layer by layer: what a benchmark's figures are held against.

For every convolution the larger of its bytes over the GPU's memory bandwidth and its operations over the GPU's dense
fp16 peak with fp32 accumulation, summed over the network. Bytes are those of fp16 tensors: input, weights and output
once each, and what is added to the output. All else (activations, concatenation, upsampling, sampling) is taken to be
part of the convolution beside it, at no cost. A faster GPU program than that has to keep features of one layer on the
chip for the next, or compute in a narrower type.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import DependencyError
from plugins import op

WIDTHS = (32, 64, 128, 256)
OFFSET_WIDTH = 32
HALF = 2
"""Bytes of an fp16 value."""
PAPER: dict[str, Any] = {"variant": "paper", "channels": 3, "rsab": True, "offset_transfer": True, "context": True}


@dataclass(frozen=True)
class Layer:
    """A convolution of one image, named as in the weights. values: how many it reads and writes, weights included."""

    name: str
    macs: int
    values: int
    parameters: int

    @property
    def flop(self) -> int:
        """Operations: a multiplication and an addition for each of `macs`."""
        return 2 * self.macs

    @property
    def bytes_moved(self) -> int:
        """Between chip and memory, in fp16."""
        return HALF * self.values


@dataclass(frozen=True)
class Rates:
    """What a GPU does at best. bandwidth: bytes/s; product: fp16 operations/s with fp32 accumulation."""

    bandwidth: float
    product: float
    source: str
    """Where the two figures are from."""

    def seconds(self, layers: Iterable[Layer]) -> float:
        """The least that the layers can take, one after another."""
        return sum(max(layer.bytes_moved / self.bandwidth, layer.flop / self.product) for layer in layers)


# By the name that the driver gives; bandwidth and dense fp16 peak with fp32 accumulation, as NVIDIA states them.
KNOWN = {
    "NVIDIA GeForce RTX 3090": Rates(936e9, 71e12, "data sheet"),
    "NVIDIA GeForce RTX 4090": Rates(1008e9, 165e12, "data sheet"),
    "NVIDIA GeForce RTX 5090": Rates(1792e9, 210e12, "data sheet"),
    "NVIDIA H100 80GB HBM3": Rates(3350e9, 990e12, "data sheet"),
    "NVIDIA H200": Rates(4800e9, 990e12, "data sheet"),
}


def measured_rates(repeat: int = 10) -> Rates | None:
    """Those of the GPU at hand, by a large copy and a large matrix product; None where PyTorch or a GPU is missing."""
    try:
        import torch

        from plugins.benchmark import cuda_machine, measure_rates

        found = measure_rates(cuda_machine(), repeat)
    except (ImportError, DependencyError):
        return None
    torch.cuda.empty_cache()
    return Rates(found.copy, found.product["fp16"], "measured")


def layers(height: int, width: int, config: Mapping[str, Any] | None = None) -> list[Layer]:
    """The convolutions for an image whose sides are multiples of 8, in the order in which they run.

    config: the fields of `train.sadnet.SADNetConfig`, as weights, ONNX files and plans carry them; the paper's colour
    network for those that it lacks.
    """
    config = PAPER | dict(config or {})
    found: list[Layer] = []

    def add(
        name: str, inputs: int, outputs: int, scale: int, kernel: int = 3, *, come_from: int = 0, reads: int = 0
    ) -> None:
        """Output at 1 / 2^scale of the image, input `come_from` scales finer; `reads` more channels at the output's."""
        pixels = (height >> scale) * (width >> scale)
        pixels_in = (height >> scale - come_from) * (width >> scale - come_from)
        weights = inputs * outputs * kernel**2
        values = inputs * pixels_in + (outputs + reads) * pixels + weights + outputs
        found.append(Layer(name, weights * min(pixels, pixels_in), values, weights + outputs))

    def residual_block(name: str, width_in: int, width: int, scale: int) -> None:
        if width_in != width:
            add(f"{name}.conv0", width_in, width, scale, 1)
        add(f"{name}.conv1", width, width, scale)
        add(f"{name}.conv2", width, width, scale, reads=width)

    for scale, width_ in enumerate(WIDTHS):
        if scale:
            add(f"down{scale}", WIDTHS[scale - 1], width_, scale, 2, come_from=1)
        residual_block(f"res{scale + 1}", width_ if scale else config["channels"], width_, scale)

    coarsest, quarter = len(WIDTHS) - 1, WIDTHS[-1] // 4
    if config["context"]:
        add("context.conv0", WIDTHS[-1], quarter, coarsest, 1)
        for branch in range(1, 5):
            add(f"context.conv{branch}", quarter, quarter, coarsest)
        add("context.fusion", 4 * quarter, WIDTHS[-1], coarsest, 1, reads=WIDTHS[-1])

    for scale, width_ in reversed(list(enumerate(WIDTHS))):
        if scale < coarsest:
            add(f"up{scale + 1}", 2 * width_, width_, scale, 2, come_from=-1)
            add(f"dconv{scale + 1}_1", 2 * width_, width_, scale, 1)
        block, offsets = f"dres{scale + 1}", f"offset{scale + 1}"
        if not config["rsab"]:
            residual_block(block, width_, width_, scale)
            continue
        add(f"{offsets}.offset_conv1", width_, OFFSET_WIDTH, scale)
        if config["offset_transfer"] and scale < coarsest:
            add(f"{offsets}.offset_conv2", 2 * OFFSET_WIDTH, OFFSET_WIDTH, scale)
        add(f"{offsets}.offset_conv3", OFFSET_WIDTH, OFFSET_WIDTH, scale)
        offset_mask = op.offset_mask_channels(op.OFFSET_GROUPS)
        add(f"{block}.dcnpack.conv_offset_mask", OFFSET_WIDTH, offset_mask, scale)
        add(f"{block}.dcnpack", width_, width_, scale, reads=offset_mask)
        add(f"{block}.conv1", width_, width_, scale, reads=width_)
    last = {"paper": 1, "official": 3}[config["variant"]]
    add("out", WIDTHS[0], config["channels"], 0, last, reads=config["channels"])
    return found
