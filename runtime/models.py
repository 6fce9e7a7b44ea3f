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
    """What it is for, from its card."""


def bundled_models(folder: Path = ASSETS) -> list[Model]:
    """The models in `folder` that have a card. Raises ModelError for a card that cannot be read."""
    cards = (path for path in sorted(folder.glob("*.json")) if path.with_suffix(".onnx").is_file())
    return [Model(path.stem, path.with_suffix(".onnx"), _noise(path)) for path in cards]


def model_file(name: str, folder: Path = ASSETS) -> Path:
    """The file of a bundled model. Raises InputError where there is none of that name."""
    paths = {model.name: model.path for model in bundled_models(folder)}
    if name not in paths:
        raise InputError(f"--model {name}: expected {' or '.join(paths)} (--list-models), found no such model")
    return paths[name]


def _noise(card: Path) -> str:
    """The card's own words, or else what its training configuration says of white noise and of cameras'."""
    try:
        content: dict[str, Any] = json.loads(card.read_text())
        if isinstance(words := content.get("noise"), str):
            return words
        config = content["trained"]["config"]
        pictures = {1: "gray", 3: "colour"}[config["model"]["channels"]]
        noise, cameras = config["noise"], config.get("camera", {}).get("share", 0)
        white = f"white Gaussian noise of sigma {noise['sigma_min']:g} to {noise['sigma_max']:g} (of 255)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{card}: expected a model card, found: {error!r}") from error
    kinds = [white] * (cameras < 1) + ["noise of cameras, with JPEG"] * (cameras > 0)
    return f"{pictures} pictures with {' or '.join(kinds)}"
