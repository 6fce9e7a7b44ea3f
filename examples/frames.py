"""Denoise frames as they come, one after another, as from a camera: an iterator of arrays in, one of arrays out.

python examples/frames.py 24
"""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime import Denoiser

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def camera(count: int) -> Iterator[NDArray[np.uint8]]:
    """Stands for a camera: (120, 160, 3) RGB frames of a view that moves, with new noise each."""
    rng = np.random.default_rng(0)
    scene = cv2.imread(str(ASSETS / "astronaut_clean.png"), cv2.IMREAD_COLOR_RGB)
    assert scene is not None
    for number in range(count):
        view = scene[:120, number % 160 : number % 160 + 160]
        yield np.rint(np.clip(view + rng.normal(0, 25, view.shape), 0, 255)).astype(np.uint8)


def main(count: int) -> None:
    began = time.perf_counter()
    # A GPU denoises a frame while the next one is on its way to it: the camera may be some frames ahead of the results.
    # `closing` gives up what is on its way where the loop is left early.
    with (
        Denoiser(ASSETS / "real_color.onnx") as denoiser,
        closing(denoiser.denoise_stream(camera(count))) as frames,
    ):
        for number, frame in enumerate(frames, 1):
            print(f"frame {number}: {frame.shape} {frame.dtype}, {number / (time.perf_counter() - began):.1f} frames/s")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit(__doc__)
    main(int(sys.argv[1]))
