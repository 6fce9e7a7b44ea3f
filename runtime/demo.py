"""Denoise the bundled photos, one of a camera and one with white noise, and measure the second: what `make demo` runs.

python runtime/demo.py
python runtime/demo.py --photo mine.jpg --noisy mine_noisy.png --clean mine.png --output demo
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
from common.files import check_free
from common.images import Picture, read_picture, rgb8, write_picture
from common.metrics import psnr
from runtime.denoiser import Denoiser

DEMO = Path("demo")
ASSETS = Path(__file__).resolve().parent.parent / "assets"

app = application("Denoise the sample photos, print PSNR and seconds, write side-by-side pictures.")


@app.command()
def demo(
    photo: Annotated[Path, typer.Option(help="Photo of a camera, for `real_color`.")] = ASSETS / "rio.jpg",
    noisy: Annotated[Path, typer.Option(help="Photo with white noise.")] = ASSETS / "astronaut_noisy.png",
    clean: Annotated[Path, typer.Option(help="Its clean original.")] = ASSETS / "astronaut_clean.png",
    engine: Annotated[Path, typer.Option(help="Model file for white noise: .onnx.")] = ASSETS / "blind_color.onnx",
    output: Annotated[Path, typer.Option(help="Folder; in the default one, earlier files are replaced.")] = DEMO,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files in another folder, too.")] = False,
) -> None:
    """Denoise the sample photos, print PSNR and seconds, write side-by-side pictures."""
    taken, before, original = (rgb8(read_picture(path)) for path in (photo, noisy, clean))
    if before.shape != original.shape:
        raise InputError(f"expected photos of one size, found {_size(before)} in {noisy}, {_size(original)} in {clean}")
    overwrite = overwrite or output == DEMO
    files = [output / name for name in ("photo_side_by_side.jpg", "side_by_side.jpg", "denoised.png")]
    for path in files:
        check_free(path, overwrite=overwrite)
    restored = _denoise(ASSETS / "real_color.onnx", taken)
    after = _denoise(engine, before)
    pictures = (
        _side_by_side({"photo": taken, "denoised": restored}),
        _side_by_side({"noisy": before, "denoised": after, "clean": original}),
        after,
    )
    for path, picture in zip(files, pictures, strict=True):
        write_picture(path, Picture(picture), overwrite=overwrite)
    print(f"PSNR noisy    {psnr(before / 255, original / 255):6.2f} dB")
    print(f"PSNR denoised {psnr(after / 255, original / 255):6.2f} dB")
    print(f"wrote {', '.join(map(str, files))}")


def _denoise(engine: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    began = time.perf_counter()
    with Denoiser(engine) as denoiser:
        loaded = time.perf_counter()
        result = denoiser.denoise(image)
        ended = time.perf_counter()
        print(f"{engine.name}, {denoiser.engine.name}: loaded in {loaded - began:.2f} s")
    print(f"denoised {_size(image)} in {ended - loaded:.2f} s")
    return result


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
