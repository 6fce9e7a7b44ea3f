"""The paper's tables beside ours: measures the bundled models and writes docs/results.md. `make tables DATA=folder`.

    python train/tables.py --data /data/testsets
    python train/tables.py --data /data/testsets --minutes 10    # goes on when it is called again
    python train/tables.py --data /data/testsets --force         # measures again what it has figures of

DATA is a folder with test sets anywhere below it, in the layouts of `train/layouts.py`. Figures of the bundled models
are measured here, by ONNX Runtime; parameters and multiply-adds are counted on the network; those of the paper and of
others are read from docs/results/published.json, which names their sources. docs/results/tables.json keeps each figure
as soon as it is measured, so that an interrupted run goes on, and one with nothing new takes a moment. It keeps them as
long as their model is bundled, also where DATA has another edition of their set, or none: the page is of DATA's
edition, or else of the last that there was.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common import cli
from common.errors import InputError
from common.files import sha256, write_whole

with cli.needs("dev", __name__):
    from train.cells import PAIRS, Cell, ImageSet, Model, image_sets, kinds_of_noise, measure, models
    from train.cost import cost
    from train.evaluate import finite
    from train.layouts import LAYOUTS
    from train.results_page import Record, page
    from train.sadnet import SADNetConfig

ROOT = Path(__file__).resolve().parent.parent
SIZE = (480, 320)
"""Width and height that Table 7 is for."""

VARIANTS: tuple[Literal["paper", "official"], ...] = ("paper", "official")

app = cli.application("Measure the bundled models on the test sets and write the paper's tables beside them.")


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="folder with test sets anywhere below it")],
    bundled: Annotated[Path, typer.Option("--models", help="folder of the models and their cards")] = ROOT / "assets",
    docs: Annotated[Path, typer.Option(help="folder of results.md and results/*.json")] = ROOT / "docs",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all of them where it is not given")] = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="begin no measurement after so long; 0: none at all")
    ] = math.inf,
    force: Annotated[bool, typer.Option("--force", help="measure again what there are figures of")] = False,
) -> None:
    """Write results.md and results/tables.json, whatever is there."""
    figures = docs / "results" / "tables.json"
    published = _read(docs / "results" / "published.json")
    times = _read(docs / "results" / "benchmark_cpu.json", needed=False)
    ablation = _read(docs / "results" / "ablation.json", needed=False)
    before, known = _kept(figures)
    found = models(bundled)
    sets, why_not = image_sets(data)
    here = {held.name: _set_entry(held) for held in sets} | {name: {"why": why} for name, why in why_not.items()}
    fixed: Record = {"size": f"{SIZE[0]}x{SIZE[1]}", "models": [_model_entry(model) for model in found]}
    with _whose(docs / "results" / "published.json"):
        costs = _costs(published["ablation"]["rows"])

    def record_of(cells: list[Cell]) -> Record:
        entries = _entries(here, before, cells)
        rest = {"costs": costs, "cells": cells, "missing": _missing(found, entries, cells)}
        return fixed | {"sets": entries} | rest

    def write(cells: list[Cell]) -> Record:
        """Both files or, where the page cannot be made, neither."""
        record = record_of(cells)
        with _whose(docs / "results" / "published.json"):
            text = page(record, published, None, None)
        if times:
            with _whose(docs / "results" / "benchmark_cpu.json"):
                text = page(record, published, times, None)
        if ablation:
            with _whose(docs / "results" / "ablation.json"):
                text = page(record, published, times, ablation)
        write_whole(figures, _json(record), overwrite=True)
        write_whole(docs / "results.md", text, overwrite=True)
        return record

    def keep(new: Cell, cells: list[Cell]) -> None:
        _tell(new)
        write(cells)

    # before hours of measuring: what is wrong with the other files is told
    write(measure(found, [], known, threads=threads, seconds=0, again=False, done=keep))
    record = write(measure(found, sets, known, threads=threads, seconds=60 * minutes, again=force, done=keep))
    left = f", {record['missing']} not measured yet: run it again" if record["missing"] else ""
    print(f"wrote {docs / 'results.md'} and {figures}: {len(record['cells'])} figures{left}")


def _kept(path: Path) -> tuple[Record, list[Cell]]:
    """The sets and the cells of tables.json; none where there is no such file."""
    before = _read(path, needed=False)
    sets, cells = before.get("sets", {}), before.get("cells", [])
    if not isinstance(sets, dict) or not all(isinstance(entry, dict) for entry in sets.values()):
        raise InputError(f'{path}: expected "sets" to be an object of objects: remove the file, or restore it')
    if not isinstance(cells, list) or not all(map(_is_cell, cells)):
        raise InputError(
            f'{path}: expected "cells" to be a list of figures as this command writes them, found another thing: '
            "remove the file, or restore it"
        )
    return sets, cells


def _is_cell(cell: Any) -> bool:
    texts = ("model", "model_sha256", "set", "set_sha256", "protocol", "date", "on")
    if not isinstance(cell, dict) or not all(isinstance(cell.get(name), str) for name in texts):
        return False
    pairs = cell["protocol"] == PAIRS
    scores = ("psnr", "ssim", *(("noisy_psnr", "noisy_ssim") if pairs else ()))
    return (
        any(layout.name == cell["set"] for layout in LAYOUTS)
        and isinstance(cell.get("images" if pairs else "sigma"), int | float)
        and all(name in cell and isinstance(cell[name], int | float | None) for name in scores)
    )


@contextlib.contextmanager
def _whose(path: Path) -> Iterator[None]:
    """What is missing in a file of figures, or is of another kind than the page takes, is told as that file's fault."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, RuntimeError) as error:
        raise InputError(f"{path}: expected figures as the page takes them, found: {error!r}") from error


