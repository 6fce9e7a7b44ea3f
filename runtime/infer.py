"""Denoise photos, videos, and folders of them.

    python runtime/infer.py photo.jpg                         # writes photo_denoised.jpg beside it
    python runtime/infer.py photos --output clean             # a folder: same tree, same names
    python runtime/infer.py 'photos/**/*.tif' --output clean  # a pattern; ** stands for any number of folders
    python runtime/infer.py photos --skip-existing            # goes on where an earlier run stopped

One bad file never stops the rest: it is named on stderr, and the exit code is 1. Ctrl-C and SIGTERM
leave whole files only. Videos need PyAV: pip install -e '.[video]'.
"""

import importlib.metadata
import os
import sys
import unicodedata
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.cli import application, run, terminable
from common.errors import InputError
from common.files import make_folder
from common.images import IMAGE_SUFFIXES
from runtime.denoiser import Denoiser, check_tile
from runtime.jobs import Plan, make_plan
from runtime.models import ASSETS, better_on_gray, bundled_models, model_file, no_models
from runtime.pipeline import Outcome, Settings, Summary, denoise_files
from runtime.tiles import TILE

DEFAULT_ENGINE = ASSETS / "real_color.onnx"
MOST_MEGAPIXELS = 1073
"""OpenCV decodes no more than 2^30 pixels."""

FLICKER = (
    "note: frames are denoised one by one: what is left of strong noise may flicker, which a lower --strength hides"
)

app = application("Denoise images, videos, and folders of them.")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sadnet-trt {importlib.metadata.version('sadnet-trt')}")
        raise typer.Exit


def _list_models(wanted: bool) -> None:
    if wanted:
        models = bundled_models()
        if not models:
            raise no_models()
        width = max(len(model.name) for model in models)
        for model in models:
            default = " (the default)" if model.path == DEFAULT_ENGINE else ""
            print(f"{model.name:<{width}}  {model.noise}{default}")
        raise typer.Exit


@app.command()
def infer(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Images (JPEG, PNG, TIFF, WebP, BMP), videos (pip install -e '.[video]'), folders, 'quoted/**/*.jpg'.",
        ),
    ],
    model: Annotated[str | None, typer.Option(help="A bundled model by its name.")] = None,
    list_models: Annotated[
        bool,
        typer.Option("--list-models", is_eager=True, callback=_list_models, help="Say which noise each is for."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which version this is.")
    ] = False,
    engine: Annotated[
        Path | None, typer.Option(help="A model file of yours: .onnx, .plan or .safetensors, or a folder of plans.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A file for one file, otherwise a folder. Default: beside the file or folder, *_denoised."),
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="Of all images written: jpg, png, tif, webp or bmp. Default: theirs.")
    ] = None,
    strength: Annotated[float, typer.Option(help="0 keeps the input, 1 denoises fully.")] = 1.0,
    depth: Annotated[int | None, typer.Option(help="8: round 16-bit images to 8 bits; default: keep theirs.")] = None,
    quality: Annotated[
        int, typer.Option(help="Of JPEG and WebP images and of videos, 1 to 100; 100 is lossless WebP.")
    ] = 95,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave outputs that exist, and do the rest.")
    ] = False,
    tile: Annotated[
        int, typer.Option(help="Side of the tiles in pixels, a multiple of 8; 0: by the memory that is free.")
    ] = 0,
    max_megapixels: Annotated[
        int, typer.Option(help=f"Refuse larger images before they are decoded; at most {MOST_MEGAPIXELS}.")
    ] = 250,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the network; default: all cores.")] = None,
) -> None:
    """Denoise images, videos, and folders of them; a folder's tree is kept."""
    check_tile(tile)
    if not 1 <= max_megapixels <= MOST_MEGAPIXELS:
        raise InputError(f"--max-megapixels: expected 1 to {MOST_MEGAPIXELS}, found {max_megapixels}")
    if engine and model:
        raise InputError("expected one of --engine and --model, found both")
    if overwrite and skip_existing:
        raise InputError("expected one of --overwrite and --skip-existing, found both")
    settings = Settings(strength, depth, quality, overwrite, skip_existing, max_megapixels * 1_000_000)
    path = model_file(model) if model else engine or DEFAULT_ENGINE
    suffix = f".{file_format.lower()}" if file_format is not None else ""
    if suffix and suffix not in IMAGE_SUFFIXES:
        raise InputError(f"--format: expected jpg, png, tif, webp or bmp, found {file_format!r}")
    plan = make_plan(inputs, output, suffix=suffix, overwrite=overwrite, skip_existing=skip_existing)
    if plan.faults and (plan.alone or (len(plan.faults) == 1 and not plan.jobs and not plan.skipped)):
        raise plan.faults[0]
    summary, name = Summary(), ""
    with _own_stderr() as stderr:
        for fault in plan.faults:
            print(_line(f"error: {fault}"), file=stderr)
        if plan.left_out:
            print(f"note: files of kinds that are not read were left out: {plan.others}", file=stderr)
        if plan.results:
            more = f" and {len(plan.results) - 1} more" if len(plan.results) > 1 else ""
            print(f"note: results of an earlier run were left out: {plan.results[0]}{more}", file=stderr)
        if plan.jobs:
            make_folder(plan.into or plan.jobs[0].target.parent)
            with Denoiser(path, tile=tile, threads=threads) as denoiser:
                name = denoiser.engine.name
                if not tile and denoiser.side < TILE:
                    note = f"note: in tiles of {denoiser.side} pixels, as little memory is free: --tile {TILE} insists"
                    print(note, file=stderr)
                if any(job.video for job in plan.jobs):
                    print(FLICKER, file=stderr)
                    if depth:
                        print("note: --depth is of images, videos keep theirs", file=stderr)
                summary = _denoise(denoiser, plan, settings, _gray_note(path), stderr)
    if plan.alone and summary.faults:
        raise summary.faults[0]
    failed = len(plan.faults) + len(summary.faults)
    print(_line(_told(summary, plan, failed, name)))
    if summary.interrupted is not None:
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def _gray_note(model: Path) -> str | None:
    """What there is to say of gray pictures denoised by `model`."""
    better = better_on_gray(model)
    if better is None:
        return None
    line = f"note: {model.stem} leaves most of a gray picture's noise"
    return line + (f": --model {' or '.join(found.name for found in better)} removes more" if better else "")


