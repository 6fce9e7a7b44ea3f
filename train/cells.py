"""The figures that the tables hold of ours: each bundled model on each test set of a folder, measured once.

A cell is a model's mean PSNR and SSIM on one test set with one kind of noise. It belongs to the files that it was
measured on, by their SHA-256: with the same model and the same images it is not measured again.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, ModelError
from common.files import sha256
from common.images import read_picture
from common.machine import cpu_name
from runtime.denoiser import Denoiser
from runtime.models import bundled_models
from train.datasets import Found, find
from train.evaluate import Protocol, evaluate, evaluate_pairs, open_denoiser, read_clean
from train.examples import Example
from train.layouts import LAYOUTS
from train.sadnet import SADNetConfig

SIGMAS = {Protocol.CLIP8: (15, 25, 30, 50, 70), Protocol.FLOAT: (30, 50, 70)}
"""White noise of the clean sets: all levels as a person has them, the paper's levels as papers have them."""
PAIRS = "pairs"
"""The protocol of sets whose noise is real."""

Cell = dict[str, Any]
"""model, model_sha256, set, set_sha256, protocol, sigma (white noise only), images, psnr, ssim, noisy_psnr and
noisy_ssim (pairs only), seconds, date, on: plain values, for JSON."""


@dataclass(frozen=True)
class Model:
    """A bundled model and what its card says of it."""

    name: str
    path: Path
    noise: str
    """What it is for, in words."""
    config: SADNetConfig
    white: bool
    """Whether its training saw white noise."""
    steps: int

    @functools.cached_property
    def sha256(self) -> str:
        """Of the ONNX file, which is what is measured."""
        return sha256(self.path)


