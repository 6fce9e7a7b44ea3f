"""What a training run is: a TOML file's sections as dataclasses, with `--set section.key=value` on top."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.errors import InputError
from common.padding import MULTIPLE
from train.sadnet import SADNetConfig
from train.seams import wide_enough


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and what a batch is made of.

    folders     FOLDER or NAME=FOLDER of clean photos and of pairs of noisy and clean ones (`train/datasets.py`)
    holdout     a path from the checkout: a text file of file names and scenes that validation uses and training never
                sees. Validation is on pairs where there are any; where none of them is listed, one scene in twenty is
                held out.
    pair_share  of the samples that are pairs, where there are both pairs and clean photos
    gray        share of the samples that are made gray after their noise, as a black-and-white photo is: a colour
                network that never sees one takes noise that is equal in all channels for detail
    cache       where decoded images are kept
    crop        pixels a side, a multiple of 8; `narrow_crops` says how many the network needs
    """

    folders: tuple[str, ...] = ()
    holdout: str = "train/splits/bsds500_validation.txt"
    pair_share: float = 0.5
    gray: float = 0.0
    cache: str = "runs/banks"
    crop: int = 192
    batch: int = 8


@dataclass(frozen=True)
class NoiseConfig:
    """White Gaussian noise, sigma on the scale 0 to 255, uniform in [sigma_min, sigma_max] for each sample.

    `clip8` clips and rounds the noisy image to 8 bits, as a user's file is; without it the noise is the literature's.
    """

    sigma_min: float = 0.0
    sigma_max: float = 75.0
    clip8: bool = True


@dataclass(frozen=True)
class CameraConfig:
    """The noise of cameras instead of white noise (`train/camera.py`); a range is [least, most], for each sample.

    share         of the clean photos' crops that get it; 0: none. Only for colour.
    shot          variance of the sensor's noise per unit of light, in which white is 1, evenly in its logarithm. The
                  noise in the dark follows from it. From 1e-4 on both are the cameras' of the Darmstadt data set
                  (Brooks et al., Unprocessing images for learned raw denoising, CVPR 2019); less is what good light
                  and scaling down leave, which a network must see to leave such photos as they are.
    exposure, red_gain, blue_gain
                  gains of brightening and white balance (Brooks et al.)
    saturation    s of the colour matrix (1 + s) I - s/3, whose diagonal is 1 + 2s/3; those of the four cameras in
                  Brooks et al.'s code lie between 1.13 and 2.12
    tone          share of the photos with an S-shaped tone curve (all of Brooks et al.'s)
    luma_blur, chroma_blur
                  standard deviation in pixels of the smoothing by the camera's own noise reduction. The ranges give
                  noise as correlated as that of PolyU's training scenes (docs/data.md).
    jpeg          share of the photos that are JPEG files; the others are whole 8-bit levels as they are
    quality       of the JPEG file, 1 to 100; PolyU's photos have 75
    """

    share: float = 0.0
    shot: tuple[float, ...] = (5e-6, 1.2e-2)
    exposure: tuple[float, ...] = (1.0, 1.6)
    red_gain: tuple[float, ...] = (1.9, 2.4)
    blue_gain: tuple[float, ...] = (1.5, 1.9)
    saturation: tuple[float, ...] = (0.2, 1.2)
    tone: float = 0.5
    luma_blur: tuple[float, ...] = (0.0, 1.0)
    chroma_blur: tuple[float, ...] = (0.0, 3.0)
    jpeg: float = 0.8
    quality: tuple[int, ...] = (60, 100)


