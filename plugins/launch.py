"""Which kernel runs a layer, and how it is launched: for PyTorch, TensorRT, the tests and the benchmark alike.

Every kernel of inference has one entry, `ENTRY`, and one order of arguments: pointers to x, offset_mask,
weight and bias; the int32 scalars n, c, h, w, o and offset groups; the pointer to y (shapes in `plugins.op`).

    layout   types       kernel       tensors
    linear   fp32, fp16  plain.cu     x, offset_mask, y NCHW; weight OIHW: the teacher of the fast ones
    linear   fp32, fp16  linear.cu    x, offset_mask, y NCHW; weight OIHW
    hwc8     fp16        fused.cu     the same four channels-last: x, offset_mask, y NHWC, weight O,3,3,I; tensor cores

Those of training are launched by `plugins/cuda_sampling.py`.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import gcd, isfinite
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError
from plugins import op

Precision = Literal["fp32", "fp16"]
Layout = Literal["linear", "hwc8"]

KERNELS = Path(__file__).resolve().parent / "kernels"
ENTRY = "modulated_deform_conv2d"
SCALARS = ("n", "c", "h", "w", "o", "offset_groups")
TYPES: dict[Precision, str] = {"fp32": "float", "fp16": "__half"}
"""The kernels' SADNET_TYPE for each precision."""

BATCH_LIMIT = 2**16
"""Images: what a grid has in z, and one more."""
PLANE_LIMIT = 2**31
"""Values of a plane (H * W) and of the weight: linear.cu's indices within them are 32-bit."""
IMAGE_LIMIT = 2**32
"""Bytes of one image of x: the fused kernel's offsets within it are 32-bit."""


@dataclass(frozen=True)
class Layer:
    """What a kernel is compiled for: channels of x and of y, and the op's attributes.

    offset_pitch: channels from one pixel of a channels-last offset_mask to the next; 0 is as many as it has
    (TensorRT's HWC8 pads them to a multiple of 8).
    """

    channels: int
    outputs: int
    offset_groups: int = op.OFFSET_GROUPS
    negative_slope: float = op.NEGATIVE_SLOPE
    offset_pitch: int = 0

    def __post_init__(self) -> None:
        if min(self.channels, self.outputs, self.offset_groups) < 1 or self.channels % self.offset_groups:
            raise InputError(
                f"{op.NAME}: expected offset groups that divide the channels, found {self.offset_groups} groups "
                f"for {self.channels} channels and {self.outputs} outputs"
            )
        least = op.offset_mask_channels(self.offset_groups)
        if self.offset_pitch and self.offset_pitch < least:
            raise InputError(f"{op.NAME}: expected an offset_pitch of at least {least}, found {self.offset_pitch}")
        if not isfinite(self.negative_slope):
            raise InputError(f"{op.NAME}: expected a finite negative_slope, found {self.negative_slope}")

    @property
    def pitch(self) -> int:
        return self.offset_pitch or op.offset_mask_channels(self.offset_groups)


@dataclass(frozen=True)
class Tile:
    """How the fused kernel divides a layer (plugins/kernels/tiles.def describes each)."""

    warps: int
    outputs: int
    k_groups: int
    stages: int
    tiles: int
    min_blocks: int

    @property
    def label(self) -> str:
        """16x4 pixels x 64 outputs, and what else sets it apart."""
        k = f", K in {self.k_groups}" if self.k_groups > 1 else ""
        stages = f"{self.stages} stages" if self.stages else f"resident, {self.tiles} tiles"
        return f"16x{self.warps} x {self.outputs}{k}, {stages}"


