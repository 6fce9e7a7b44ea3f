"""Configurations: the shipped ones load, mistakes are one line each before anything is trained."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from train.config import OptimizerConfig, TrainConfig, from_dict, load, narrow_crops, override
from train.sadnet import ContextBlock

CONFIGS = Path(__file__).parents[2] / "train/configs"
BLIND, PAPER = CONFIGS / "blind_color.toml", CONFIGS / "paper_color_sigma50.toml"
REAL, FINETUNE = CONFIGS / "real.toml", CONFIGS / "real_finetune.toml"


def test_the_blind_configuration_is_what_the_bundled_model_is_trained_with() -> None:
    config = load(BLIND)
    assert (config.model.variant, config.model.channels) == ("paper", 3)
    assert (config.noise.sigma_min, config.noise.sigma_max, config.noise.clip8) == (0, 75, True)
    assert (
        config.optimizer.rate(100_000) == config.optimizer.lr
    )  # constant, so that it may run for as long as one likes


def test_the_papers_configuration_is_the_papers_recipe() -> None:
    config = load(PAPER)
    o = config.optimizer
    assert (config.data.batch, config.data.crop, o.loss) == (16, 128, "l2")
    assert config.model.variant == "official"
    assert (o.beta1, o.beta2, o.eps, o.weight_decay) == (0.9, 0.999, 1e-8, 0)
    assert (config.noise.sigma_min, config.noise.sigma_max) == (50, 50)
    assert [o.rate(step) for step in (0, 199_999, 200_000, 399_999)] == [1e-4, 1e-4, 5e-5, 5e-5]


def test_real_photos_train_with_l1_and_are_validated_on_polyus_scenes() -> None:
    for path in (REAL, FINETUNE):
        config = load(path)
        assert config.optimizer.loss == "l1"
        assert Path(config.data.holdout).name == "polyu_validation.txt"
    real, finetune = load(REAL), load(FINETUNE)
    assert 0.5 < real.camera.share < 1
    assert real.optimizer.rate(100_000) == real.optimizer.lr
    assert finetune.optimizer.rate(19_999) == pytest.approx(0.01 * finetune.optimizer.lr)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_crops_are_wide_enough_for_the_context_block(path: Path) -> None:
    assert narrow_crops(load(path)) == ""


@pytest.mark.parametrize(("variant", "least"), [("paper", 128), ("official", 64)])
def test_narrower_crops_are_those_where_opposite_taps_are_never_both_inside(variant: str, least: int) -> None:
    """Counted by the block's own convolutions, of ones on a map of ones: a tap on padding adds nothing."""
    block = ContextBlock(4, load(BLIND, [f"model.variant={variant}"]).model.dilations).requires_grad_(False)
    branches = (block.conv1, block.conv2, block.conv3, block.conv4)
    for parameter in block.parameters():
        parameter.zero_()
    for branch in branches:
        branch.weight[:, :, 1, ::2] = 1  # left and right of the middle
    for crop in (least, least + 8):
        ones = torch.ones(1, 1, crop // 8, crop // 8)
        inside = [float(branch(ones).max()) for branch in branches]
        warning = narrow_crops(load(BLIND, [f"model.variant={variant}", f"data.crop={crop}"]))
        assert (min(inside) == 2) == (warning == "") == (crop > least)
    assert f"expected more than {least}, found {least}" in narrow_crops(
        load(BLIND, [f"model.variant={variant}", f"data.crop={least}"])
    )
    assert narrow_crops(load(BLIND, ["model.context=false", "data.crop=8"])) == ""


def test_camera_noise_is_off_unless_a_configuration_asks_for_it() -> None:
    for path in (BLIND, PAPER):
        assert load(path).camera.share == 0


def test_a_checkpoint_of_before_there_were_cameras_and_pairs_loads() -> None:
    values = load(BLIND).as_dict()
    del values["camera"], values["data"]["pair_share"]
    assert from_dict(values, "old checkpoint") == load(BLIND)


def test_overrides_are_read_as_toml_or_as_bare_text() -> None:
    config = load(
        BLIND,
        [
            "run.steps=7",
            "optimizer.lr=1e-3",
            "optimizer.loss=l1",
            'data.folders=["a b", "c"]',
            "data.cache=/tmp/x",
            "noise.clip8=false",
            "run.validation_sigmas=30",
            "run.steps = 8",
        ],
    )
    assert (config.run.steps, config.optimizer.lr, config.optimizer.loss) == (8, 1e-3, "l1")
    assert (config.data.folders, config.data.cache) == (("a b", "c"), "/tmp/x")
    assert (config.noise.clip8, config.run.validation_sigmas) == (False, (30.0,))


def test_overriding_leaves_the_original_alone() -> None:
    values = {"run": {"steps": 1}}
    assert override(values, ["run.steps=2", "data.crop=16"]) == {"run": {"steps": 2}, "data": {"crop": 16}}
    assert values == {"run": {"steps": 1}}


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["run.step=5"], "no key 'step'"),
        (["runs.steps=5"], "'runs'"),
        (["steps=5"], "section.key=value"),
        (["run.steps"], "section.key=value"),
        (["run.steps=ten"], "run.steps"),
        (["run.steps=1.5"], "run.steps"),
        (["run.steps=true"], "run.steps"),
        (["noise.clip8=1"], "noise.clip8"),
        (["optimizer.lr=nan"], "optimizer.lr"),
        (["optimizer.lr=inf"], "optimizer.lr"),
        (["optimizer.lr=fast"], "optimizer.lr"),
        (["optimizer.lr=0"], "optimizer.lr"),
        (["optimizer.loss=l3"], "l1, l2"),
        (["optimizer.ema=1.0"], "optimizer.ema"),
        (["optimizer.seams=-1"], "optimizer.seams: expected no negative value"),
        (["optimizer.seams=0.5", "data.crop=144"], "optimizer.seams: expected 0, or crops of 152, 168 and more"),
        (["optimizer.seams=0.5", "data.crop=160"], "optimizer.seams: expected 0, or crops of 152, 168 and more"),
        (["optimizer.beta1=1.5"], "optimizer.beta1"),
        (["optimizer.beta2=-0.1"], "optimizer.beta2"),
        (["optimizer.eps=-1e-8"], "optimizer.eps"),
        (["optimizer.weight_decay=-1.0"], "optimizer.weight_decay"),
        (["optimizer.warmup=-1"], "optimizer.warmup"),
        (["noise.sigma_max=1000"], "sigma_max <= 255"),
        (["noise.sigma_min=-1"], "sigma_min"),
        (["noise.sigma_min=50", "noise.sigma_max=10"], "sigma_min"),
        (["data.pair_share=1.5"], "data.pair_share: expected a share from 0 to 1"),
        (["data.gray=2"], "data.gray: expected a share from 0 to 1"),
        (["camera.share=-0.1"], "camera.share: expected a share from 0 to 1"),
        (["camera.jpeg=1.5"], "camera.jpeg: expected a share from 0 to 1"),
        (["camera.tone=2"], "camera.tone: expected a share from 0 to 1"),
        (["camera.shot=[0.0, 0.1]"], "camera.shot: expected [least, most]"),
        (["camera.shot=[0.1, 0.01]"], "camera.shot: expected [least, most]"),
        (["camera.red_gain=2.0"], "camera.red_gain: expected [least, most]"),
        (["camera.saturation=[0.1, 0.2, 0.3]"], "camera.saturation: expected [least, most]"),
        (["camera.chroma_blur=[0, 9]"], "camera.chroma_blur: expected [least, most] from 0 to 3"),
        (["camera.quality=[0, 90]"], "camera.quality: expected [least, most] from 1 to 100"),
        (["camera.quality=[60.5, 90]"], "camera.quality"),
        (["camera.share=0.5", "model.channels=1"], "camera.share: expected 0 for a gray network"),
        (["data.gray=0.5", "model.channels=1"], "data.gray: expected 0 for a gray network"),
        (["run.validation_sigmas=[1000]"], "0..255"),
        (["run.validation_sigmas=[]"], "validation_sigmas"),
        (["run.validation_crop=-5"], "run.validation_crop"),
        (["run.seed=-1"], "run.seed"),
        (["run.threads=-2"], "run.threads"),
        (["run.validation_crop=2"], "run.validation_crop: expected 0, or 8 and more"),
        (["run.minutes=-1"], "run.minutes"),
        (["run.minutes=0"], "budget"),
        (["run.log_every=0"], "log_every"),
        (["data.crop=60"], "multiple of 8"),
        (["data.batch=0"], "data.batch"),
        (["model.variant=tiny"], "paper, official"),
        (["model.channels=true"], "model.channels"),
        (["model.channels=3.0"], "model.channels"),
        (["model.rsab=false"], "offset_transfer"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides: Sequence[str], named: str) -> None:
    with pytest.raises(InputError) as caught:
        load(BLIND, overrides)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["run = 3", "steps = 3", "[run\nsteps = 3", "[run]\nsteps = 3\nsteps = 4", "\xff"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    for overrides in ([], ["run.minutes=1"]):
        with pytest.raises(InputError):
            load(path, overrides)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="expected a TOML configuration"):
            load(path)