@dataclass(frozen=True)
class OptimizerConfig:
    """The loss, the optimizer and the learning rate as a function of the step.

    seams        weight in the loss of what a tile's border changes: of the mean absolute difference between a tile out
                 of the crop's middle, denoised by itself, and the crop denoised (`train/seams.py`); 0: none
    kind         adam: Adam, as the paper's; AdamW where weight_decay > 0
                 muon: kernels by Muon, all else by Adam (train/optimizer.py); no weight decay
    warmup       steps of linear rise from 0
    halve_after  the rate is halved once, after this many steps (the paper's recipe); 0: never
    decay_from, decay_steps
                 cosine from the rate at step decay_from to 1 % of it, over decay_steps; 0 steps: no decay. Set by
                 `run.py --decay --steps`.
    clip_norm    largest norm of the gradient; 0: not clipped
    ema          decay of the moving average of the weights, which is what is validated and released; at step t no more
                 than (1 + t) / (10 + t), or a short run would release what it began with; 0: none
    """

    loss: Literal["l1", "l2"] = "l2"
    seams: float = 0.0
    kind: Literal["adam", "muon"] = "adam"
    lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 500
    halve_after: int = 0
    decay_from: int = 0
    decay_steps: int = 0
    clip_norm: float = 0.5
    ema: float = 0.999

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        rate = self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr
        if self.halve_after and step >= self.halve_after:
            rate /= 2
        if self.decay_steps and step >= self.decay_from:
            done = min(1.0, (step - self.decay_from + 1) / self.decay_steps)
            rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        return rate

    def kept(self, step: int) -> float:
        """Decay of the moving average in step `step`, counted from 0."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass(frozen=True)
class RunConfig:
    """Budget and bookkeeping. Either budget ends the run; 0 means none of that kind.

    steps               counted from the run's first step, over all its resumptions
    minutes             of this process
    seed                of crops and noise; 0 with `run.py --init`: one that the weights' file decides
    precision           `fp32` (TF32 on GPUs that have it), `bf16` or `fp16` (CUDA only) autocast; `auto`: bf16 where
                        the GPU or CPU has instructions for it, else fp16 on a GPU and fp32 on a CPU
    threads             CPU threads; 0: PyTorch's choice
    cuda_graph          whether one process on a GPU runs a step as a CUDA graph (not with fp16)
    validate_every, log_every, checkpoint_every
                        in steps, steps and seconds
    validation_sigmas, validation_crop
                        held-out images, their central crop of this many pixels a side (0: whole). Clean ones get
                        noise as in training, of these sigmas where it is white; pairs need none.
    """

    steps: int = 0
    minutes: float = 0.0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int = 0
    cuda_graph: bool = True
    log_every: int = 100
    validate_every: int = 2000
    validation_sigmas: tuple[float, ...] = (25.0, 50.0)
    validation_crop: int = 256
    checkpoint_every: float = 55.0


@dataclass(frozen=True)
class TrainConfig:
    """One run, whole; stored in every checkpoint."""

    model: SADNetConfig = field(default_factory=SADNetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested values; `from_dict` reads them back."""
        return dataclasses.asdict(self)


def from_dict(values: dict[str, Any], source: str) -> TrainConfig:
    """A checked configuration from nested values; `source` names them in InputError's text."""
    sections: dict[str, Any] = {}
    kinds = get_type_hints(TrainConfig)
    for name, section in values.items():
        if name not in kinds or not isinstance(section, dict):
            raise InputError(f"{source}: expected the sections {', '.join(kinds)}, found {name!r}")
        hints = get_type_hints(kinds[name])
        for key in section:
            if key not in hints:
                raise InputError(f"{source}: [{name}] has no key {key!r}; it has {', '.join(hints)}")
        checked = {key: _checked(f"{source}: {name}.{key}", hints[key], value) for key, value in section.items()}
        try:
            sections[name] = kinds[name](**checked)
        except ValueError as error:
            raise InputError(f"{source}: [{name}]: {error}") from error
    return _check_ranges(TrainConfig(**sections), source)


def load(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file and apply `section.key=value` overrides, whose values are read as TOML (or as bare text)."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: expected a TOML configuration, found: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a TOML configuration, found: {error}") from error
    return from_dict(override(values, overrides), str(path))


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested `values` with each `section.key=value` applied."""
    result = {name: dict(section) if isinstance(section, dict) else section for name, section in values.items()}
    for text in overrides:
        name, separator, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not separator or not dot:
            raise InputError(f"--set {text}: expected section.key=value, such as run.steps=1000")
        try:
            parsed = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            parsed = value
        target = result.setdefault(section, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {text}: expected a section named {section}, found the value {target!r}")
        target[key] = parsed
    return result


def _checked(where: str, hint: Any, value: Any) -> Any:
    """`value` as the type that `hint` names, or InputError: a config's mistake shows before hours of training."""
    if get_origin(hint) is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in get_args(hint)):  # True == 1
            raise InputError(f"{where}: expected one of {', '.join(map(str, get_args(hint)))}, found {value!r}")
        return value
    if get_origin(hint) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_checked(where, get_args(hint)[0], v) for v in values)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if hint is float or type(value) is not hint:
        raise InputError(f"{where}: expected a value of type {hint.__name__}, found {value!r}")
    return value


