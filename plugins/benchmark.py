"""Time of the op on a GPU at SADNet's four layers: our kernels, torchvision's and NVIDIA's, and the best possible.

    python plugins/benchmark.py --size 480x320 1920x1080 3840x2160 --json docs/results/op.json
    python plugins/benchmark.py --nvidia-plugin TensorRT/plugin/modulatedDeformConvPlugin

Each is timed with all that it needs to give what ours gives: torchvision's op with the mask's sigmoid before it and the
activation after it; and where the network's tensors are channels-last, with the passes that bring them into its own
order and y back. `--nvidia-plugin` names the sources of TensorRT's ModulatedDeformConv2d plugin: its kernel writes the
columns, cuBLAS multiplies them; sigmoid, bias and activation are PyTorch's.

Best possible: the bytes of inputs and output at the rate of a large copy, or the multiplications at the rate of a large
matrix product of the same type, whichever takes longer; both rates are measured first. Several sets of inputs are used
in turn, four times the GPU's L2 cache together, so that no run finds its own there. Two tables, then one JSON line.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common import cli
from common.errors import DependencyError, InputError
from common.files import check_free, write_whole
from common.padding import MULTIPLE
from plugins import nvrtc, op
from plugins.launch import Layout, Precision

with cli.needs("dev", __name__):
    import torch
    import torch.nn.functional as F
    import torchvision
    from torch import Tensor

    from plugins.contenders import Contender, NvidiaPlugin, Tensors, contenders

LEAD = 1_000_000
"""Cycles, about half a millisecond, that the GPU spins before each timed run, while the run is being queued."""
WARM_UP = 2
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
ORDERS: dict[Layout, torch.memory_format] = {"linear": torch.contiguous_format, "hwc8": torch.channels_last}
OFFSETS = {"smooth": 16, "noisy": 1}
"""Offsets of 3 pixels (standard deviation) are drawn at every so many pixels, and interpolated between."""

Work = Callable[[], object]
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One of SADNet's deformable convolutions: x and y (1, channels, height, width)."""

    channels: int
    height: int
    width: int

    def bytes_moved(self, itemsize: int) -> int:
        """Each input read once and y written once."""
        maps = 2 * self.channels + op.offset_mask_channels(op.OFFSET_GROUPS)
        weights = self.channels * (op.TAPS * self.channels + 1)
        return (maps * self.height * self.width + weights) * itemsize

    @property
    def flop(self) -> int:
        """Of the product of weights and samples, two each; sampling is not counted."""
        return 2 * op.TAPS * self.channels**2 * self.height * self.width


