"""PSNR and SSIM of a model on a folder of clean images, for weights and for what the runtime opens.

    python train/evaluate.py --engine assets/blind_color.onnx --data Kodak24 --sigma 30 50 70
    python train/evaluate.py --engine runs/blind_color/weights.safetensors --data CBSD68 --sigma 50 --protocol float

The protocol: 8-bit images in the order of their names; white Gaussian noise from a generator seeded with
1000*sigma + the image's place; `clip8` clips and rounds the noisy image to 8 bits, as a user's file is, `float` does
neither, as most papers do; scores on the output clipped to [0, 1], not quantised, averaged over the images.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
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
from common.errors import InputError, OutputError
from common.files import sha256, write_whole
from common.images import IMAGE_SUFFIXES, read_picture
from common.metrics import psnr, ssim
from runtime.denoiser import Denoiser
from runtime.engines import Engine, open_engine

with cli.needs("dev", __name__):
    from train.noise import protocol_noise


TestSet = list[tuple[str, NDArray[np.float32]]]
"""(name, clean image) in the order of the names; see `clean_images`."""


class Protocol(StrEnum):
    """What becomes of the noisy image before it is denoised."""

    CLIP8 = "clip8"
    FLOAT = "float"


def open_model(path: Path, threads: int | None = None) -> Engine:
    """Weights as well as what `runtime.open_engine` takes. Raises ModelError or InputError as that does."""
    if threads is not None and threads < 1:
        raise InputError(f"--threads: expected at least 1, found {threads}")
    if path.suffix != ".safetensors":
        return open_engine(path, threads)
    import torch

    from runtime.engines.torch import TorchEngine
    from train.weights import load_weights

    if threads:
        torch.set_num_threads(threads)
    network = load_weights(path)
    return TorchEngine(network.cuda() if torch.cuda.is_available() else network, network.config.channels)


@contextlib.contextmanager
def open_denoiser(path: Path, threads: int | None = None) -> Iterator[Denoiser]:
    """`open_model`, behind the runtime's padding and tiles."""
    with open_model(path, threads) as model, Denoiser(model) as denoiser:
        yield denoiser


def clean_images(folder: Path) -> TestSet:
    """(name, image) of a test set in the order of the names: (H, W, 3) RGB or (H, W) gray float32 in [0, 1].

    Raises InputError where the folder is missing or holds no image, or one that is not 8-bit.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of clean images, found {'a file' if folder.exists() else 'nothing'}"
        )
    paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: p.name)
    if not paths:
        raise InputError(f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    images = []
    for path in paths:
        pixels = read_picture(path).pixels
        if pixels.dtype != np.uint8:
            raise InputError(f"{path}: expected an 8-bit image, found {pixels.dtype}")
        images.append((path.name, pixels.astype(np.float32) / np.float32(255)))
    return images


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
    return {
        "sigma": sigma,
        "protocol": str(protocol),
        "psnr": float(np.mean([e["psnr"] for e in each])),
        "ssim": float(np.mean([e["ssim"] for e in each])),
        "seconds": seconds,
        "images": each,
    }


app = cli.application("PSNR and SSIM of a model under additive white Gaussian noise.")


@app.command()
def main(
    engine: Annotated[Path, typer.Option(help="weights (.safetensors), or a model file of the runtime (.onnx)")],
    data: Annotated[list[Path], typer.Option(help="folders of clean 8-bit images (one or more)")],
    sigma: Annotated[list[float], typer.Option(help="noise levels, on the scale 0 to 255 (one or more)")],
    protocol: Annotated[
        Protocol, typer.Option(help="noise clipped and rounded to 8 bits, or neither")
    ] = Protocol.CLIP8,
    json_: Annotated[Path | None, typer.Option("--json", help="write the figures here too")] = None,
    limit: Annotated[int, typer.Option(help="only the first images of each folder; 0: all")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing --json file")] = False,
) -> None:
    """Print a table of PSNR (dB) / SSIM."""
    check_sigmas(sigma)
    if limit < 0:
        raise InputError(f"--limit: expected 0 or more, found {limit}")
    if json_ is not None and json_.exists() and not overwrite:
        raise OutputError(f"{json_} exists already: pass --overwrite to replace it, or choose another --json")
    sets = {folder: clean_images(folder)[: limit or None] for folder in data}
    with open_denoiser(engine, threads) as denoiser:
        runs_on = denoiser.engine.name
        table = Table(
            "set",
            "images",
            *(f"sigma {level:g}" for level in sigma),
            title=escape(f"{engine} ({runs_on}), {protocol}"),
        )
        rows = []
        with Progress(disable=not sys.stderr.isatty(), transient=True, console=Console(stderr=True)) as progress:
            task = progress.add_task("evaluating", total=len(sets) * len(sigma))
            for folder, images in sets.items():
                cells = []
                for level in sigma:
                    row = {"set": folder.name, **evaluate(denoiser, images, level, protocol)}
                    rows.append(row)
                    cells.append(f"{row['psnr']:.2f} / {row['ssim']:.4f}")
                    progress.advance(task)
                table.add_row(escape(folder.name), str(len(images)), *cells)
        Console().print(table)
        if json_ is not None:
            result = {"engine": str(engine), "sha256": sha256(engine), "runs_on": runs_on, "rows": rows}
            write_whole(json_, json.dumps(_finite(result), indent=1) + "\n", overwrite=overwrite)


def _finite(value: Any) -> Any:
    """JSON knows no infinity (the PSNR of an exact output) and no NaN (the SSIM of a tiny image): null there."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    cli.run(app, several=("--data", "--sigma"))
