"""Denoise the Darmstadt Noise Dataset (sRGB) into the files that its server scores.

    python train/dnd.py --engine runs/real/weights.safetensors --data dnd_2017 --output dnd_submission

The clean images are not public: the content of the output folder is submitted at
https://noise.visinf.tu-darmstadt.de/submit/. Its form is that of the data set's own Python code (denoise_srgb and
bundle_submissions_srgb of its submission package): 0001.mat to 0050.mat of MATLAB's version 5, each with `Idenoised`, a
1x20 cell array of the boxes as single-precision RGB in [0, 1], `israw` = false and `eval_version` = '1.0'. How the
server wants the files packed was not seen: its page says so.
"""

import io
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from common import cli
from common.errors import InputError
from common.files import check_free, write_whole
from runtime.denoiser import Denoiser

with cli.needs("dev", __name__):
    import h5py  # type: ignore[import-untyped]  # h5py has no annotations
    from scipy.io import savemat  # type: ignore[import-untyped]  # nor has scipy

    from train.evaluate import open_denoiser

IMAGES, BOXES = 50, 20


def boxes(folder: Path) -> list[NDArray[np.int64]]:
    """The boxes of each image (20, 4), from the data set's info.mat: first row and column, last row and column, counted
    from 1 as MATLAB does. Raises InputError where the file is missing or another."""
    path = folder / "info.mat"
    with _opened(path) as file:
        try:
            # MATLAB's matrices are transposed in HDF5, and its arrays of structs hold references
            found = [np.asarray(file[reference], np.int64).T for reference in np.ravel(file["info"]["boundingboxes"])]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: expected DND's info.boundingboxes, found: {error}") from error
    if [of_image.shape for of_image in found] != IMAGES * [(BOXES, 4)]:
        raise InputError(f"{path}: expected {BOXES} boxes for each of {IMAGES} images, found others")
    return found


def image_path(folder: Path, index: int) -> Path:
    """The file of image `index`, from 1."""
    return folder / "images_srgb" / f"{index:04d}.mat"


def noisy_image(folder: Path, index: int) -> NDArray[np.float32]:
    """Image `index`, from 1, as (H, W, 3) float32 in [0, 1]. Raises InputError where it is missing or another file."""
    path = image_path(folder, index)
    with _opened(path) as file:
        if "InoisySRGB" not in file or file["InoisySRGB"].ndim != 3 or file["InoisySRGB"].shape[0] != 3:
            raise InputError(f"{path}: expected an RGB image named InoisySRGB, found {', '.join(file) or 'nothing'}")
        return np.ascontiguousarray(np.asarray(file["InoisySRGB"], np.float32).T)


def submission(denoiser: Denoiser, image: NDArray[np.float32], of_image: NDArray[np.int64]) -> bytes:
    """The .mat file of one image: each of its boxes, cut out and denoised."""
    cells = np.empty(len(of_image), object)
    for index, (top, left, bottom, right) in enumerate(of_image):
        crop = np.ascontiguousarray(image[top - 1 : bottom, left - 1 : right])
        if crop.shape[:2] != (bottom - top + 1, right - left + 1):
            raise InputError(f"expected an image with the box {of_image[index]}, found one of shape {image.shape}")
        cells[index] = denoiser.denoise(crop)
    file = io.BytesIO()
    savemat(file, {"Idenoised": cells, "israw": False, "eval_version": "1.0"})
    return file.getvalue()


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: expected a file of DND (HDF5), found: {error}") from error


app = cli.application("Denoise the Darmstadt Noise Dataset for its server.")


@app.command()
def main(
    engine: Annotated[Path, typer.Option(help="weights (.safetensors), or a model file of the runtime (.onnx)")],
    data: Annotated[Path, typer.Option(help="the data set's folder, with info.mat and images_srgb")],
    output: Annotated[Path, typer.Option(help="folder to write 0001.mat to 0050.mat into")],
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there")] = False,
) -> None:
    """Write one file for each image, whole or not at all."""
    targets = [output / f"{index:04d}.mat" for index in range(1, IMAGES + 1)]
    for target in targets:
        check_free(target, overwrite=overwrite)
    places = boxes(data)
    for index in range(1, IMAGES + 1):
        _opened(image_path(data, index)).close()  # all 50 are there, before hours of work
    with (
        open_denoiser(engine, threads) as denoiser,
        Progress(disable=not sys.stderr.isatty(), transient=True, console=Console(stderr=True)) as progress,
    ):
        for index in progress.track(range(IMAGES), description="denoising"):
            image = noisy_image(data, index + 1)
            write_whole(targets[index], submission(denoiser, image, places[index]), overwrite=overwrite)
    print(f"{IMAGES} files in {output}: submit them at https://noise.visinf.tu-darmstadt.de/submit/")


if __name__ == "__main__":
    cli.run(app)