def shapes(width: int, height: int) -> list[Shape]:
    """The four layers' shapes for an image, padded as the network wants it."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    return [Shape(c, height >> scale, width >> scale) for scale, c in enumerate(nvrtc.SADNET_CHANNELS)]


@dataclass(frozen=True)
class Case:
    """A layer, and the tensors that it is given. offsets: a key of OFFSETS."""

    shape: Shape
    offsets: str
    precision: Precision
    layout: Layout


@dataclass(frozen=True)
class Machine:
    """Where the work runs. seconds: runs a piece of work and says how long it took."""

    device: str
    seconds: Callable[[Work], float]
    cache_bytes: int
    about: dict[str, Any]
    copy_bytes: int = 2**30
    matrix_side: int = 8192


@dataclass(frozen=True)
class Rates:
    """What the machine does at best: bytes read or written, and operations of a matrix product, a second."""

    copy: float
    product: dict[Precision, float]

    def seconds(self, shape: Shape, precision: Precision) -> float:
        """The least that a layer can take."""
        moved = shape.bytes_moved(DTYPES[precision].itemsize)
        return max(moved / self.copy, shape.flop / self.product[precision])


app = cli.application("Time of the op on a GPU, layer by layer.")


@app.command()
def main(
    size: Annotated[list[str] | None, typer.Option(help="the image's WIDTHxHEIGHT (one or more)")] = None,
    nvidia_plugin: Annotated[Path | None, typer.Option(help="folder with the plugin's .cu files")] = None,
    repeat: Annotated[int, typer.Option(help="timed runs of each")] = 30,
    json_: Annotated[Path | None, typer.Option("--json", help="write the JSON line here too")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing --json file")] = False,
) -> None:
    """Time every kernel at every size; a star marks the fastest of ours."""
    sizes = [cli.parse_size("--size", text) for text in size or ["480x320", "1920x1080", "3840x2160"]]
    if repeat < 1:
        raise InputError(f"--repeat: expected at least 1, found {repeat}")
    if json_:
        check_free(json_, overwrite=overwrite, option="--json")
    plugin = NvidiaPlugin(nvidia_plugin) if nvidia_plugin else None
    machine = cuda_machine()
    if plugin:
        plugin.verify(machine.device)
    rates = measure_rates(machine, repeat)
    rows = [row for width, height in sizes for row in measure(width, height, machine, rates, repeat, plugin)]
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file is as wide as the table
    console.print(details(rows))
    console.print(totals(rows))
    peak = {"copy_gb_s": rates.copy / 1e9, **{f"product_{p}_tflop_s": r / 1e12 for p, r in rates.product.items()}}
    peak = {key: round(value, 1) for key, value in peak.items()}
    line = json.dumps({"date": time.strftime("%Y-%m-%d"), **machine.about, **peak, "repeat": repeat, "rows": rows})
    print(line)
    if json_:
        write_whole(json_, line + "\n", overwrite=overwrite)


# ---- measuring


def cuda_machine() -> Machine:
    """The first CUDA GPU. Raises DependencyError where PyTorch sees none."""
    if not torch.cuda.is_available():
        raise DependencyError("expected a CUDA GPU, found none that PyTorch sees: run this where nvidia-smi lists one")
    gpu = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    known = shutil.which(query[0]) and subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda}
    return Machine("cuda", cuda_seconds, gpu.L2_cache_size, {"gpu": gpu.name, "driver": known or None, **versions})


def cuda_seconds(work: Work) -> float:
    """Time on the GPU alone: the work is queued before the GPU comes to it."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(LEAD)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def in_turn(works: list[list[Work]], seconds: Callable[[Work], float], repeat: int) -> list[list[float]]:
    """Seconds of `repeat` runs of each contender in turn, after a warm-up; works: on each set of inputs."""
    taken: list[list[float]] = [[] for _ in works]
    for turn in range(-WARM_UP, repeat):
        for i, of_sets in enumerate(works):
            needed = seconds(of_sets[turn % len(of_sets)])
            if turn >= 0:
                taken[i].append(needed)
    return taken