def _entries(here: Record, before: Record, cells: list[Cell]) -> Record:
    """What there is of each set: in DATA, or else what was there when the cells were measured that are kept of it."""
    measured = {(cell["set"], cell["set_sha256"]) for cell in cells}
    kept = {name: entry for name, entry in before.items() if (name, entry.get("sha256")) in measured}
    return {name: kept.get(name, entry) if "why" in entry else entry for name, entry in here.items()}


def _missing(models_: list[Model], entries: Record, cells: list[Cell]) -> int:
    """How many cells the page has no figure for, because nobody has measured them yet."""
    names = ("model", "set", "set_sha256", "protocol", "sigma")
    have = {tuple(cell.get(name) for name in names) for cell in cells}
    wanted = (
        (model.name, name, entry["sha256"], noise["protocol"], noise.get("sigma"))
        for name, entry in entries.items()
        if "why" not in entry
        for model in models_
        for noise in kinds_of_noise(model, entry["channels"], pairs="sizes" not in entry)
    )
    return sum(cell not in have for cell in wanted)


def _read(path: Path, *, needed: bool = True) -> Record:
    """A JSON object; an empty one where the file is missing and not needed."""
    if not needed and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, found: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _json(record: Record) -> str:
    """With a line for each thing of a list, so that a change shows as a line."""
    lines = []
    for key, value in finite(record).items():
        begin, end = ("{", "}") if isinstance(value, dict) else ("[", "]")
        if isinstance(value, dict):
            entries = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
        else:
            entries = [json.dumps(entry) for entry in value] if isinstance(value, list) else []
        held = f"{begin}\n  " + ",\n  ".join(entries) + f"\n {end}" if entries else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {held}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _model_entry(model: Model) -> Record:
    weights = model.path.with_suffix(".safetensors")
    return {
        "name": model.name,
        "noise": model.noise,
        "steps": model.steps,
        "variant": model.config.variant,
        "channels": model.config.channels,
        "sha256": model.sha256,
        "weights_sha256": sha256(weights) if weights.is_file() else "no weights beside it",
    }


def _set_entry(held: ImageSet) -> Record:
    sizes = {} if held.pairs else {"sizes": held.sizes}
    return {"files": len(held.examples), "channels": held.channels, **sizes, "sha256": held.sha256}


def _costs(ablations: list[Record]) -> list[Record]:
    """Of every network of Table 1, in both variants."""
    entries = []
    for variant in VARIANTS:
        for row in ablations:
            config = SADNetConfig(variant, 3, row["rsab"], row["offset_transfer"], row["context"])
            entries.append(config.as_dict() | asdict(cost(config, *SIZE)))
    return entries


def _tell(cell: Cell) -> None:
    noise = f"sigma {cell['sigma']} {cell['protocol']}" if "sigma" in cell else cell["protocol"]
    scores = f"{cell['psnr']:.2f} / {cell['ssim']:.3f}"
    print(f"{cell['model']} {cell['set']} {noise}: {scores} ({cell['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    cli.run(app)
