"""Denoise the bundled sample photo and measure it against its clean original: what `make demo` runs.

python runtime/demo.py
python runtime/demo.py --noisy mine_noisy.png --clean mine.png --output demo
"""

import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from common.cli import application, run
from common.errors import InputError
from common.images import Picture, read_picture, rgb8, write_picture
from common.metrics import psnr
from runtime.denoiser import Denoiser

DEMO = Path("demo")
ASSETS = Path(__file__).resolve().parent.parent / "assets"

app = application("Denoise the sample photo, print PSNR and seconds, write a side-by-side picture.")


@app.command()
def demo(
    noisy: Annotated[Path, typer.Option(help="Noisy photo.")] = ASSETS / "astronaut_noisy.png",
    clean: Annotated[Path, typer.Option(help="Its clean original.")] = ASSETS / "astronaut_clean.png",
    engine: Annotated[Path, typer.Option(help="Model file: .onnx.")] = ASSETS / "blind_color.onnx",
    output: Annotated[Path, typer.Option(help="Folder; in the default one, earlier files are replaced.")] = DEMO,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files in another folder, too.")] = False,
) -> None:
    """Denoise the sample photo, print PSNR and seconds, write a side-by-side picture."""
    before, original = rgb8(read_picture(noisy)), rgb8(read_picture(clean))
    if before.shape != original.shape:
        raise InputError(f"expected photos of one size, found {_size(before)} in {noisy}, {_size(original)} in {clean}")
    began = time.perf_counter()
    with Denoiser(engine) as denoiser:
        loaded = time.perf_counter()
        after = denoiser.denoise(before)
        ended = time.perf_counter()
        print(f"{denoiser.engine.name}: loaded in {loaded - began:.2f} s")
    overwrite = overwrite or output == DEMO
    pictures = {"noisy": before, "denoised": after, "clean": original}
    write_picture(output / "denoised.png", Picture(after), overwrite=overwrite)
    write_picture(output / "side_by_side.jpg", Picture(_side_by_side(pictures)), overwrite=overwrite)
    print(f"denoised {_size(before)} in {ended - loaded:.2f} s")
    print(f"PSNR noisy    {psnr(before / 255, original / 255):6.2f} dB")
    print(f"PSNR denoised {psnr(after / 255, original / 255):6.2f} dB")
    print(f"wrote {output / 'denoised.png'} and {output / 'side_by_side.jpg'}")


def _side_by_side(pictures: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The pictures in a row, each (H, W, 3) with its name in the upper left corner."""
    labelled = []
    for name, picture in pictures.items():
        canvas = picture.copy()
        for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):  # dark around light, to be read on any photo
            cv2.putText(canvas, name, (10, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, thickness, cv2.LINE_AA)
        labelled.append(canvas)
    return np.hstack(labelled)


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


if __name__ == "__main__":
    run(app)