def narrow_crops(config: TrainConfig) -> str:
    """A line to warn with where the crops are too small for the context block, else nothing.

    Its map has a cell for 8 pixels. Where that is no wider than twice the widest dilation, one of two opposite taps is
    padding at every position; on a larger picture both hold something, and what such a network gives then is worse by
    a decibel or more (docs/training.md).
    """
    model, crop = config.model, config.data.crop
    least = 2 * max(model.dilations) * MULTIPLE
    if not model.context or crop > least:
        return ""
    return (
        f"warning: data.crop: expected more than {least}, found {crop}: the context block never has both sides of its "
        f"widest dilation inside a crop, and the weights may do worse on larger pictures; use {least * 3 // 2}"
    )


def _check_ranges(config: TrainConfig, source: str) -> TrainConfig:
    data, noise, camera, optimizer, run = config.data, config.noise, config.camera, config.optimizer, config.run
    for good, text in (
        (data.crop >= 8 and data.crop % 8 == 0, f"data.crop: expected a multiple of 8, found {data.crop}"),
        (data.batch >= 1, f"data.batch: expected at least 1, found {data.batch}"),
        (
            0 <= noise.sigma_min <= noise.sigma_max <= 255,
            f"noise: expected 0 <= sigma_min <= sigma_max <= 255, found {noise.sigma_min} and {noise.sigma_max}",
        ),
        *(
            (0 <= value <= 1, f"{name}: expected a share from 0 to 1, found {value}")
            for name, value in (
                ("data.pair_share", data.pair_share),
                ("data.gray", data.gray),
                ("camera.share", camera.share),
                ("camera.tone", camera.tone),
                ("camera.jpeg", camera.jpeg),
            )
        ),
        *(
            (
                len(found) == 2 and low <= found[0] <= found[1] <= high,
                f"camera.{name}: expected [least, most] from {low:g} to {high:g}, found {list(found)}",
            )
            for name, found, low, high in (
                ("shot", camera.shot, 1e-9, 1),
                ("exposure", camera.exposure, 0.1, 10),
                ("red_gain", camera.red_gain, 0.1, 10),
                ("blue_gain", camera.blue_gain, 0.1, 10),
                ("saturation", camera.saturation, 0, 10),
                ("luma_blur", camera.luma_blur, 0, 3),
                ("chroma_blur", camera.chroma_blur, 0, 3),
                ("quality", camera.quality, 1, 100),
            )
        ),
        (
            not data.gray or config.model.channels == 3,
            "data.gray: expected 0 for a gray network (model.channels = 1), whose samples are all gray",
        ),
        (
            not camera.share or config.model.channels == 3,
            "camera.share: expected 0 for a gray network (model.channels = 1): camera noise is that of colour photos",
        ),
        (
            not optimizer.seams or wide_enough(data.crop),
            f"optimizer.seams: expected 0, or crops of 152, 168 and more, whose tiles have pixels far from a border; "
            f"found data.crop = {data.crop}",
        ),
        (optimizer.lr > 0, f"optimizer.lr: expected more than 0, found {optimizer.lr}"),
        (
            optimizer.kind == "adam" or not optimizer.weight_decay,
            f"optimizer.weight_decay: expected 0 with optimizer.kind = muon, found {optimizer.weight_decay}",
        ),
        *(
            (0 <= value < 1, f"optimizer.{name}: expected 0 <= {name} < 1, found {value}")
            for name, value in (("beta1", optimizer.beta1), ("beta2", optimizer.beta2), ("ema", optimizer.ema))
        ),
        *(
            (getattr(section, name) >= 0, f"{where}.{name}: expected no negative value, found {getattr(section, name)}")
            for where, section, names in (
                ("optimizer", optimizer, "seams eps weight_decay warmup halve_after decay_from decay_steps clip_norm"),
                ("run", run, "steps minutes seed threads validation_crop checkpoint_every"),
            )
            for name in names.split()
        ),
        (
            not 0 < run.validation_crop < 8,
            f"run.validation_crop: expected 0, or 8 and more, found {run.validation_crop}",
        ),
        (run.seed < 2**63, f"run.seed: expected less than 2^63, found {run.seed}"),
        (run.steps > 0 or run.minutes > 0, "run: expected a budget: set run.steps or run.minutes"),
        (run.log_every > 0 and run.validate_every > 0, "run: expected log_every and validate_every of at least 1"),
        (len(run.validation_sigmas) > 0, "run.validation_sigmas: expected at least one"),
        (
            all(0 <= sigma <= 255 for sigma in run.validation_sigmas),
            f"run.validation_sigmas: expected values in 0..255, found {run.validation_sigmas}",
        ),
    ):
        if not good:
            raise InputError(f"{source}: {text}")
    return config