@dataclass(frozen=True)
class Kernel:
    """One source with its macros, and how much of the work a block takes."""

    source: str
    macros: tuple[tuple[str, str], ...]
    threads: int
    width: int
    """Pixels of a tile across."""
    height: int
    """Pixels of a tile down."""
    tiles: int
    """Tiles that a block takes one after another."""
    output_blocks: int
    """Blocks that share the outputs of a tile."""

    def grid(self, n: Any, h: Any, w: Any) -> tuple[Any, Any, Any]:
        """Blocks in x, y and z for n images of h x w; the sizes may be symbolic."""
        tiles = ((w + (self.width - 1)) // self.width) * ((h + (self.height - 1)) // self.height)
        return (tiles + (self.tiles - 1)) // self.tiles, self.output_blocks, n


def kernels(layer: Layer, precision: Precision, layout: Layout) -> tuple[Kernel, ...]:
    """The kernels that compute the layer, the likeliest to be the fastest first: never empty.

    Raises InputError for what no kernel computes: channels-last fp32, or channels-last fp16 whose channels or outputs
    are no multiples of 8.
    """
    macros = _macros(layer, precision)
    if layout == "linear":
        outputs = 32 if layer.outputs <= 32 else 64
        macros += (("SADNET_OUTPUTS", str(outputs)),)
        width, height = LINEAR_PIXELS[outputs]
        return (Kernel("linear.cu", macros, 256, width, height, 1, -(-layer.outputs // outputs)),)
    if precision != "fp16" or layer.channels % 8 or layer.outputs % 8:
        raise InputError(
            f"{op.NAME}: expected fp16 with channels and outputs in multiples of 8 for the channels-last kernel, "
            f"found {precision} with {layer.channels} channels and {layer.outputs} outputs"
        )
    return tuple(_fused(layer, tile, macros) for tile in tiles(layer))


def teacher(layer: Layer, precision: Precision) -> Kernel:
    """The plain kernel, which the fast ones are tested against: any layer, layout linear."""
    return Kernel("plain.cu", _macros(layer, precision), 128, 128, 1, 1, layer.outputs)


def training(kind: str, offset_groups: int, width: int) -> Kernel:
    """The sampling of training, forward and backward (`plugins/cuda_sampling.py`): a type of CUDA's, and how many
    channels an offset group has. A block takes so many samples, wherever they are."""
    macros = ("SADNET_TYPE", kind), ("SADNET_GROUPS", str(offset_groups)), ("SADNET_WIDTH", str(width))
    return Kernel("training.cu", macros, 256, 1, 1, 1, 1)


LINEAR_PIXELS = {32: (32, 8), 64: (32, 4)}
"""Pixels across and down of a block of linear.cu, by the outputs that it computes (its SADNET_OUTPUTS)."""


def tiles(layer: Layer) -> tuple[Tile, ...]:
    """The ways to divide a layer: tiles.def's for SADNet's own, else one that suits any.

    That one has as many outputs as registers allow beside the samples of a lane, which are the more, the fewer channels
    move together. With an odd number of them even 32 outputs may spill, and the linear kernel may be the better one.
    """
    if layer.channels == layer.outputs and layer.offset_groups == op.OFFSET_GROUPS:
        found = tuple(tile for channels, tile in _table() if channels == layer.channels)
        if found:
            return found
    most = {8: 128, 4: 128, 2: 64, 1: 32}[gcd(layer.channels // layer.offset_groups, 8)]
    outputs = min(-(-layer.outputs // 32) * 32, most)
    return (Tile(warps=4, outputs=outputs, k_groups=1, stages=3, tiles=1, min_blocks=1),)


def _macros(layer: Layer, precision: Precision) -> tuple[tuple[str, str], ...]:
    return ("SADNET_TYPE", TYPES[precision]), ("SADNET_NEGATIVE_SLOPE", f"{float(layer.negative_slope)!r}f")


@cache
def _table() -> tuple[tuple[int, Tile], ...]:
    """tiles.def: (channels, tile) of every line."""
    lines = re.findall(r"^TILE\(([\d, ]+)\)", (KERNELS / "tiles.def").read_text(), re.M)
    rows = [[int(number) for number in line.split(",")] for line in lines]
    return tuple((channels, Tile(*rest)) for channels, *rest in rows)


def _fused(layer: Layer, tile: Tile, macros: tuple[tuple[str, str], ...]) -> Kernel:
    compiled_in = {
        "SADNET_CHANNELS": layer.channels,
        "SADNET_LAYER_OUTPUTS": layer.outputs,
        "SADNET_GROUPS": layer.offset_groups,
        "SADNET_OFFSET_PITCH": layer.pitch,
        "SADNET_TILE": ", ".join(
            map(str, (tile.warps, tile.outputs, tile.k_groups, tile.stages, tile.tiles, tile.min_blocks))
        ),
    }
    macros += tuple((name, str(value)) for name, value in compiled_in.items())
    threads = 32 * tile.warps * tile.k_groups
    return Kernel("fused.cu", macros, threads, 16, tile.warps, tile.tiles, -(-layer.outputs // tile.outputs))
