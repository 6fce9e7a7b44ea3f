"""Speed and memory of models on this machine, beside PyTorch's and beside what the GPU could do at best.

    python runtime/benchmark.py --engine assets/blind_color.onnx --size 480x320 1280x720
    python runtime/benchmark.py --engine sadnet.plan sadnet.onnx --peer assets/blind_color.safetensors --plot speed.png

Engine only: the network on an image that is on the GPU already, by the GPU's clock. End to end: from an 8-bit image in
host memory to one in host memory; an engine whose own images are floats (`--io`) converts it there. Frames/s: the same
for a stream of images, whose transfers and work an engine may overlap. Memory: what loading and warming up took.
`--peer` weights run as a person has them who installs nothing of ours: see `runtime.peers`. GFLOP, GB and the roofline,
the least time that the GPU could take: see `runtime.roofline`.

All run in one process on the same photo, in turn. Tables, then one JSON line; what could not run has a note.

    python runtime/benchmark.py --pipeline photos --engine assets/real_color.onnx --repeat 3

Folders instead: the pictures in them from file to file, beside what the engine alone and their files alone take; "of
engine" is what the first reaches of the second's speed. See `runtime.throughput`.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import cli, machine
from common.errors import DependencyError, InputError, ModelError
from common.files import check_free, write_whole
from runtime.engines import open_engine
from runtime.infer import DEFAULT_ENGINE
from runtime.measure import Contender, measure
from runtime.report import Row, draw, folder_table, rates_entry, remarks, tables, to_rows
from runtime.roofline import KNOWN, Rates, measured_rates
from runtime.throughput import folder_row, measure_folder

PACKAGES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings"),
    *("torch", "torchvision", "triton"),
)
PLOTS = (".png", ".svg", ".pdf")

app = cli.application("Speed and memory of models on this machine.")


@app.command()
def main(
    engine: Annotated[list[Path] | None, typer.Option(help="model file or folder of plans (one or more)")] = None,
    peer: Annotated[Path | None, typer.Option(help="safetensors weights, run in PyTorch with torchvision's op")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile as a peer too; default: on a GPU")
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT (one or more)")] = None,
    pipeline: Annotated[
        list[Path] | None, typer.Option(help="folders of photos instead of sizes: from file to file (one or more)")
    ] = None,
    repeat: Annotated[int, typer.Option(help="timed runs of each")] = 9,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each engine")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the JSON line here too")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the times here: .png, .svg or .pdf")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace existing --json and --plot files")] = False,
) -> None:
    """Time every engine and peer at every size, or every engine on every folder."""
    sizes = [cli.parse_size("--size", text) for text in size or ["480x320"]]
    if repeat < 1:
        raise InputError(f"--repeat: expected at least 1, found {repeat}")
    if pipeline and (size or peer or compile_ or plot):
        raise InputError("--pipeline: expected it without --size, --peer, --compile and --plot, found one of them")
    if compile_ and not peer:
        raise InputError("--compile: expected --peer weights beside it, found none")
    _check_outputs(json_, plot, overwrite)
    paths = engine or [Path(os.path.relpath(DEFAULT_ENGINE))]
    contenders = [Contender(str(path), functools.partial(open_engine, path, threads)) for path in paths]
    if pipeline:
        _measure_folders(contenders, pipeline, repeat, threads, json_, overwrite)
        return
    peers = _peers(peer, threads, compile_) if peer else []
    labels = [contender.label for contender in peers]
    about = describe_machine()
    rates = find_rates(about["gpu"]["name"]) if about["gpu"] else []
    rows: list[Row] = []
    for width, height in sizes:
        with Console(stderr=True).status(f"measuring at {width}x{height}"):
            results = measure([*contenders, *peers], width, height, repeat)
        rows += to_rows(results, width, height, rates[0] if rates else None, labels)
    if all("note" in row for row in rows):
        raise ModelError("; ".join(remarks(rows)[-1:]))
    about |= {"rates": [rates_entry(found) for found in rates], "threads": threads, "repeat": repeat}
    _show([*tables(rows, labels), *map(escape, remarks(rows))], about | {"rows": rows}, json_, overwrite)
    if plot:
        title = f"{about['gpu']['name'] if about['gpu'] else about['cpu']}, {about['date']}"
        draw(rows, title, plot, overwrite=overwrite)


def _measure_folders(
    contenders: list[Contender],
    folders: list[Path],
    repeat: int,
    threads: int | None,
    json_: Path | None,
    overwrite: bool,
) -> None:
    about = describe_machine() | {"threads": threads, "repeat": repeat}
    rows, console = [], Console(stderr=True)
    for folder in folders:
        for contender in contenders:
            what = escape(f"{contender.label} on {folder}")

            def told(done: int, what: str = what) -> None:
                console.print(f"{what}: {done} of {repeat} rounds", highlight=False)

            with console.status(f"measuring {what}"):
                rows.append(folder_row(measure_folder(contender, folder, repeat, told)))
    _show([folder_table(rows), *map(escape, remarks(rows))], about | {"folders": rows}, json_, overwrite)


def _show(shown: list[Table | str], entries: dict[str, Any], json_: Path | None, overwrite: bool) -> None:
    """Tables and remarks for people, then the JSON line, which goes to a file too where one is asked for."""
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file is as wide as the table
    for part in shown:
        console.print(part, highlight=False)
    line = json.dumps(entries)
    print(line)
    if json_:
        write_whole(json_, line + "\n", overwrite=overwrite)


def _check_outputs(json_: Path | None, plot: Path | None, overwrite: bool) -> None:
    """Raise before anything is measured what would be raised after."""
    for option, path in (("--json", json_), ("--plot", plot)):
        if path:
            check_free(path, overwrite=overwrite, option=option)
    if plot and plot.suffix.lower() not in PLOTS:
        raise InputError(f"--plot: expected a file ending in {', '.join(PLOTS)}, found {plot}")
    if plot and not importlib.util.find_spec("matplotlib"):
        raise DependencyError("--plot needs matplotlib, found none: run make dev, or pip install matplotlib")


def _peers(weights: Path, threads: int | None, compiled: bool | None) -> list[Contender]:
    try:
        from runtime.peers import peers
    except ImportError as error:
        raise DependencyError(f"--peer needs PyTorch, found none ({error}): run make dev") from error
    return peers(weights, threads, compiled)


def describe_machine() -> dict[str, Any]:
    """Date, processor, GPU (None without one), driver and the versions of the packages that compute."""
    try:
        gpu = asdict(machine.gpu()) | {"driver": _driver()}
    except DependencyError:
        gpu = None
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cpu: dict[str, Any] = {"cpu": machine.cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    if sys.platform == "linux":  # what other programs leave of it
        cpu |= {"usable_cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 2)}
    return {"date": time.strftime("%Y-%m-%d"), **cpu, "gpu": gpu, "versions": versions}


def _driver() -> str | None:
    """The driver's version, where nvidia-smi is there to tell."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else None


def find_rates(gpu: str) -> list[Rates]:
    """What is known of the GPU: its data sheet's rates, then the measured ones; the roofline is the first's."""
    return [rates for rates in (KNOWN.get(gpu), measured_rates()) if rates]


if __name__ == "__main__":
    cli.run(app, several=("--engine", "--size", "--pipeline"))
