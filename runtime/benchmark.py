"""Latency of models, from NumPy samples to NumPy samples, beside PyTorch's on the same machine.

    python runtime/benchmark.py --engine assets/blind_color.onnx --size 480x320 --size 1280x720
    python runtime/benchmark.py --engine assets/blind_color.onnx --peer assets/blind_color.safetensors

`--peer` weights run in PyTorch, eager fp32, the deformable convolution by `torchvision.ops.deform_conv2d`: what a
person has who installs nothing of ours (needs `make dev`). All run in one process on the same images,
turn about, so that a machine's other load falls on each alike. A table, then one JSON line.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import cli
from common.errors import DependencyError, InputError, OutputError
from common.files import write_whole
from common.machine import cpu_name
from runtime.engines import Engine, open_engine
from runtime.infer import DEFAULT_ENGINE

app = cli.application("Latency of models on this machine.")


@app.command()
def main(
    engine: Annotated[list[Path] | None, typer.Option(help="model file; repeat for several")] = None,
    peer: Annotated[Path | None, typer.Option(help="safetensors weights, run in PyTorch with torchvision's op")] = None,
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT; repeat for several")] = None,
    repeat: Annotated[int, typer.Option(help="timed runs of each")] = 9,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the JSON line here too")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing --json file")] = False,
) -> None:
    """Time every engine at every size; the last column is the peer's median over the engine's."""
    sizes = [cli.parse_size("--size", text) for text in size or ["480x320"]]
    if repeat < 1:
        raise InputError(f"--repeat: expected at least 1, found {repeat}")
    if json_ and json_.exists() and not overwrite:
        raise OutputError(f"{json_} exists already: pass --overwrite to replace it, or choose another --json")
    engines = {str(path): open_engine(path, threads) for path in engine or [DEFAULT_ENGINE]}
    if peer:
        engines[f"{peer} (torchvision's op)"] = torchvision_peer(peer, threads)
    table = Table("engine", "size", "median ms", "p5", "p95", "megapixels/s", *(["peer / this"] if peer else []))
    rows: list[dict[str, Any]] = []
    for width, height in sizes:
        timed = time_in_turn(engines, width, height, repeat)
        peer_median = float(np.median(list(timed.values())[-1]))
        for label, seconds in timed.items():
            median, low, high = (float(np.percentile(seconds, q)) for q in (50, 5, 95))
            speed = width * height / median / 1e6
            cells = [f"{v * 1e3:.1f}" for v in (median, low, high)]
            ratio = [f"{peer_median / median:.2f}"] if peer else []
            table.add_row(
                escape(f"{label}\n{engines[label].name}"), f"{width}x{height}", *cells, f"{speed:.2f}", *ratio
            )
            figures = {"median_ms": median * 1e3, "p5_ms": low * 1e3, "p95_ms": high * 1e3}
            figures = {key: round(value, 2) for key, value in figures.items()}
            rows.append({"engine": label, "runs_on": engines[label].name, "size": f"{width}x{height}", **figures})
    Console().print(table)
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": threads, "python": platform.python_version()}
    line = json.dumps({"date": time.strftime("%Y-%m-%d"), **machine, "repeat": repeat, "rows": rows})
    print(line)
    if json_:
        write_whole(json_, line + "\n", overwrite=overwrite)


def time_in_turn(engines: dict[str, Engine], width: int, height: int, repeat: int) -> dict[str, list[float]]:
    """Seconds of `repeat` runs of each engine, taken in turn, after two runs that are not counted."""
    images = np.random.default_rng(0).random((1, 3, -(-height // 8) * 8, -(-width // 8) * 8), dtype=np.float32)
    seconds: dict[str, list[float]] = {label: [] for label in engines}
    for turn in range(-2, repeat):
        for label, engine in engines.items():
            fed = images[:, : engine.channels]
            begun = time.perf_counter()
            engine.run(fed)
            if turn >= 0:
                seconds[label].append(time.perf_counter() - begun)
    return seconds


def torchvision_peer(weights: Path, threads: int | None) -> Engine:
    """The network of `weights` in PyTorch, eager, fp32, channels-last on CUDA, with torchvision's own op in it."""
    try:
        import torch

        from plugins.torch_op import torchvision_form
        from runtime.engines.torch import TorchEngine
        from train.sadnet import ModulatedDeformConv
        from train.weights import load_weights
    except ImportError as error:
        raise DependencyError(f"--peer needs PyTorch, found none ({error}): run make dev") from error
    if threads:
        torch.set_num_threads(threads)
    network = load_weights(weights)
    for module in network.modules():
        if isinstance(module, ModulatedDeformConv):
            module.operator = torchvision_form
    if torch.cuda.is_available():
        network = network.cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in stubs
    return TorchEngine(network, network.config.channels)


if __name__ == "__main__":
    cli.run(app, several=("--engine", "--size"))
