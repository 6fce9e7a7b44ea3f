"""PSNR and SSIM of a model on clean images with noise and on real pairs, for weights and what the runtime opens.

    python train/evaluate.py --engine assets/blind_color.onnx --data Kodak24 --sigma 30 50 70
    python train/evaluate.py --engine runs/blind_color/weights.safetensors --data CBSD68 --sigma 50 --protocol float
    python train/evaluate.py --engine runs/real/weights.safetensors --data CC SIDD_Validation
    python train/evaluate.py --engine runs/real/weights.safetensors --data Kodak24 --sigma 0 --camera

Folders that hold pairs are known by their files' names (`train/datasets.py`); their noise is what it is. The protocol
for clean images: 8-bit images in the order of their names; white Gaussian noise from a generator seeded with
1000*sigma + the image's place; `clip8` clips and rounds the noisy image to 8 bits, as a user's file is, `float` does
neither, as most papers do; scores on the output clipped to [0, 1], not quantised, averaged over the images. Sigma 0
tells what a model takes from a clean photo; `--camera` gives each image the noise of a camera (`train/camera.py`) drawn
by its place from the ranges of `train/config.py`, as whole 8-bit levels.
"""

import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from common import cli
from common.errors import InputError
from common.files import check_free, sha256, write_whole
from common.images import IMAGE_SUFFIXES, read_picture
from common.metrics import psnr, ssim
from runtime.denoiser import Denoiser
from runtime.tiles import TILE

with cli.needs("dev", __name__):
    from train.camera import photographed
    from train.config import CameraConfig
    from train.datasets import find, parse
    from train.examples import Example, read
    from train.noise import protocol_noise


TestSet = list[tuple[str, NDArray[np.float32]]]
"""(name, clean image) in the order of the names; see `clean_images`."""


class Protocol(StrEnum):
    """What becomes of the noisy image before it is denoised."""

    CLIP8 = "clip8"
    FLOAT = "float"


def open_denoiser(path: Path, threads: int | None = None) -> Denoiser:
    """Weights, or what else `runtime.engines.open_engine` takes and raises, behind the runtime's padding and tiles.

    The tiles have one size, or the nearest that a plan takes: by the free memory, figures would change with it.
    """
    return Denoiser(path, tile=TILE, threads=threads)


def clean_images(folder: Path) -> TestSet:
    """(name, image) of a test set in the order of the names: (H, W, 3) RGB or (H, W) gray float32 in [0, 1].

    Raises InputError where the folder is missing or holds no image, or one that is not 8-bit.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of clean images, found {'a file' if folder.exists() else 'nothing'}"
        )
    paths = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")),
        key=lambda p: p.name,
    )
    if not paths:
        raise InputError(f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    return read_clean(paths)


def read_clean(paths: Iterable[Path]) -> TestSet:
    """The images of a test set, whose order is the protocol's. Raises InputError for one that is not 8-bit."""
    images = []
    for path in paths:
        pixels = read_picture(path).pixels
        if pixels.dtype != np.uint8:
            raise InputError(f"{path}: expected an 8-bit image, found {pixels.dtype}")
        images.append((path.name, pixels.astype(np.float32) / np.float32(255)))
    return images


def pairs_of(text: str) -> list[Example]:
    """The pairs in the folder of FOLDER or NAME=FOLDER, in the order of their paths; none where it holds clean images.

    Raises InputError where the folder is missing or empty, a pair is incomplete, or there are other sets beside pairs.
    """
    examples: list[Example] = []
    parts = find(text)
    if len(parts) > 1 and any(part.layout.noisy for part in parts):
        found = " and ".join(part.layout.name for part in parts)
        raise InputError(f"{text}: expected one set, found {found}: name a folder for each")
    for part in parts:
        if part.unpaired:
            raise InputError(f"{part.folder}: {part.missing}")
        if part.layout.clean is None:
            raise InputError(f"{part}: its clean images are not public; train/dnd.py denoises it for its server")
        examples += part.examples if part.layout.noisy else ()
    return examples


def check_sigmas(sigmas: list[float]) -> None:
    """Raises InputError for a noise level outside 0 to 255."""
    for sigma in sigmas:
        if not 0 <= sigma <= 255:
            raise InputError(f"--sigma: expected a noise level from 0 to 255, found {sigma:g}")


def evaluate(denoiser: Denoiser, images: TestSet, sigma: float, protocol: Protocol) -> dict[str, Any]:
    """One cell of a table: means over the images, and each image's figures."""
    each, seconds = [], 0.0
    for index, (name, clean) in enumerate(images):
        noisy = protocol_noise(clean, sigma, index, clip8=protocol is Protocol.CLIP8)
        begun = time.perf_counter()
        output = denoiser.denoise(noisy)
        seconds += time.perf_counter() - begun
        each.append({"image": name, "psnr": psnr(output, clean), "ssim": ssim(output, clean)})
    means = {key: float(np.mean([e[key] for e in each])) for key in ("psnr", "ssim")}
    return {"sigma": sigma, "protocol": str(protocol), **means, "seconds": seconds, "images": each}


def evaluate_pairs(denoiser: Denoiser, pairs: Iterable[Example], limit: int | None = None) -> dict[str, Any]:
    """A row of a table for 8-bit pairs, the first `limit` of them: means over them, and each one's figures, of the
    noisy image and of the denoised one."""
    images = islice((image for example in pairs for image in read(example)), limit)
    scaled = ((name, *(np.asarray(i, np.float32) / np.float32(255) for i in pair)) for name, *pair in images)
    return {"protocol": "pairs", **_before_and_after(denoiser, scaled)}


