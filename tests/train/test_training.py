"""What a run learns, keeps and releases."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from lightning_fabric import Fabric

from common.errors import ModelError
from common.metrics import psnr
from runtime.tiles import OVERLAP
from train.config import from_dict
from train.data import Bank
from train.loop import Trainer
from train.noise import protocol_noise
from train.run import Asked, _plan
from train.sadnet import SADNet, SADNetConfig
from train.seams import EDGE
from train.validation import Noise
from train.weights import load_weights, save_weights

Train = Callable[..., int]
Logged = Callable[..., dict[int, float]]
State = Callable[[Path], dict[str, Any]]


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """make(**sections): a trainer on one flat gray-brown image, validated on another, odd-sized one."""

    def make(channels: int = 3, **sections: dict[str, Any]) -> Trainer:
        values: dict[str, Any] = {"data": {"crop": 16, "batch": 2}, "run": {"steps": 1, "validation_crop": 0}}
        values |= {"model": {"channels": channels}} | sections
        shape = (19, 21, channels)
        pixels = np.tile(np.array([60, 120, 150], np.uint8)[:channels], 19 * 21)
        bank = Bank(("flat.png",), (shape,), pixels)
        fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
        return Trainer(from_dict(values, "test"), tmp_path / "run", bank, bank, fabric)

    return make


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_loss_falls_on_a_flat_image(trainer: Callable[..., Trainer], loss: str) -> None:
    sigmas = {"sigma_min": 50.0, "sigma_max": 50.0, "clip8": False}
    t = trainer(noise=sigmas, optimizer={"loss": loss, "warmup": 0, "lr": 2e-3})
    losses = []
    for step in range(30):
        draws, crops = t.sampler.crops(step)
        losses.append(float(t._train_step(*t.sampler.batch(draws, crops))))
        t.step += 1
    strength = 50 / 255
    expected = strength * math.sqrt(2 / math.pi) if loss == "l1" else strength**2  # a new network changes nothing
    assert losses[0] == pytest.approx(expected, rel=0.1)
    assert all(loss < 0.7 * losses[0] for loss in losses[-3:])


def test_seams_is_what_a_border_near_by_changes_and_training_lowers_it(trainer: Callable[..., Trainer]) -> None:
    t = trainer(data={"crop": 152, "batch": 1}, optimizer={"seams": 20.0, "loss": "l1", "warmup": 0, "lr": 2e-4})
    generator = torch.Generator().manual_seed(0)
    for weight in t.network.parameters():  # a new network changes nothing, wherever borders are
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    noisy, clean = t.sampler.batch(*t.sampler.crops(0))

    def seam() -> float:
        with torch.no_grad():
            whole, tile = t.network(noisy), t.network(noisy[:, :, 24:128, 24:128])  # a fifth of 152, in eights
            return float((whole[:, :, 72:80, 72:80] - tile[:, :, 48:56, 48:56]).abs().mean())

    assert 2 * EDGE == OVERLAP
    before = seam()
    with torch.no_grad():
        plain = float((t.network(noisy) - clean).abs().mean())
    assert before > 1e-3
    assert float(t._train_step(noisy, clean)) == pytest.approx(plain + 20 * before, rel=1e-3)
    for _ in range(10):
        t._train_step(noisy, clean)
    assert seam() < before / 2


def test_gray_networks_train_and_validate(trainer: Callable[..., Trainer]) -> None:
    t = trainer(channels=1)
    assert t.run()
    assert load_weights(t.folder / "weights.safetensors").config.channels == 1


def test_the_gradient_is_clipped_to_its_norm(trainer: Callable[..., Trainer]) -> None:
    t = trainer(optimizer={"clip_norm": 1e-4})
    t._train_step(*t.sampler.batch(*t.sampler.crops(0)))
    gradients = [p.grad.norm() for p in t.network.parameters() if p.grad is not None]
    assert torch.stack(gradients).norm().item() == pytest.approx(1e-4, rel=1e-3)


def test_validation_is_the_protocols_psnr_of_the_released_network(trainer: Callable[..., Trainer]) -> None:
    t = trainer()
    clean = t.validation[0].astype(np.float32) / np.float32(255)
    noisy = protocol_noise(clean, 25, 0, clip8=True)
    assert t.validate(25.0) == pytest.approx(psnr(noisy, clean), abs=1e-4)  # a new network changes nothing
    assert t.validate(0.0) == 100.0
    assert t.network.training


def test_the_moving_average_is_what_is_validated_and_released(trainer: Callable[..., Trainer]) -> None:
    t = trainer(optimizer={"ema": 0.5, "warmup": 0}, run={"steps": 3, "validation_crop": 0})
    average = {name: value.clone() for name, value in t.network.state_dict().items()}
    for step in range(3):
        t.train_once(*t.sampler.crops(step))
        for name, value in t.network.state_dict().items():
            average[name] = torch.lerp(average[name], value, 1 - min(0.5, (1 + step) / (10 + step)))
    assert t.released is not t.network
    for name, value in t.released.state_dict().items():
        assert torch.allclose(value, average[name], rtol=0, atol=1e-7)
    of_average = t.validate(50.0)
    t.average = None
    assert t.released is t.network
    assert t.validate(50.0) != of_average


def test_a_short_run_releases_what_it_has_learned(trainer: Callable[..., Trainer]) -> None:
    t = trainer(optimizer={"ema": 0.999, "warmup": 0})
    first = {name: value.clone() for name, value in t.network.state_dict().items()}
    for step in range(30):
        t.train_once(*t.sampler.crops(step))
    last, released = t.network.state_dict(), t.released.state_dict()
    moved, behind = (sum(float((a[n] - b[n]).norm()) for n in a) for a, b in ((first, last), (released, last)))
    assert behind < moved / 2


def test_a_signal_ends_a_validation_that_is_made_up_for(trainer: Callable[..., Trainer], logged: Logged) -> None:
    t = trainer(run={"steps": 2})
    validate = t.validate

    def interrupted(noise: Noise) -> float | None:
        signal.raise_signal(signal.SIGTERM)
        return validate(noise)

    t.validate = interrupted  # type: ignore[method-assign]
    assert not t.run()
    assert (t.step, t.validated, (t.folder / "weights.safetensors").exists()) == (2, 0, False)
    t.validate = validate  # type: ignore[method-assign]
    assert t.run()
    assert (t.step, t.validated) == (2, 2)
    assert list(logged(t.folder, "psnr_sigma25")) == [2]


def test_a_run_leaves_weights_a_card_and_a_log(uninterrupted: Path, logged: Logged, state: State) -> None:
    assert list(logged(uninterrupted)) == [1, 2, 3, 4, 5, 6]
    assert list(logged(uninterrupted, "lr").values()) == pytest.approx([5e-4] + 5 * [1e-3])
    scores = [logged(uninterrupted, f"psnr_sigma{sigma}")[6] for sigma in (25, 50)]
    assert state(uninterrupted)["best"] == pytest.approx(np.mean(scores))
    card = json.loads((uninterrupted / "weights.json").read_text())
    assert (card["step"], card["training_images"], card["validation_images"]) == (6, 3, 1)
    assert card["validation"] == pytest.approx({"psnr_sigma25": scores[0], "psnr_sigma50": scores[1]}, abs=1e-3)
    assert from_dict(card["config"], "card").data.crop == 16
    assert list(uninterrupted.glob("events.out.tfevents.*"))
    released = load_weights(uninterrupted / "weights.safetensors").state_dict()
    average = state(uninterrupted)["ema"]
    assert released.keys() == average.keys()
    assert all(torch.equal(released[name], average[name].half().float()) for name in released)


def test_weights_are_kept_only_where_they_are_better(trainer: Callable[..., Trainer]) -> None:
    t = trainer()
    assert t._validate_and_keep()
    first = (t.folder / "weights.safetensors").read_bytes()
    assert t.average is not None
    t.average = None
    torch.nn.init.constant_(t.network.out.weight, 0.3)
    t._validate_and_keep()
    assert (t.folder / "weights.safetensors").read_bytes() == first


def test_a_budget_of_minutes_ends_the_run(
    config: Path, tmp_path: Path, train: Train, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--config", config, "--output", tmp_path / "run", "--steps", 0, "--minutes", 0.00001) == 0
    assert state(tmp_path / "run")["step"] <= 1
    assert capsys.readouterr().out.count("warning: data.crop: expected more than 128, found 16: ") == 1


def test_init_begins_at_released_weights_with_a_fresh_optimizer(
    config: Path, uninterrupted: Path, tmp_path: Path, train: Train, logged: Logged, state: State
) -> None:
    weights = uninterrupted / "weights.safetensors"
    arguments = ("--init", weights, "--steps", 1, "--set", "optimizer.lr=1e-9")
    assert train("--config", config, "--output", tmp_path / "run", *arguments) == 0
    begun = state(tmp_path / "run")
    assert begun["step"] == 1
    assert {float(moments["step"]) for moments in begun["optimizer"]["state"].values()} == {1.0}
    for name, value in load_weights(weights).state_dict().items():
        assert torch.allclose(begun["network"][name], value, rtol=0, atol=1e-7)
    assert logged(tmp_path / "run")[1] != logged(uninterrupted)[1]


def test_init_draws_other_crops_and_noise_than_the_release_began_with(uninterrupted: Path, config: Path) -> None:
    weights = uninterrupted / "weights.safetensors"

    def seed(*changes: str) -> int:
        return _plan(Asked(config, None, None, weights, [], None, None, None, list(changes)), 1).settings.run.seed

    assert 0 < seed() == seed() < 2**63
    assert seed("run.seed=3") == 3


def test_init_begins_the_moving_average_too(trainer: Callable[..., Trainer]) -> None:
    t = trainer(optimizer={"ema": 0.9})
    released = {name: torch.full_like(value, 0.25) for name, value in t.network.state_dict().items()}
    t.begin_at(released, "weights.safetensors")
    for network in (t.network, t.released):
        assert all(torch.equal(value, released[name]) for name, value in network.state_dict().items())


def test_init_begins_a_gray_run_at_colour_weights(
    config: Path, uninterrupted: Path, tmp_path: Path, train: Train, state: State
) -> None:
    weights = uninterrupted / "weights.safetensors"
    changes = ("--steps", 1, "--set", "optimizer.lr=1e-9", "model.channels=1", f"data.cache={tmp_path}")
    assert train("--config", config, "--output", tmp_path / "run", "--init", weights, *changes) == 0
    colour, gray = load_weights(weights).state_dict(), state(tmp_path / "run")["network"]
    assert torch.allclose(gray["out.bias"], colour["out.bias"].mean(0, keepdim=True), atol=1e-7)
    assert torch.allclose(gray["dres1.conv1.weight"], colour["dres1.conv1.weight"], atol=1e-7)


def test_init_refuses_another_network(
    config: Path, uninterrupted: Path, tmp_path: Path, train: Train, one_error: Callable[[], str]
) -> None:
    official = ("--set", "model.variant=official")
    weights = uninterrupted / "weights.safetensors"
    assert train("--config", config, "--output", tmp_path / "run", "--init", weights, *official) == 2
    assert "out.weight" in one_error()


def test_a_decay_branches_off_and_leaves_the_run_alone(
    halfway: Path, tmp_path: Path, train: Train, logged: Logged, state: State, one_error: Callable[[], str]
) -> None:
    halfway = shutil.copytree(halfway, tmp_path / "halfway")  # the branch appears beside it
    before = {path.name: path.read_bytes() for path in halfway.iterdir()}
    assert train("--decay", halfway, "--steps", "4") == 0
    assert {path.name: path.read_bytes() for path in halfway.iterdir()} == before
    branch = halfway.with_name("halfway-decay3")
    rates = logged(branch, "lr")
    assert list(rates) == [4, 5, 6, 7]
    assert rates[7] == pytest.approx(1e-3 * 0.01)
    assert rates[5] == pytest.approx(1e-3 * 0.505)
    assert state(branch)["step"] == 7
    assert state(branch)["optimizer"]["param_groups"][0]["lr"] == rates[7]
    assert list(logged(branch, "psnr_sigma25")) == [7]
    assert (branch / "weights.safetensors").exists()
    assert train("--resume", branch, "--steps", 8) == 0
    assert logged(branch, "lr")[8] == pytest.approx(1e-5)
    assert train("--decay", branch, "--steps", 4) == 2
    assert "expected a run at its whole rate, found one whose rate has fallen since step 3" in one_error()


def test_a_branch_keeps_its_own_best_whatever_the_runs_was(
    halfway: Path, tmp_path: Path, train: Train, state: State
) -> None:
    (tmp_path / "run").mkdir()
    torch.save(state(halfway) | {"best": 99.0}, tmp_path / "run/checkpoint.pt")
    assert train("--decay", tmp_path / "run", "--output", tmp_path / "b", "--steps", "1") == 0
    assert (tmp_path / "b/weights.safetensors").exists()
    assert state(tmp_path / "b")["best"] < 99


@pytest.mark.parametrize("config_", [SADNetConfig(), SADNetConfig("official", 1, offset_transfer=False)])
def test_a_weights_file_says_which_network_it_holds(tmp_path: Path, config_: SADNetConfig) -> None:
    network, path = SADNet(config_), tmp_path / "w.safetensors"
    save_weights(network, path)
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["sadnet"]) == config_.as_dict()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118 (no mapping)
    loaded = load_weights(path)
    assert loaded.config == config_
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def test_files_that_are_no_weights_of_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ModelError, match="expected SADNet weights"):
        load_weights(path)
    with pytest.raises(ModelError, match="expected SADNet weights"):
        load_weights(tmp_path)
    for content in (b"", b"text", b"\x10\0\0\0\0\0\0\0{}"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="expected SADNet weights"):
            load_weights(path)
    import safetensors.torch

    for metadata in (None, {"sadnet": "[]"}, {"sadnet": '{"variant": "x"}'}, {"sadnet": "{"}):
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, metadata))
        with pytest.raises(ModelError, match="no SADNet configuration"):
            load_weights(path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"sadnet": "{}"}))
    with pytest.raises(ModelError, match="expected a with none"):
        load_weights(path)
