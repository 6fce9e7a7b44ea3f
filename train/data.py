"""Training data: folders of images, decoded once into a memory-mapped bank; crops keyed by seed, step and sample."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError, SadnetError
from common.files import whole_file, write_whole
from common.images import IMAGE_SUFFIXES, read_picture, rgb8
from train.config import DataConfig, NoiseConfig
from train.noise import add_gaussian

VALIDATION_SHARE = 20
"""One image in so many is held out where none of the fixed list's names is among the data."""
VALIDATION_MOST = 20


@dataclass(frozen=True)
class Bank:
    """8-bit images (H, W, C) one after another in one memory-mapped file."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as (H, W, C) uint8, read from the file as it is touched."""
        return self.pixels[self._starts[index] : self._starts[index + 1]].reshape(self.shapes[index])

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((math.prod(shape) for shape in self.shapes), initial=0))


def find_images(folders: Sequence[Path]) -> list[Path]:
    """All image files below the folders, but for hidden ones, in the order of their paths.

    Raises InputError where there are none.
    """
    for folder in folders:
        if not folder.is_dir():
            found_there = "a file" if folder.exists() else "nothing"
            raise InputError(f"{folder}: expected a folder of images, found {found_there}")
    found = {
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    }
    if not found:
        places = ", ".join(map(str, folders)) or "no --data"
        raise InputError(f"{places}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    return sorted(found)


def split(paths: Sequence[Path], holdout: Path) -> tuple[list[Path], list[Path]]:
    """(training, validation) images: the names that `holdout` lists, or else one image in twenty, are validation's."""
    try:
        listed = {line.strip() for line in holdout.read_text().splitlines()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{holdout}: expected a text file of held-out file names, found: {error}") from error
    validation = [p for p in paths if p.name in listed]
    if not validation:
        if len(paths) < 2:
            raise InputError(f"{paths[0]}: expected at least 2 images (one is held out for validation), found 1")
        validation = list(paths[:: max(VALIDATION_SHARE, -(-len(paths) // VALIDATION_MOST))])
    held = set(validation)
    training = [p for p in paths if p not in held]
    if not training:
        raise InputError(f"{holdout}: names every image found: expected some that are left for training")
    return training, validation


def open_bank(
    paths: Sequence[Path],
    *,
    channels: int,
    least: int,
    cache: Path,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Bank:
    """Decode `paths` into a bank under `cache`, or reuse the one made of the same files before.

    channels: 3 (RGB) or 1 (gray, ITU-R 601); images whose side is under `least` pixels are extended by reflection.
    report(done, total) is called as images are decoded. Memory stays bounded by the largest image.
    Raises InputError for a file that cannot be decoded, OutputError where the cache cannot be written.
    """
    stamp = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    key = hashlib.sha256(json.dumps([stamp, channels, least]).encode()).hexdigest()[:16]
    index_file, pixel_file = cache / f"{key}.json", cache / f"{key}.u8"
    if not index_file.exists():
        shapes = []
        with whole_file(pixel_file, overwrite=True) as temporary, open(temporary, "wb") as file:
            for done, path in enumerate(paths):
                image = _decode(path, channels, least)
                shapes.append(image.shape)
                file.write(image.tobytes())
                report(done + 1, len(paths))
        # the index comes last: where it stands, the pixels are complete
        write_whole(index_file, json.dumps({"names": [p.name for p in paths], "shapes": shapes}), overwrite=True)
    try:
        index = json.loads(index_file.read_text())
        shapes = [tuple(shape) for shape in index["shapes"]]
        pixels = np.memmap(pixel_file, np.uint8, mode="r", shape=(sum(map(math.prod, shapes)),))
    except (OSError, ValueError) as error:
        text = f"{index_file}: expected a bank of images, found: {error}; delete {cache} to rebuild"
        raise SadnetError(text) from error
    return Bank(tuple(index["names"]), tuple(shapes), pixels)


def _decode(path: Path, channels: int, least: int) -> NDArray[np.uint8]:
    image = rgb8(read_picture(path))
    if channels == 1:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[:, :, None]
    height, width = image.shape[:2]
    missing = (0, max(0, least - height)), (0, max(0, least - width)), (0, 0)
    return np.pad(image, missing, mode="reflect") if max(missing[0] + missing[1]) else image


@dataclass(frozen=True)
class Draw:
    """All that chance decides about one sample."""

    image: int
    top: int
    left: int
    transform: int  # 0 to 7: quarter turns, and a flip from 4 on
    sigma: float
    noise_seed: int


class Sampler:
    """Batches of (noisy, clean) crops. Sample i of step t depends on (seed, t, i) alone, so that a resumed run, or one
    spread over several processes, sees what an uninterrupted one sees."""

    def __init__(self, bank: Bank, data: DataConfig, noise: NoiseConfig, seed: int) -> None:
        self.bank, self.data, self.noise, self.seed = bank, data, noise, seed
        self._area = np.cumsum([h * w for h, w, _ in bank.shapes])

    def draw(self, step: int, sample: int) -> Draw:
        """Images are drawn by their number of pixels, then places in them evenly."""
        rng = np.random.default_rng((self.seed, step, sample))
        image = int(np.searchsorted(self._area, rng.integers(self._area[-1]), side="right"))
        height, width, _ = self.bank.shapes[image]
        return Draw(
            image,
            top=int(rng.integers(height - self.data.crop + 1)),
            left=int(rng.integers(width - self.data.crop + 1)),
            transform=int(rng.integers(8)),
            sigma=float(rng.uniform(self.noise.sigma_min, self.noise.sigma_max)),
            noise_seed=int(rng.integers(2**63)),
        )

    def crops(self, step: int) -> tuple[list[Draw], Tensor]:
        """The host's part of a batch: the draws, and their crops (N, S, S, C) uint8, not yet turned or flipped."""
        draws = [self.draw(step, sample) for sample in range(self.data.batch)]
        size = self.data.crop
        batch = np.empty((len(draws), size, size, self.bank.shapes[0][2]), np.uint8)
        for out, d in zip(batch, draws, strict=True):
            out[:] = self.bank[d.image][d.top : d.top + size, d.left : d.left + size]
        return draws, torch.from_numpy(batch)

    def batch(self, draws: Sequence[Draw], crops: Tensor) -> tuple[Tensor, Tensor]:
        """The device's part: (noisy, clean), each (N, C, S, S) float32 in [0, 1], on the device of `crops`."""
        turned = [_transform(crop, d.transform) for crop, d in zip(crops.permute(0, 3, 1, 2), draws, strict=True)]
        clean = torch.stack(turned).float().div_(255)
        seeds = [d.noise_seed for d in draws]
        return add_gaussian(clean, [d.sigma for d in draws], seeds, clip8=self.noise.clip8), clean


def _transform(crop: Tensor, transform: int) -> Tensor:
    turned = torch.rot90(crop, transform % 4, (1, 2))
    return turned.flip(2) if transform >= 4 else turned
