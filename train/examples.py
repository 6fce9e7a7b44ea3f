"""One example of a data set: a clean image, or a noisy one with its clean ones; and how it is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.images import read_picture, rgb8
from common.metadata import orientation
from common.tiff import upright

Pixels = NDArray[np.uint8]

_NOISY_VARIABLES = ("ValidationNoisyBlocksSrgb", "img_noisy")
_CLEAN_VARIABLES = ("ValidationGtBlocksSrgb", "img_mean")
"""What SIDD's validation blocks and Nam's images are called in their .mat files."""


@dataclass(frozen=True)
class Example:
    """Files that belong together. Clean files beside the first are further exposures of the same scene."""

    clean: tuple[Path, ...]
    """None at all where a test server keeps them (DND)."""
    noisy: Path | None = None
    scene: str = ""
    """Examples of one scene are never divided between training and validation; for a photo its own path."""

    @property
    def name(self) -> str:
        """The file name of the noisy image, or of the clean one where it is alone."""
        return (self.noisy or self.clean[0]).name


def photo(path: Path) -> Example:
    """A clean image by itself."""
    return Example((path,), scene=str(path))


def read(example: Example) -> Iterator[tuple[str, Pixels | None, Pixels]]:
    """(name, noisy, clean) of each image that the files hold, (H, W, 3) uint8 RGB; noisy is None for a clean image.

    Several clean files are averaged. A .mat file holds one image or many blocks.
    Raises InputError where a file cannot be read, or the noisy and the clean image differ in size.
    """
    clean = _mean([_load(path, _CLEAN_VARIABLES) for path in example.clean], example)
    if example.noisy is None:
        yield from ((example.name, None, image) for image in clean)
        return
    noisy = _load(example.noisy, _NOISY_VARIABLES)
    if noisy.shape != clean.shape:
        sizes = [f"{len(a)} of {a.shape[2]}x{a.shape[1]}" for a in (clean, noisy)]
        raise InputError(
            f"{example.noisy}: expected the size of its clean image {example.clean[0].name} ({sizes[0]}), "
            f"found {sizes[1]}"
        )
    for index, pair in enumerate(zip(noisy, clean, strict=True)):
        name = example.name if len(noisy) == 1 else f"{example.noisy.stem} {index}"
        yield name, *pair


def _mean(images: Sequence[Pixels], example: Example) -> Pixels:
    if len(images) == 1:
        return images[0]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{example.clean[0]}: expected the size of {example.clean[1].name}, found another")
    return np.rint(np.mean(images, axis=0, dtype=np.float32)).astype(np.uint8)


def _load(path: Path, variables: Sequence[str]) -> Pixels:
    """(N, H, W, 3) uint8 RGB: one picture, or the images of a .mat file (version 5)."""
    if path.suffix.lower() != ".mat":
        picture = read_picture(path)
        return upright(rgb8(picture), orientation(picture.metadata))[None]  # a noisy one may be stored turned
    from scipy.io import loadmat  # type: ignore[import-untyped]  # scipy has no annotations

    try:
        held: dict[str, Any] = loadmat(path, variable_names=variables)
    except Exception as error:  # scipy raises whatever the damaged file makes it
        raise InputError(f"{path}: expected a .mat file of version 5, found: {error}") from error
    images = next((held[name] for name in variables if name in held), None)
    if images is None or images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        found = "none" if images is None else f"shape {images.shape} of {images.dtype}"
        raise InputError(f"{path}: expected 8-bit RGB images named {' or '.join(variables)}, found {found}")
    return np.asarray(images, np.uint8).reshape(-1, *images.shape[-3:])