@dataclass(frozen=True)
class ImageSet:
    """A test set found on disk, whole."""

    name: str
    """As in `train.datasets.LAYOUTS`."""
    examples: tuple[Example, ...]

    @property
    def pairs(self) -> bool:
        """Whether its noise is real."""
        return self.examples[0].noisy is not None

    @functools.cached_property
    def channels(self) -> int:
        """1 for gray images, 3 for colour; pairs are colour."""
        return 3 if self.pairs or read_picture(self.examples[0].clean[0]).pixels.ndim == 3 else 1

    @functools.cached_property
    def sizes(self) -> list[str]:
        """ "WIDTHxHEIGHT" of its clean images, each once."""
        shapes = {read_picture(example.clean[0]).pixels.shape[:2] for example in self.examples}
        return [f"{width}x{height}" for height, width in sorted(shapes)]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the names and the contents of its files, in their order."""
        digest = hashlib.sha256()
        for path in (path for e in self.examples for path in ((e.noisy,) if e.noisy else ()) + e.clean):
            digest.update(f"{path.name} {sha256(path)}\n".encode())
        return digest.hexdigest()


def models(folder: Path) -> list[Model]:
    """The bundled models of a folder. Raises ModelError where there is none, or a card is none."""
    found = []
    for model in bundled_models(folder):
        card_file = model.path.with_suffix(".json")
        try:
            card = json.loads(card_file.read_text())
            trained = card["trained"]
            white = not trained["config"].get("camera", {}).get("share", 0)  # for it alone
            config = SADNetConfig(**trained["config"]["model"])
            found.append(Model(model.name, model.path, model.noise, config, white, int(trained["step"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{card_file}: expected a model card, found: {error!r}") from error
    if not found:
        raise ModelError(f"{folder}: expected bundled models (NAME.onnx with its card NAME.json), found none")
    return found


def image_sets(folder: Path) -> tuple[list[ImageSet], dict[str, str]]:
    """The test sets below a folder, and for each of the others why it is not there, in words.

    Raises InputError where the folder is missing or holds no test set.
    """
    found: dict[str, Found] = {part.layout.name: part for part in find(str(folder)) if part.layout.test}
    sets, why = [], {}
    for layout in (layout for layout in LAYOUTS if layout.test):
        part = found.get(layout.name)
        if layout.clean is None:
            why[layout.name] = "not measured: its clean images stay on its server, which takes what train/dnd.py writes"
        elif part is None:
            why[layout.name] = f"not measured: not in the folder; its page is {layout.page}"
        elif part.missing:
            why[layout.name] = f"not measured: {part.missing}"
        else:
            sets.append(ImageSet(layout.name, part.examples))
    if not sets:
        names = ", ".join(layout.name for layout in LAYOUTS if layout.test)
        raise InputError(f"{folder}: expected whole test sets ({names}), found none: python train/datasets.py {folder}")
    return sets, why


def measure(
    models_: Sequence[Model],
    sets: Sequence[ImageSet],
    known: Sequence[Cell],
    *,
    threads: int | None,
    seconds: float,
    again: bool,
    done: Callable[[Cell, list[Cell]], None],
) -> list[Cell]:
    """All cells of these models: those of `known`, of whatever images, and what else the sets have.

    Only cells of other model files are left out, so that a folder with other sets takes no figure away. seconds: after
    which no measurement is begun. again: to measure those of `known` too. `done` gets each new cell, and all that
    there is then.
    """
    have = {_key(cell): cell for cell in known}
    settled = set() if again else set(have)
    end = time.monotonic() + seconds
    for model in models_:
        opened: Denoiser | None = None
        try:
            for job, cell in _jobs(model, sets):
                key = _key(cell)
                if key in settled or time.monotonic() >= end:
                    continue
                opened = opened or open_denoiser(model.path, threads)
                have[key] = cell | _means(job(opened)) | {"date": time.strftime("%Y-%m-%d"), "on": _here(opened)}
                settled.add(key)
                done(have[key], _of_models(models_, list(have.values())))
        finally:
            if opened is not None:
                opened.close()
    return _of_models(models_, list(have.values()))


def kinds_of_noise(model: Model, channels: int, *, pairs: bool) -> list[Cell]:
    """Protocol and sigma of each cell of a model on a set of so many channels. White noise is for models whose training
    saw it, on sets of their number of channels; pairs are for colour models."""
    if model.config.channels != channels or not (pairs or model.white):
        return []
    return [{"protocol": PAIRS}] if pairs else _white_noise()


def _white_noise() -> list[Cell]:
    return [{"protocol": str(protocol), "sigma": sigma} for protocol, sigmas in SIGMAS.items() for sigma in sigmas]


def _of_models(models_: Sequence[Model], cells: Sequence[Cell]) -> list[Cell]:
    """The cells of these models' files, under their names; always in the same order."""
    layouts = [layout.name for layout in LAYOUTS]
    noises = [{"protocol": PAIRS}, *_white_noise()]

    def place(cell: Cell) -> tuple[int, str, int]:
        noise: Cell = {name: cell[name] for name in ("protocol", "sigma") if name in cell}
        return layouts.index(cell["set"]), cell["set_sha256"], noises.index(noise) if noise in noises else len(noises)

    ordered = sorted(cells, key=place)
    return [
        cell | {"model": model.name}
        for model in models_
        for cell in ordered
        if cell["model_sha256"] == model.sha256 and (cell["protocol"] == PAIRS or model.white)
    ]


def _jobs(model: Model, sets: Sequence[ImageSet]) -> Iterator[tuple[Callable[[Denoiser], dict[str, Any]], Cell]]:
    """What is to be measured of a model, and what is known of the cell before."""
    for held in sets:
        noises = kinds_of_noise(model, held.channels, pairs=held.pairs)
        files = {"set": held.name, "set_sha256": held.sha256}
        images = read_clean(e.clean[0] for e in held.examples) if noises and not held.pairs else []
        for noise in noises:
            job = functools.partial(evaluate_pairs, pairs=held.examples)
            if not held.pairs:
                job = functools.partial(
                    evaluate, images=images, sigma=noise["sigma"], protocol=Protocol(noise["protocol"])
                )
            yield job, {"model": model.name, "model_sha256": model.sha256, **files, **noise}


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell.get(name) for name in ("model_sha256", "set", "set_sha256", "protocol", "sigma"))


def _means(row: dict[str, Any]) -> Cell:
    """Of a row of `train.evaluate`, without each image's figures."""
    digits = {"psnr": 4, "ssim": 6, "noisy_psnr": 4, "noisy_ssim": 6, "seconds": 1}
    return {"images": len(row["images"])} | {name: round(row[name], n) for name, n in digits.items() if name in row}


def _here(denoiser: Denoiser) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "scikit-image"))
    return (
        f"{denoiser.engine.name}; {cpu_name()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"
    )
