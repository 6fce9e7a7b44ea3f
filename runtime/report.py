"""What a benchmark tells of its results: the JSON line's entries, the table and the picture that are made of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from common.files import whole_file
from common.padding import MULTIPLE
from runtime.measure import Result
from runtime.roofline import Rates, layers

TIMES = {"median_ms": 50, "p5_ms": 5, "p95_ms": 95}
"""Entries of a row, and the percentiles that they are."""

Row = dict[str, Any]


def to_rows(results: Sequence[Result], width: int, height: int, rates: Rates | None, peers: Sequence[str]) -> list[Row]:
    """One entry of the JSON line for each result at a size; peers: the labels of those that others are compared with.

    Milliseconds, MB of 10^6 bytes, GFLOP of 10^9 operations. Entries that are not measured are left out.
    """
    against = [result for result in results if result.label in peers and not result.note]
    return [to_row(result, width, height, rates, against) for result in results]


def to_row(result: Result, width: int, height: int, rates: Rates | None, peers: Sequence[Result]) -> Row:
    """The entry of one result; see `to_rows`."""
    row: Row = {"engine": result.label, "runs_on": result.name, "size": f"{width}x{height}"}
    if result.note:
        return row | {"note": result.note}
    row |= {"io": result.io, **_summary("", result.latency), **_summary("device_", result.on_device)}
    if result.frames_per_second:
        row["frames_per_s"] = round(result.frames_per_second, 3)
    for where, taken in (("device", result.device_bytes), ("host", result.host_bytes)):
        row |= {} if taken is None else {f"{where}_mb": round(taken / 1e6, 1)}
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    work = layers(height, width, result.config)
    row["gflop"] = round(sum(layer.flop for layer in work) / 1e9, 2)
    row["moved_mb"] = round(sum(layer.bytes_moved for layer in work) / 1e6, 1)
    if rates and result.on_device:
        least = rates.seconds(work)
        row |= {"roofline_ms": round(least * 1e3, 4), "of_roofline": round(least / _median(result.on_device), 4)}
    row["faster_than"] = {peer.label: _ratios(peer, result) for peer in peers if peer is not result}
    return row | ({"alone": True} if result.alone else {})


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds))


def _summary(prefix: str, seconds: list[float]) -> Row:
    return {f"{prefix}{key}": round(float(np.percentile(seconds, q)) * 1e3, 4) for key, q in TIMES.items() if seconds}


def _ratios(slower: Result, faster: Result) -> dict[str, float]:
    pairs = {"engine_only": (slower.on_device, faster.on_device), "end_to_end": (slower.latency, faster.latency)}
    return {key: round(_median(a) / _median(b), 2) for key, (a, b) in pairs.items() if a and b}


def rates_entry(rates: Rates) -> Row:
    """The JSON line's entry of a GPU's rates."""
    return {
        "source": rates.source,
        "bandwidth_gb_s": round(rates.bandwidth / 1e9, 1),
        "fp16_tflop_s": round(rates.product / 1e12, 1),
    }


def tables(rows: Sequence[Row], peers: Sequence[str]) -> list[Table]:
    """Times, each a median and its 5th to 95th percentile; work and memory; and the speed beside the peers'.

    Columns that nobody fills are left out.
    """

    def of(key: str, form: str) -> list[str]:
        return [format(row[key], form) if key in row else "" for row in rows]

    def ratios(peer: str, key: str) -> list[str]:
        found = (row.get("faster_than", {}).get(peer, {}).get(key) for row in rows)
        return [f"{ratio:.2f}" if ratio else "" for ratio in found]

    times = {
        "engine only ms": [_time(row, "device_") for row in rows],
        "end to end ms": [_time(row, "") for row in rows],
        "frames/s": of("frames_per_s", ".4g"),
        "roofline ms": of("roofline_ms", ".3f"),
        "of it": of("of_roofline", ".0%"),
    }
    work = {"GFLOP": "gflop", "moved MB": "moved_mb", "GPU memory MB": "device_mb", "host memory MB": "host_mb"}
    beside = {f"{p}, {key.replace('_', ' ')}": ratios(p, key) for p in peers for key in ("engine_only", "end_to_end")}
    shown = [(None, times), (None, {name: of(key, ".0f") for name, key in work.items()}), ("times faster than", beside)]
    return [_table(title, rows, columns) for title, columns in shown if any(map(any, columns.values()))]


def _table(title: str | None, rows: Sequence[Row], columns: dict[str, list[str]]) -> Table:
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    shown = Table(title=title, title_justify="left")
    shown.add_column("engine", no_wrap=True)
    shown.add_column("size")
    for name in filled:
        shown.add_column(name, justify="right")
    for row, cells in zip(rows, zip(*filled.values(), strict=True), strict=True):
        shown.add_row(escape(row["engine"]), row["size"], *(cell or "-" for cell in cells))
    return shown


def folder_table(rows: Sequence[Row]) -> Table:
    """Of folders, from file to file beside the engine alone; see `runtime.throughput.folder_row`."""
    shown = Table()
    shown.add_column("engine", no_wrap=True)
    shown.add_column("folder")
    columns = ("images", "MP", "engine s", "files s", "pipeline s", "images/s", "of engine", "of CPU time")
    for name in columns:
        shown.add_column(name, justify="right")
    for row in rows:
        seconds = (f"{row[key]:.2f}" for key in ("engine_s", "files_s", "pipeline_s"))
        shares = (f"{row[key]:.1%}" for key in ("of_engine", "of_processor_time"))
        counts = (str(row["images"]), f"{row['megapixels']:.1f}")
        speed = f"{row['pipeline_images_per_s']:.2f}"
        shown.add_row(escape(row["engine"]), escape(row["folder"]), *counts, *seconds, speed, *shares)
    return shown


def _time(row: Row, prefix: str) -> str:
    if f"{prefix}median_ms" not in row:
        return ""
    median, low, high = (row[f"{prefix}{key}"] for key in TIMES)
    digits = 3 if median < 10 else 1
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def remarks(rows: Sequence[Row]) -> list[str]:
    """What runs each engine, and why some could not run."""
    found = [f"{row['engine']}: {row['runs_on']}" for row in rows if row["runs_on"]]
    found += [f"{row['engine']} at {row['size']}: {row['note']}" for row in rows if "note" in row]
    return list(dict.fromkeys(found))


def draw(rows: Sequence[Row], title: str, path: Path, *, overwrite: bool) -> None:
    """A picture of the medians over the size: engine only, end to end, and the roofline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot(xlabel="image", ylabel="ms", xscale="log", yscale="log", title=title)
    for index, engine in enumerate(dict.fromkeys(row["engine"] for row in rows)):
        for key, style, what in (("device_median_ms", "o-", "engine only"), ("median_ms", "s--", "end to end")):
            points = _points(rows, key, engine)
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{index}", label=f"{engine}, {what}")
    if points := _points(rows, "roofline_ms"):
        axes.plot(*zip(*points, strict=True), "k:", label="roofline")
    sizes = {_megapixels(row): row["size"] for row in rows}
    axes.set_xticks(list(sizes), list(sizes.values()))
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    with whole_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150)


def _points(rows: Sequence[Row], key: str, engine: str | None = None) -> list[tuple[float, float]]:
    found = {_megapixels(row): row[key] for row in rows if key in row and engine in (None, row["engine"])}
    return sorted(found.items())


def _megapixels(row: Row) -> float:
    width, height = map(int, row["size"].split("x"))
    return width * height / 1e6
