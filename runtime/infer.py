"""Denoise photos and folders of photos.

    python runtime/infer.py photo.jpg                       # writes photo_denoised.jpg beside it
    python runtime/infer.py photos --output clean           # a folder: same tree, same names
    python runtime/infer.py photo.png --strength 0.7 --overwrite

One bad file never stops the rest: it is named on stderr, and the exit code is 1.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.cli import application, run
from common.errors import InputError, OutputError, SadnetError
from common.images import IMAGE_SUFFIXES, Picture, check_encodable, read_picture, write_picture
from runtime.denoiser import Denoiser, check_strength, check_tile

DEFAULT_ENGINE = Path(__file__).resolve().parent.parent / "assets" / "blind_color.onnx"

app = application("Denoise image files, and folders of them.")


@dataclass
class Plan:
    """What is to be done, known before the model is loaded."""

    jobs: dict[Path, Path] = field(default_factory=dict)
    """Output file -> input file."""
    faults: list[SadnetError] = field(default_factory=list)
    """One for each input that cannot be done, or output that may not be written."""


@app.command()
def infer(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Image files and folders of them.")],
    engine: Annotated[
        Path, typer.Option(help="Model: .onnx, .plan or .safetensors, or a folder of plans.")
    ] = DEFAULT_ENGINE,
    output: Annotated[
        Path | None,
        typer.Option(help="A file for one image, otherwise a folder. Default: beside the input, named *_denoised."),
    ] = None,
    tile: Annotated[int, typer.Option(help="Side of the tiles in pixels, a multiple of 8; 0: automatic.")] = 0,
    strength: Annotated[float, typer.Option(help="0 keeps the input, 1 denoises fully.")] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP outputs, 1 to 100.")] = 95,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
) -> None:
    """Denoise image files, and folders of them; the folder's tree is kept."""
    check_tile(tile)
    check_strength(strength)
    if not 1 <= quality <= 100:
        raise InputError(f"quality: expected 1 to 100, found {quality}")
    plan = make_plan(inputs, output, overwrite=overwrite)
    alone = len(inputs) == 1 and not _is_folder(inputs[0])
    if plan.faults and (alone or (not plan.jobs and len(plan.faults) == 1)):
        raise plan.faults[0]
    faults, notes = list(plan.faults), list[str]()
    seconds = 0.0
    if plan.jobs:
        with Denoiser(engine, tile=tile, threads=threads) as denoiser:
            began = time.perf_counter()
            for target, source in _progress(plan.jobs.items()):
                try:
                    note = _denoise_file(denoiser, source, target, strength, overwrite, quality)
                except SadnetError as error:
                    if alone:
                        raise
                    faults.append(error)
                else:
                    notes += [note] if note else []
            seconds = time.perf_counter() - began
    for line in (*notes, *(f"error: {fault}" for fault in faults)):
        print(" ".join(line.split()), file=sys.stderr)
    done = len(plan.jobs) + len(plan.faults) - len(faults)
    what = f" -> {_printable(next(iter(plan.jobs)))}" if alone else f", {len(faults)} failed" if faults else ""
    print(f"{done} image{'' if done == 1 else 's'} in {seconds:.2f} s ({done / max(seconds, 1e-9):.2f} images/s){what}")
    if faults:
        raise typer.Exit(1)


def make_plan(inputs: list[Path], output: Path | None, *, overwrite: bool) -> Plan:
    """Pair every image file of `inputs` with the file it will be written to.

    A single file goes to `output` itself, unless that is a folder; a folder's files keep their place below it.
    Raises InputError where `output` cannot be what it has to be.
    """
    single = len(inputs) == 1 and not _is_folder(inputs[0])
    if output and not single and os.path.lexists(output) and not _is_folder(output):
        raise InputError(f"{output}: expected a folder to write several images to, found a file")
    for given in inputs:
        if output and _is_folder(given) and os.path.realpath(output) == os.path.realpath(given):
            raise InputError(f"--output {output}: expected another folder than the input's, found the same")
    plan = Plan()
    for given in inputs:
        try:
            for source, target in _pairs(given, output, single):
                if target in plan.jobs:
                    text = f"{source} and {plan.jobs[target]} would both be written to {target}"
                    plan.faults.append(InputError(f"{text}: give them folders of their own"))
                else:
                    plan.jobs[target] = source
        except SadnetError as error:
            plan.faults.append(error)
        except OSError as error:  # a name that is too long, a folder that may not be entered
            plan.faults.append(InputError(f"{given}: expected images, cannot read it: {error.strerror}"))
    sources = {os.path.realpath(source) for source in plan.jobs.values()}
    for target, source in list(plan.jobs.items()):
        if os.path.realpath(target) in sources:
            fault = OutputError(f"{source} would be written over {target}, an input: choose another --output")
        elif not overwrite and os.path.lexists(target):
            fault = OutputError(f"{target} exists already: pass --overwrite to replace it, or choose another --output")
        else:
            continue
        del plan.jobs[target]
        plan.faults.append(fault)
    return plan


def _pairs(given: Path, output: Path | None, single: bool) -> Iterator[tuple[Path, Path]]:
    if _is_folder(given):
        folder = given.resolve()
        into = output or folder.parent / f"{folder.name}_denoised"
        found = list(_images_below(given, skip=into))
        if not found:
            raise InputError(f"{given}: expected a folder with images ({_suffixes()}), found none in it")
        for source in found:
            yield source, into / source.relative_to(given)
        return
    if not given.exists():
        raise InputError(f"{given}: expected an image file or a folder, found nothing of that name")
    if given.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{given}: expected an image ({_suffixes()}), found {given.suffix or 'no ending'!r}")
    if output is None:
        yield given, given.with_name(f"{given.stem}_denoised{given.suffix}")
    elif single and not _is_folder(output):
        if output.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(
                f"--output {output}: expected a file name ending in {_suffixes()}, or a folder that exists, "
                f"found {output.suffix or 'no ending'!r}"
            )
        yield given, output
    else:
        yield given, output / given.name


def _images_below(folder: Path, skip: Path) -> Iterator[Path]:
    """Image files in a stable order, without hidden ones, linked folders, and the output of an earlier run."""
    for root, folders, names in os.walk(folder, onerror=_raise):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(here / name) != os.path.realpath(skip)
        )
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield here / name


def _denoise_file(
    denoiser: Denoiser, source: Path, target: Path, strength: float, overwrite: bool, quality: int
) -> str | None:
    """Returns a line about what the output file does not hold, or None."""
    try:
        picture = read_picture(source)  # names the file in what it raises
        try:
            # Before the minutes that a large picture takes, not after them.
            check_encodable(target.suffix, picture.pixels.dtype, picture.alpha is not None)
            denoised = Picture(denoiser.denoise(picture.pixels, strength), picture.alpha, picture.metadata)
            lost = write_picture(target, denoised, overwrite=overwrite, quality=quality)
        except SadnetError as error:
            raise type(error)(f"{source}: {error}") from error
    except MemoryError as error:
        raise InputError(f"{source}: expected a picture that fits into memory, found a larger one") from error
    return f"note: {target} does not keep the metadata of {source} ({', '.join(lost)})" if lost else None


def _progress(jobs: Iterable[tuple[Path, Path]]) -> Iterator[tuple[Path, Path]]:
    jobs = list(jobs)
    console = Console(stderr=True)
    columns = (TextColumn("denoising"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("denoising", total=len(jobs))
        for job in jobs:
            yield job
            bar.advance(task)


def _raise(error: OSError) -> None:
    raise error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # what is wrong with it is told where it is opened
        return False


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")


if __name__ == "__main__":
    run(app)
