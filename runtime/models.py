"""The bundled models, by name: assets/NAME.onnx with its model card, assets/NAME.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, ModelError

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@dataclass(frozen=True)
class Model:
    """A bundled model."""

    name: str
    path: Path
    noise: str
    """What it is for: its card's own words, or else what its training configuration says."""
    channels: int | None
    """Of the pictures that it is for: 1, gray, or 3; None where the card does not tell."""
    white: bool
    """It is for white noise, and for no other."""


def bundled_models(folder: Path = ASSETS) -> list[Model]:
    """The models in `folder` that have a card. Raises ModelError for a card that cannot be read."""
    cards = (path for path in sorted(folder.glob("*.json")) if path.with_suffix(".onnx").is_file())
    return [_model(path) for path in cards]


def model_file(name: str, folder: Path = ASSETS) -> Path:
    """The file of a bundled model. Raises InputError where there is none of that name."""
    paths = {model.name: model.path for model in bundled_models(folder)}
    if not paths:
        raise no_models(folder)
    if name not in paths:
        raise InputError(f"--model {name}: expected {' or '.join(paths)} (--list-models), found no such model")
    return paths[name]


def no_models(folder: Path = ASSETS) -> ModelError:
    """What to raise where there are none, as in a package that was copied without them."""
    return ModelError(f"{folder}: expected the bundled models, found none: install from a checkout by pip install -e .")


def better_on_gray(path: Path, folder: Path = ASSETS) -> list[Model] | None:
    """The bundled models that do better on gray pictures than the one in `path`, which may be the user's own.

    None where nothing is to be said of it. A colour model for white noise has learned that noise differs from channel
    to channel, and takes what is equal in all of them for detail; one for cameras was shown gray photos (`data.gray`).
    """
    path = path.resolve()
    if path.parent != folder.resolve():
        return None
    models = bundled_models(folder)
    used = next((model for model in models if model.path.resolve() == path), None)
    if not used or used.channels != 3 or not used.white:
        return None
    return [model for model in models if model.channels == 1 or (model.channels == 3 and not model.white)]


def _model(card: Path) -> Model:
    try:
        content: dict[str, Any] = json.loads(card.read_text())
        config: dict[str, Any] = content.get("trained", {}).get("config", {})
        channels, cameras = config.get("model", {}).get("channels"), config.get("camera", {}).get("share", 0)
        noise = _noise(config, cameras)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{card}: expected a model card, found: {error!r}") from error
    return Model(card.stem, card.with_suffix(".onnx"), noise, channels, white=channels is not None and cameras == 0)


def _noise(config: dict[str, Any], cameras: float) -> str:
    """What the training configuration says of white noise and of cameras'."""
    pictures, noise = {1: "gray", 3: "colour"}[config["model"]["channels"]], config["noise"]
    white = f"white Gaussian noise of sigma {noise['sigma_min']:g} to {noise['sigma_max']:g} (of 255)"
    kinds = [white] * (cameras < 1) + ["noise of cameras"] * (cameras > 0)
    return f"{pictures} pictures with {' or '.join(kinds)}"
