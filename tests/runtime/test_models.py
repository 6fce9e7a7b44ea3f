"""Bundled models, by name."""

import json
from pathlib import Path

import pytest

from common.errors import InputError, ModelError
from runtime.models import ASSETS, better_on_gray, bundled_models, model_file

CONFIG = {
    "model": {"channels": 1},
    "noise": {"sigma_min": 5.0, "sigma_max": 50.0},
    "camera": {"share": 0.5},
}


def bundle(folder: Path, name: str, card: object) -> None:
    (folder / f"{name}.onnx").touch()
    (folder / f"{name}.json").write_text(json.dumps(card))


def test_cards_say_which_noise_a_model_is_for(tmp_path: Path) -> None:
    bundle(tmp_path, "gray", {"trained": {"config": CONFIG}})
    bundle(tmp_path, "real", {"trained": {"config": CONFIG | {"camera": {"share": 1}}}})
    bundle(tmp_path, "white", {"trained": {"config": {k: CONFIG[k] for k in ("model", "noise")}}})
    (tmp_path / "stray.json").write_text("{}")
    (tmp_path / "stray.onnx.part").touch()
    assert {model.name: model.noise for model in bundled_models(tmp_path)} == {
        "gray": "gray pictures with white Gaussian noise of sigma 5 to 50 (of 255) or noise of cameras",
        "real": "gray pictures with noise of cameras",
        "white": "gray pictures with white Gaussian noise of sigma 5 to 50 (of 255)",
    }
    assert model_file("real", tmp_path) == tmp_path / "real.onnx"
    with pytest.raises(InputError, match="expected gray or real or white"):
        model_file("../real", tmp_path)


def test_a_folder_without_models_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected the bundled models, found none: install from a checkout"):
        model_file("real_color", tmp_path)


@pytest.mark.parametrize("card", [{}, [], {"trained": {"config": {"model": {"channels": 2}}}}])
def test_a_damaged_card_is_one_error(tmp_path: Path, card: object) -> None:
    bundle(tmp_path, "bad", card)
    with pytest.raises(ModelError, match="expected a model card"):
        bundled_models(tmp_path)


def test_models_that_do_better_on_gray(tmp_path: Path) -> None:
    colour = CONFIG | {"model": {"channels": 3}}
    bundle(tmp_path, "real", {"trained": {"config": colour}})
    bundle(tmp_path, "white", {"trained": {"config": colour | {"camera": {"share": 0}}}})
    bundle(tmp_path, "old", {"trained": {"config": {k: colour[k] for k in ("model", "noise")}}})

    def better(name: str) -> list[str] | None:
        models = better_on_gray(tmp_path / name, tmp_path)
        return None if models is None else [model.name for model in models]

    (tmp_path / "link.onnx").symlink_to(tmp_path / "white.onnx")
    for white in ("white.onnx", "old.onnx", "link.onnx"):
        assert better(white) == ["real"]
    for other in ("real.onnx", "mine.onnx"):
        assert better(other) is None
    bundle(tmp_path, "gray", {"trained": {"config": CONFIG}})
    assert better("white.onnx") == ["gray", "real"]
    assert better("gray.onnx") is better("real.onnx") is None


def test_the_model_of_white_noise_alone_is_weak_on_gray() -> None:
    assert [model.name for model in better_on_gray(ASSETS / "blind_color.onnx") or []] == ["blind_gray", "real_color"]
    assert better_on_gray(ASSETS / "real_color.onnx") is None


def test_every_bundled_model_has_a_card() -> None:
    models = bundled_models()
    assert {model.path for model in models} == set(ASSETS.glob("*.onnx"))
    assert all(model.noise for model in models)
