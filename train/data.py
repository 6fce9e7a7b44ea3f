"""Training data: images decoded once into a memory-mapped bank; crops keyed by seed, step and sample."""

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
from train.camera import Camera, add_camera_noise, draw_camera
from train.config import CameraConfig, DataConfig, NoiseConfig
from train.examples import Example, read
from train.noise import add_gaussian

SPLITS = Path(__file__).resolve().parent / "splits"
"""The lists for published data sets, which other images need not have anything of."""
FORMAT = 2
"""Of a bank: what is made of the same files. 2: turned upright."""
VALIDATION_SHARE = 20
"""One scene in so many is held out where none of the fixed list's names is among the data."""
VALIDATION_MOST = 20
LEAST = 8
"""Pixels a side that smaller images are extended to; the noise of cameras needs some."""


@dataclass(frozen=True)
class Bank:
    """8-bit images one after another in one memory-mapped file: clean ones (H, W, C), and pairs (H, W, 2C), which hold
    the noisy image's channels before the clean one's."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as (H, W, C) or (H, W, 2C) uint8, read from the file as it is touched."""
        return self.pixels[self._starts[index] : self._starts[index + 1]].reshape(self.shapes[index])

    def paired(self, index: int) -> bool:
        """Whether image `index` is a pair; C is 1 or 3."""
        return self.shapes[index][2] % 2 == 0

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the first 64 MB of pixels, which tells other images of the same names."""
        return hashlib.sha256(self.pixels[: 2**26].data).hexdigest()

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((math.prod(shape) for shape in self.shapes), initial=0))


def split(examples: Sequence[Example], holdout: Path) -> tuple[list[Example], list[Example]]:
    """(training, validation) examples. What `holdout` lists by file name or scene is never trained on. Validation are
    those listed, or else one scene in twenty: of the pairs where there are any, of the photos otherwise. Which ones is
    decided by the hash of their names, so that a photo more or less changes one of them at most.

    Raises InputError where the list cannot be read, one of the user's own names nothing that is there, or nothing is
    left for either.
    """
    listed = _listed(holdout)
    held = {e for e in examples if listed & {e.name, Path(e.scene).name}}
    if listed and not held and holdout.resolve().parent != SPLITS:
        text = f"{holdout}: expected file names or scenes of these images, such as {examples[0].name}"
        raise InputError(f"{text}, found {min(listed)} and no other that is here")
    pairs = any(e.noisy for e in examples)
    candidates = [e for e in examples if bool(e.noisy) == pairs]
    validation = [e for e in candidates if e in held]
    if not validation:
        scenes = list(dict.fromkeys(e.scene for e in candidates))
        if len(scenes) < 2:
            what = "scenes, folders below noisy/ and clean/" if pairs else "images"
            raise InputError(f"{candidates[0].name}: expected at least 2 {what} (one is held out), found 1")
        scenes.sort(key=lambda scene: hashlib.sha256(Path(scene).name.encode(errors="surrogateescape")).digest())
        chosen = set(scenes[: min(VALIDATION_MOST, -(-len(scenes) // VALIDATION_SHARE))])
        validation = [e for e in candidates if e.scene in chosen]
    held.update(validation)
    training = [e for e in examples if e not in held]
    if not training:
        raise InputError(f"{holdout}: names every image found: expected some that are left for training")
    return training, validation


def absent(examples: Sequence[Example], holdout: Path) -> str:
    """What of a list that names some of `examples` is not among them, in a line; "" where all is, or nothing."""
    listed = _listed(holdout)
    missing = listed - {name for e in examples for name in (e.name, Path(e.scene).name)}
    if not missing or missing == listed:
        return ""
    return f"{holdout}: {len(missing)} of {len(listed)} names are not among the images, {min(missing)} for one"


def _listed(holdout: Path) -> set[str]:
    try:
        return {line.strip() for line in holdout.read_text().splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{holdout}: expected a text file of held-out names, found: {error}") from error


def open_bank(
    examples: Sequence[Example],
    *,
    channels: int,
    cache: Path,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Bank:
    """Decode `examples` into a bank under `cache`, or reuse the one made of the same files before.

    channels: 3 (RGB) or 1 (gray, ITU-R 601); images whose side is under `LEAST` pixels are extended by reflection.
    report(done, total) is called as images are decoded. Memory stays bounded by the largest image.
    Raises InputError for a file that cannot be decoded, OutputError where the cache cannot be written.
    """
    files = [[*([e.noisy] if e.noisy else []), *e.clean] for e in examples]
    stamps = [[(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths] for paths in files]
    key = hashlib.sha256(json.dumps([stamps, channels, LEAST, FORMAT]).encode()).hexdigest()[:16]
    index_file, pixel_file = cache / f"{key}.json", cache / f"{key}.u8"
    if not index_file.exists():
        names, shapes = [], []
        with whole_file(pixel_file, overwrite=True) as temporary, open(temporary, "wb") as file:
            for done, example in enumerate(examples):
                for name, noisy, clean in read(example):
                    image = _prepare(noisy, clean, channels)
                    names.append(name)
                    shapes.append(image.shape)
                    file.write(image.tobytes())
                report(done + 1, len(examples))
        # the index comes last: where it stands, the pixels are complete
        write_whole(index_file, json.dumps({"names": names, "shapes": shapes}), overwrite=True)
    try:
        index = json.loads(index_file.read_text())
        shapes = [tuple(shape) for shape in index["shapes"]]
        pixels = np.memmap(pixel_file, np.uint8, mode="r", shape=(sum(map(math.prod, shapes)),))
    except (OSError, ValueError) as error:
        text = f"{index_file}: expected a bank of images, found: {error}; delete {cache} to rebuild"
        raise SadnetError(text) from error
    return Bank(tuple(index["names"]), tuple(shapes), pixels)


def _prepare(noisy: NDArray[np.uint8] | None, clean: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    parts = [clean] if noisy is None else [noisy, clean]
    if channels == 1:
        parts = [np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.uint8)[:, :, None] for part in parts]
    image = parts[0] if noisy is None else np.concatenate(parts, axis=2)
    return _extended(image, LEAST)


def _extended(image: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """(H, W, C), each side `least` pixels at least, by reflection at its end."""
    missing = *((0, max(0, least - side)) for side in image.shape[:2]), (0, 0)
    return np.pad(image, missing, mode="reflect") if max(missing)[1] else image


@dataclass(frozen=True)
class Draw:
    """All that chance decides about one sample. Noise is for clean images; pairs have theirs."""

    image: int
    top: int
    left: int
    transform: int  # 0 to 7: quarter turns, and a flip from 4 on
    sigma: float
    noise_seed: int
    camera: Camera | None = None  # whose noise it is; None: white noise of sigma
    gray: bool = False  # whether it is made gray after that


class Sampler:
    """Batches of (noisy, clean) crops. Sample i of step t depends on (seed, t, i) alone, so that a resumed run, or one
    spread over several processes, sees what an uninterrupted one sees. `share`: the samples that are drawn here, of the
    batch's; all of them otherwise."""

    def __init__(
        self,
        bank: Bank,
        data: DataConfig,
        noise: NoiseConfig,
        seed: int,
        camera: CameraConfig | None = None,
        share: range | None = None,
    ) -> None:
        self.bank, self.data, self.noise, self.seed = bank, data, noise, seed
        self.share = range(data.batch) if share is None else share
        self.camera = camera or CameraConfig()
        self._depth = max(depth for _, _, depth in bank.shapes)
        self._channels = self._depth // 2 if self._depth % 2 == 0 else self._depth
        pairs = np.array([bank.paired(index) for index in range(len(bank))])
        areas = np.array([h * w for h, w, _ in bank.shapes])
        self._areas = [np.cumsum(areas * of_kind) for of_kind in (~pairs, pairs) if of_kind.any()]

    def draw(self, step: int, sample: int) -> Draw:
        """Images are drawn by their number of pixels, then places in them evenly."""
        rng = np.random.default_rng((self.seed, step, sample))
        area = self._areas[len(self._areas) > 1 and rng.random() < self.data.pair_share]
        image = int(np.searchsorted(area, rng.integers(area[-1]), side="right"))
        height, width, _ = self.bank.shapes[image]
        noisy = self.bank.paired(image)
        return Draw(
            image,
            top=int(rng.integers(max(0, height - self.data.crop) + 1)),
            left=int(rng.integers(max(0, width - self.data.crop) + 1)),
            transform=int(rng.integers(8)),
            sigma=float(rng.uniform(self.noise.sigma_min, self.noise.sigma_max)),
            noise_seed=int(rng.integers(2**63)),
            camera=draw_camera(self.camera, rng) if not noisy and rng.random() < self.camera.share else None,
            gray=bool(rng.random() < self.data.gray),
        )

    def crops(self, step: int) -> tuple[list[Draw], Tensor]:
        """The host's part of a batch: the draws, and their crops (N, S, S, C) uint8, not yet turned or flipped; where
        there are pairs (N, S, S, 2C), whose first half is the noisy one, unused in a clean image's crop. Images
        smaller than a crop are extended by reflection."""
        draws = [self.draw(step, sample) for sample in self.share]
        size = self.data.crop
        batch = np.zeros((len(draws), size, size, self._depth), np.uint8)
        for out, d in zip(batch, draws, strict=True):
            crop = self.bank[d.image][d.top : d.top + size, d.left : d.left + size]
            out[:, :, self._depth - crop.shape[2] :] = _extended(crop, size)
        return draws, torch.from_numpy(batch)

    def batch(self, draws: Sequence[Draw], crops: Tensor) -> tuple[Tensor, Tensor]:
        """The device's part: (noisy, clean), each (N, C, S, S) float32 in [0, 1], on the device of `crops`."""
        turned = [_transform(crop, d.transform) for crop, d in zip(crops.permute(0, 3, 1, 2), draws, strict=True)]
        images = torch.stack(turned).float().div_(255)
        noisy, clean = images[:, : self._channels].clone(), images[:, -self._channels :].contiguous()
        seeds = [d.noise_seed for d in draws]
        white = [i for i, d in enumerate(draws) if not d.camera and not self.bank.paired(d.image)]
        if white:
            sigmas = [draws[i].sigma for i in white]
            noisy[white] = add_gaussian(clean[white], sigmas, [seeds[i] for i in white], clip8=self.noise.clip8)
        cameras = {i: d.camera for i, d in enumerate(draws) if d.camera}
        if cameras:
            chosen = list(cameras)
            noisy[chosen] = add_camera_noise(clean[chosen], list(cameras.values()), [seeds[i] for i in chosen])
        for i, d in enumerate(draws):
            if d.gray:
                noisy[i], clean[i] = _gray(noisy[i]), _gray(clean[i])
        return noisy, clean


def _gray(image: Tensor) -> Tensor:
    """The luma (ITU-R BT.601, as `_prepare`'s) of a (3, H, W) image, (1, H, W), not rounded again."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=image.device)
    return (weights.view(3, 1, 1) * image).sum(0, keepdim=True)


def _transform(crop: Tensor, transform: int) -> Tensor:
    turned = torch.rot90(crop, transform % 4, (1, 2))
    return turned.flip(2) if transform >= 4 else turned