def measure_rates(machine: Machine, repeat: int) -> Rates:
    """Medians of a copy and of products of square matrices of random numbers."""

    def median(work: Work) -> float:
        return float(np.median(in_turn([[work]], machine.seconds, repeat)[0]))

    source = torch.zeros(machine.copy_bytes, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    copy = 2 * machine.copy_bytes / median(lambda: target.copy_(source))
    product: dict[Precision, float] = {}
    for precision, dtype in DTYPES.items():
        side = machine.matrix_side
        a, b = (torch.randn(side, side, device=machine.device).to(dtype) for _ in range(2))
        product[precision] = 2 * side**3 / median(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    return Rates(copy, product)


def measure(
    width: int, height: int, machine: Machine, rates: Rates, repeat: int, plugin: NvidiaPlugin | None = None
) -> list[Row]:
    """Rows of all contenders at the four layers of an image, the fastest of ours in each type marked."""
    rows: list[Row] = []
    for shape in shapes(width, height):
        for offsets in OFFSETS:
            for precision in DTYPES:
                same: list[Row] = []
                for layout in ORDERS:
                    found = contenders(shape.channels, shape.height * shape.width, precision, layout, plugin)
                    same += time_contenders(found, Case(shape, offsets, precision, layout), machine, repeat)
                least = rates.seconds(shape, precision) * 1e3
                medians = [row["median_ms"] for row in same if row["by"] == "ours" and "median_ms" in row]
                for row in same:
                    median = row.get("median_ms")
                    row |= {"size": f"{width}x{height}", "least_ms": round(least, 5)}
                    row |= {"of_least": round(least / median, 4)} if median else {}
                    row["best"] = row["by"] == "ours" and median is not None and median == min(medians)
                rows += same
    return rows


def time_contenders(found: list[Contender], case: Case, machine: Machine, repeat: int) -> list[Row]:
    """Rows with median_ms, p5_ms and p95_ms; for what needs more memory than there is, with a note."""
    known: list[Row] | None = None
    with contextlib.suppress(torch.OutOfMemoryError):
        sets = input_sets(case, machine)
        timed = in_turn([[c.prepare(tensors) for tensors in sets] for c in found], machine.seconds, repeat)
        known = [summary(seconds) for seconds in timed]
    sets = []  # their memory is wanted back
    if known is None and len(found) > 1:
        return [row for contender in found for row in time_contenders([contender], case, machine, repeat)]
    shape = case.shape
    what = {"channels": shape.channels, "height": shape.height, "width": shape.width, "offsets": case.offsets}
    what |= {"bytes": shape.bytes_moved(DTYPES[case.precision].itemsize), "flop": shape.flop}
    what |= {"precision": case.precision, "layout": case.layout}
    known = known or [{"note": "out of memory"}]
    return [{**what, "by": c.by, "kernel": c.kernel, **row} for c, row in zip(found, known, strict=True)]


def summary(seconds: list[float]) -> Row:
    values = np.percentile(seconds, (50, 5, 95)) * 1e3
    return {key: round(float(v), 5) for key, v in zip(("median_ms", "p5_ms", "p95_ms"), values, strict=True)}


def input_sets(case: Case, machine: Machine) -> list[Tensors]:
    """As many different x, offset_mask, weight and bias as four of the machine's caches hold, and at least one."""
    c, h, w, apart = case.shape.channels, case.shape.height, case.shape.width, OFFSETS[case.offsets]
    dtype, order, g = DTYPES[case.precision], ORDERS[case.layout], torch.Generator(machine.device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, device=machine.device, dtype=dtype)

    def one() -> Tensors:
        coarse = 3 * normal(1, op.offset_channels(op.OFFSET_GROUPS), -(-h // apart), -(-w // apart))
        moves = F.interpolate(coarse, (h, w), mode="bilinear") if apart > 1 else coarse
        logits = normal(1, op.mask_channels(op.OFFSET_GROUPS), h, w)
        maps = (normal(1, c, h, w), torch.cat((moves, logits), 1), normal(c, c, op.KERNEL, op.KERNEL) / c**0.5)
        x, offset_mask, weight = (t.contiguous(memory_format=order) for t in maps)
        return x, offset_mask, weight, normal(c)

    return [one() for _ in range(max(1, -(-4 * machine.cache_bytes // case.shape.bytes_moved(dtype.itemsize))))]


# ---- what is shown


def details(rows: Iterable[Row]) -> Table:
    """One line a contender, layer and kind of offsets."""
    table = Table("size", "layer", "offsets", "kernel", "median ms", "p5", "p95", "best possible", "of it")
    for row in rows:
        name = f"{row['kernel']}, {row['precision']}{', NHWC' if row['layout'] == 'hwc8' else ''}"
        layer = f"{row['channels']} x {row['height']} x {row['width']}"
        if "median_ms" in row:
            cells = [f"{row[key]:.4f}" for key in ("median_ms", "p5_ms", "p95_ms", "least_ms")]
            cells.append(f"{row['of_least']:.0%}")
        else:
            cells = [row["note"], "", "", f"{row['least_ms']:.4f}", ""]
        table.add_row(row["size"], layer, row["offsets"], name + " *" * row["best"], *cells)
    return table


def totals(rows: list[Row]) -> Table:
    """The four layers together, each by the fastest kernel and order in memory; "-" where one could not be timed."""
    columns = ("ours ms", "of best possible", "torchvision ms", "NVIDIA ms", "torchvision / ours")
    table = Table("size", "offsets", "type", *columns)
    for key in dict.fromkeys((row["size"], row["offsets"], row["precision"]) for row in rows):
        group = [row for row in rows if (row["size"], row["offsets"], row["precision"]) == key]
        ours, torchvision_, nvidia = (fastest(group, by) for by in ("ours", "torchvision", "nvidia"))
        least = sum({row["channels"]: row["least_ms"] for row in group}.values())
        cells = [f"{ms:.3f}" if ms else "-" for ms in (ours, torchvision_, nvidia)]
        part = f"{least / ours:.0%}" if ours else "-"
        ratio = f"{torchvision_ / ours:.2f}" if ours and torchvision_ else "-"
        table.add_row(*key, cells[0], part, *cells[1:], ratio)
    return table


def fastest(rows: list[Row], by: str) -> float | None:
    """Milliseconds of all layers in rows, each by that contender's fastest; None where one has no time."""
    best: dict[int, float] = {}
    for row in rows:
        if row["by"] == by and "median_ms" in row:
            best[row["channels"]] = min(row["median_ms"], best.get(row["channels"], row["median_ms"]))
    return sum(best.values()) if best.keys() == {row["channels"] for row in rows} else None


if __name__ == "__main__":
    cli.run(app, several=("--size",))