def _denoise(denoiser: Denoiser, plan: Plan, settings: Settings, gray_note: str | None, stderr: TextIO) -> Summary:
    """Run the plan with a progress bar on a terminal, and a line on stderr for every fault and note; of gray pictures
    there is one, at the first."""
    console = Console(file=stderr)
    columns = (
        TextColumn("denoising {task.fields[files]}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    total = len(plan.jobs)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("denoising", total=total, files=f"0/{total}")

        def report(outcome: Outcome) -> None:
            nonlocal gray_note
            lines = [f"note: {note}" for note in outcome.notes]
            if outcome.gray and gray_note:
                lines.append(gray_note)
                gray_note = None
            if outcome.fault and not plan.alone:
                lines = [f"error: {outcome.fault}"]
            for line in lines:
                console.out(_line(line), highlight=False)

        def progress(files: float) -> None:
            bar.update(task, completed=files, files=f"{int(files)}/{total}")

        return denoise_files(denoiser, plan.jobs, settings, report=report, progress=progress)


def _told(summary: Summary, plan: Plan, failed: int, engine: str) -> str:
    """The run in one line."""
    videos = sum(job.video for job in plan.jobs)
    kind = "image" if not videos else "video" if videos == len(plan.jobs) else "file"
    line = f"{summary.done} {kind}{'' if summary.done == 1 else 's'}"
    if engine:
        speed = summary.done / max(summary.seconds, 1e-9)
        line += f" in {summary.seconds:.2f} s ({speed:.2f} {kind}s/s; {engine})"
    if skipped := plan.skipped + summary.skipped:
        line += f", {skipped} skipped"
    if failed:
        line += f", {failed} failed"
    if summary.interrupted is not None:
        left = len(plan.jobs) - summary.done - summary.skipped - len(summary.faults)
        line += f", interrupted with {left} left: --skip-existing goes on from here"
        line += f"; {summary.interrupted}, and its video begins again" if summary.interrupted else ""
    elif summary.done and (into := plan.jobs[0].target if plan.alone else plan.into):
        line += f" -> {into}"
    return line


def _own_stderr() -> TextIO:
    """A copy of stderr for what people read: decoders' own messages are kept off the original, see `common.chatter`."""
    try:
        return open(os.dup(sys.stderr.fileno()), "w", buffering=1, errors="backslashreplace")
    except (OSError, ValueError, AttributeError):  # no stderr, or one that is no file
        return open(os.devnull, "w")


def _line(text: str) -> str:
    """One line of what any terminal can show: a file's name may hold line breaks and control codes."""
    text = os.fsencode(" ".join(text.split())).decode(errors="replace")
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter) == "Cc" else letter for letter in text)


if __name__ == "__main__":
    with terminable():
        run(app)