@pytest.mark.parametrize("path", [BLIND, PAPER, REAL, FINETUNE])
def test_a_configuration_survives_a_checkpoint(path: Path, tmp_path: Path) -> None:
    config = load(path, ["run.validation_sigmas=[1.5, 2]", 'data.folders=["x"]'])
    torch.save({"config": config.as_dict()}, tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert from_dict(state["config"], "c.pt") == config


def test_the_defaults_are_a_configuration() -> None:
    assert from_dict(TrainConfig().as_dict() | {"run": {"steps": 1}}, "x") == from_dict({"run": {"steps": 1}}, "y")


def test_the_rate_rises_in_a_line_over_the_warmup() -> None:
    o = OptimizerConfig(lr=1.0, warmup=4)
    assert [o.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert OptimizerConfig(lr=1.0, warmup=0).rate(0) == 1


def test_the_rate_is_halved_once() -> None:
    o = OptimizerConfig(lr=1.0, warmup=0, halve_after=3)
    assert [o.rate(step) for step in (2, 3, 6, 100)] == [1, 0.5, 0.5, 0.5]


def test_the_decay_is_a_cosine_down_to_one_percent() -> None:
    o = OptimizerConfig(lr=1.0, warmup=0, decay_from=10, decay_steps=8)
    rates = [o.rate(step) for step in range(20)]
    assert rates[:10] == [1] * 10
    for done in range(1, 9):
        assert rates[9 + done] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * done / 8)) / 2)
    assert rates[13] == pytest.approx(0.505)
    assert rates[17:] == pytest.approx([0.01] * 3)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[9:18]))