def evaluate_camera(denoiser: Denoiser, images: TestSet) -> dict[str, Any]:
    """The same for clean colour images, each with the noise of a camera that is drawn by its place."""
    config = CameraConfig()
    photos = ((name, photographed(clean, config, index), clean) for index, (name, clean) in enumerate(images))
    return {"protocol": "camera", "camera": asdict(config), **_before_and_after(denoiser, photos)}


def _before_and_after(denoiser: Denoiser, images: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """Of (name, noisy, clean), in [0, 1]."""
    each: list[dict[str, Any]] = []
    seconds = 0.0
    for name, noisy, clean in images:
        begun = time.perf_counter()
        output = denoiser.denoise(noisy)
        seconds += time.perf_counter() - begun
        scores = {"psnr": psnr(output, clean), "ssim": ssim(output, clean)}
        each.append({"image": name, **scores, "noisy_psnr": psnr(noisy, clean), "noisy_ssim": ssim(noisy, clean)})
    means = {key: float(np.mean([e[key] for e in each])) for key in ("psnr", "ssim", "noisy_psnr", "noisy_ssim")}
    return {**means, "seconds": seconds, "images": each}


app = cli.application("PSNR and SSIM of a model on clean images with noise, and on real pairs.")


@app.command()
def main(
    engine: Annotated[Path, typer.Option(help="weights (.safetensors), or a model file of the runtime (.onnx)")],
    data: Annotated[list[str], typer.Option(help="folders of clean 8-bit images or of pairs (one or more)")],
    sigma: Annotated[
        list[float] | None, typer.Option(help="noise levels for clean images, on the scale 0 to 255 (one or more)")
    ] = None,
    camera: Annotated[bool, typer.Option("--camera", help="the noise of cameras on clean colour images")] = False,
    protocol: Annotated[
        Protocol, typer.Option(help="noise clipped and rounded to 8 bits, or neither")
    ] = Protocol.CLIP8,
    json_: Annotated[Path | None, typer.Option("--json", help="write the figures here too")] = None,
    limit: Annotated[int, typer.Option(help="only the first images of each folder; 0: all")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing --json file")] = False,
) -> None:
    """Print tables of PSNR (dB) / SSIM."""
    levels = sigma or []
    check_sigmas(levels)
    if limit < 0:
        raise InputError(f"--limit: expected 0 or more, found {limit}")
    if json_:
        check_free(json_, overwrite=overwrite, option="--json")
    folders = {text: parse(text)[1] for text in data}
    pairs = {folders[text]: found for text in data if (found := pairs_of(text))}
    sets = {folder: clean_images(folder)[: limit or None] for folder in folders.values() if folder not in pairs}
    if bool(sets) != bool(levels or camera):
        wanted = f"noise for the clean images of {next(iter(sets))}" if sets else "none, the pairs have noise"
        raise InputError(
            f"--sigma or --camera: expected {wanted}, found {levels or ('--camera' if camera else 'none')}"
        )
    for folder, images in sets.items() if camera else ():
        for name, image in images:
            if image.ndim < 3 or min(image.shape[:2]) < 3:
                raise InputError(f"--camera: expected colour images of 3x3 pixels or more, found {folder / name}")
    rows: list[dict[str, Any]] = []
    with open_denoiser(engine, threads) as denoiser:
        for folder, images in sets.items() if denoiser.engine.channels == 1 else ():
            for name, image in images:
                if image.ndim > 2:
                    raise InputError(f"{folder / name}: expected a gray image, as {engine} is for those, found colour")
        runs_on = denoiser.engine.name
        title = f"{engine} ({runs_on})"
        white = Table("set", "images", *(f"sigma {s:g}" for s in levels), title=escape(f"{title}, {protocol}"))
        real = Table("set", "images", "noisy", "denoised", title=escape(title))
        with Progress(disable=not sys.stderr.isatty(), transient=True, console=Console(stderr=True)) as progress:
            task = progress.add_task("evaluating", total=len(sets) * (len(levels) + camera) + len(pairs))
            for folder, images in sets.items():
                cells = []
                for level in levels:
                    row = {"set": folder.resolve().name, **evaluate(denoiser, images, level, protocol)}
                    rows.append(row)
                    cells.append(f"{row['psnr']:.2f} / {row['ssim']:.4f}")
                    progress.advance(task)
                if levels:
                    white.add_row(escape(folder.resolve().name), str(len(images)), *cells)
            jobs = [(folder, partial(evaluate_camera, images=images)) for folder, images in sets.items() if camera]
            jobs += [(folder, partial(evaluate_pairs, pairs=p, limit=limit or None)) for folder, p in pairs.items()]
            for folder, job in jobs:
                row = {"set": folder.resolve().name, **job(denoiser)}
                rows.append(row)
                cells = [f"{row[f'{of}psnr']:.2f} / {row[f'{of}ssim']:.4f}" for of in ("noisy_", "")]
                name = row["set"] + (", noise of cameras" if row["protocol"] == "camera" else "")
                real.add_row(escape(name), str(len(row["images"])), *cells)
                progress.advance(task)
    for table in (table for table in (white, real) if table.row_count):
        Console().print(table)
    if json_ is not None:
        result = {"engine": str(engine), "sha256": _sha256(engine), "runs_on": runs_on, "rows": rows}
        write_whole(json_, json.dumps(finite(result), indent=1) + "\n", overwrite=overwrite)


def finite(value: Any) -> Any:
    """JSON knows no infinity (the PSNR of an exact output) and no NaN (the SSIM of a tiny image): null there."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sha256(engine: Path) -> str | dict[str, str]:
    """Of the model file; of each plan in a folder of them."""
    return {plan.name: sha256(plan) for plan in sorted(engine.glob("*.plan"))} if engine.is_dir() else sha256(engine)


if __name__ == "__main__":
    cli.run(app, several=("--data", "--sigma"))
