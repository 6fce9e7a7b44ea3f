"""Denoise one file. `runtime/infer.py` does more; this is how a program of your own does it.

python examples/photo.py noisy.jpg clean.png
"""

import sys
from dataclasses import replace
from pathlib import Path

from common.errors import SadnetError
from common.images import read_picture, write_picture
from runtime import Denoiser

MODEL = Path(__file__).resolve().parent.parent / "assets" / "real_color.onnx"


def main(source: str, target: str) -> None:
    picture = read_picture(source)
    with Denoiser(MODEL) as denoiser:
        clean = denoiser.denoise(picture.pixels)  # gray or RGB, 8 or 16 bits: the result is of the same kind
    write_picture(target, replace(picture, pixels=clean), overwrite=True)  # with the picture's alpha and metadata


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except SadnetError as error:  # every error that is the user's to mend is one of these, and one line
        sys.exit(f"error: {error}")
