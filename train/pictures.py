"""Pictures for the documents: what methods make of a noisy photo, and how a run's training went.

    python train/pictures.py strip --clean Kodak24/kodim08.png --index 7 --sigma 50 --crop 416,298,80 186,96,80 \
        --output docs/comparison.jpg
    python train/pictures.py strip --noisy photo_noisy.png --clean photo.png --sigma 8 --peer nlm --crop 10,20,80 ...
    python train/pictures.py curves --run runs/blind_color --output docs/curves.svg

A strip's peer is told sigma, our models are not. CBM3D is the package bm3d (Dabov et al. 2007, Makinen et al. 2020),
which is free for non-commercial use, asks for a reference to its authors beside its results, and is not installed with
this project: pip install bm3d. Non-local means (Buades et al. 2005) is OpenCV's.
"""

import importlib
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from common import cli
from common.errors import DependencyError, InputError
from common.files import check_free
from common.images import Picture, check_encodable, read_picture, rgb8, write_picture
from common.metrics import psnr
from runtime.denoiser import Denoiser

with cli.needs("dev", __name__):
    from train.curves import draw_curves, read_curves
    from train.noise import protocol_noise
    from train.strip import COLOURS, Crop, Panel, Pixels, compose, overview_size

MODEL = Path(__file__).resolve().parent.parent / "assets" / "blind_color.onnx"
QUALITY = 92
"""Of JPEG files: enough to keep noise what it is."""

MOST_SIDE = 4096
"""Of a magnified square, in pixels."""

Floats = NDArray[np.float32]
"""A picture (H, W, 3) in [0, 1]."""


class Peer(StrEnum):
    """Who is compared with."""

    CBM3D = "cbm3d"
    NLM = "nlm"


PEERS = {Peer.CBM3D: "CBM3D", Peer.NLM: "non-local means"}

app = cli.application("Comparison strips and training curves.")


@app.command()
def strip(
    clean: Annotated[Path, typer.Option(help="the clean photo")],
    sigma: Annotated[float, typer.Option(help="noise that is added, of 255, and that the peer is told")],
    crop: Annotated[list[str], typer.Option(help="X,Y,SIDE of a square to magnify (one to four, of one side)")],
    output: Annotated[Path, typer.Option(help="picture file; JPEG and PNG suit")],
    noisy: Annotated[Path | None, typer.Option(help="the noisy photo, where it has real noise")] = None,
    index: Annotated[
        int, typer.Option(min=0, help="the photo's place in its test set, from 0, which its noise is of")
    ] = 0,
    engine: Annotated[Path, typer.Option(help="model file")] = MODEL,
    peer: Annotated[Peer, typer.Option(help="who is compared with")] = Peer.CBM3D,
    zoom: Annotated[int, typer.Option(help="magnification of the squares")] = 3,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing picture")] = False,
) -> None:
    """A strip of a photo: noisy, the peer, this project, clean, each with its PSNR over the whole photo."""
    check_free(output, overwrite=overwrite)
    check_encodable(output.suffix, np.dtype(np.uint8), transparent=False)
    if not 0 < sigma <= 255:
        raise InputError(f"--sigma: expected a noise level above 0, up to 255, found {sigma:g}")
    original = _floats(clean)
    crops = parse_crops(crop, original.shape)
    most = max(1, MOST_SIDE // crops[0].side)
    if not 1 <= zoom <= most:
        raise InputError(f"--zoom: expected 1 to {most} for squares of {crops[0].side} pixels, found {zoom}")
    overview_size(original.shape, crops, zoom)
    given = protocol_noise(original, sigma, index, clip8=True) if noisy is None else _floats(noisy)
    if given.shape != original.shape:
        raise InputError(f"{noisy}: expected the size of {clean}, {_size(original)}, found {_size(given)}")
    theirs = denoise_as(peer, given, sigma)
    with Denoiser(engine, threads=threads) as denoiser:
        ours = denoiser.denoise(given)
    panels = [
        _panel(given, original, f"noisy, sigma {sigma:g}" if noisy is None else "noisy"),
        _panel(theirs, original, PEERS[peer], "told sigma"),
        _panel(ours, original, "this project", "blind"),
        Panel(_bytes(original), "clean", "original"),
    ]
    for panel in panels:
        print(f"{panel.title}: {panel.subtitle}")
    picture = compose(Panel(_bytes(original), clean.stem, "whole photo, clean"), panels, crops, zoom)
    write_picture(output, Picture(picture), overwrite=overwrite, quality=QUALITY)
    print(f"wrote {output}, {picture.shape[1]}x{picture.shape[0]}")


@app.command()
def curves(
    run: Annotated[list[Path], typer.Option(help="folders of runs of train/run.py, or logs (one or more)")],
    output: Annotated[Path, typer.Option(help="plot, .svg or .png")],
    smooth: Annotated[float, typer.Option(help="steps over which the loss is averaged")] = 1000.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing plot")] = False,
) -> None:
    """Loss and validation PSNR of runs against their steps."""
    if not smooth > 0:
        raise InputError(f"--smooth: expected steps above 0, found {smooth:g}")
    draw_curves([read_curves(folder) for folder in run], output, steps=smooth, overwrite=overwrite)
    print(f"wrote {output}")


def parse_crops(texts: list[str], shape: tuple[int, ...]) -> list[Crop]:
    """The squares of "X,Y,SIDE" texts in a picture of shape (H, W, 3). Raises InputError where they do not fit."""
    if len(texts) > len(COLOURS):
        raise InputError(f"--crop: expected one to {len(COLOURS)} squares, found {len(texts)}")
    crops = []
    for text in texts:
        found = re.fullmatch(r"(\d{1,6}),(\d{1,6}),(\d{1,6})", text)
        x, y, side = map(int, found.groups()) if found else (0, 0, 0)
        if not side or x + side > shape[1] or y + side > shape[0]:
            raise InputError(f"--crop: expected X,Y,SIDE within {shape[1]}x{shape[0]} pixels, found {text!r}")
        crops.append(Crop(x, y, side))
    if len({crop.side for crop in crops}) > 1:
        raise InputError(f"--crop: expected squares of one side, found {' and '.join(texts)}")
    return crops


def denoise_as(peer: Peer, noisy: Floats, sigma: float) -> Floats:
    """The peer's output, which is told sigma (of 255). Raises DependencyError where its package is missing."""
    if peer is Peer.NLM:
        bgr = _bytes(noisy)[..., ::-1]
        smoothed = cv2.fastNlMeansDenoisingColored(np.ascontiguousarray(bgr), None, sigma, sigma)
        return np.asarray(smoothed[..., ::-1], np.float32) / np.float32(255)
    try:
        bm3d: Any = importlib.import_module("bm3d")
    except ImportError as error:
        raise DependencyError(
            f"expected the package bm3d, free for non-commercial use, found none that loads ({error}): "
            "pip install bm3d, or --peer nlm"
        ) from error
    return np.asarray(bm3d.bm3d_rgb(noisy, sigma / 255), np.float32)


def _panel(picture: Floats, original: Floats, title: str, remark: str = "") -> Panel:
    score = f"{psnr(picture, original):.2f} dB"
    return Panel(_bytes(picture), title, f"{score}, {remark}" if remark else score)


def _floats(path: Path) -> Floats:
    return rgb8(read_picture(path)).astype(np.float32) / np.float32(255)


def _bytes(picture: Floats) -> Pixels:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _size(picture: Floats) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


if __name__ == "__main__":
    cli.run(app, several=("--crop", "--run"))
