"""Table 1 of the paper with networks of ours: trains its six at one budget, and scores each on Kodak24.

    python train/ablation.py --data BSDS500 photos --test /data/testsets
    python train/ablation.py --data photos --test /data/testsets --set run.steps=100000 optimizer.decay_steps=99500

Each network is a run of `train/run.py` in a folder of OUTPUT; the same command goes on where it was stopped, and where
all six are trained it only scores them. `make tables` puts the figures beside the paper's.
"""

import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from common import cli
from common.errors import InputError, OutputError
from common.files import sha256, write_whole

with cli.needs("dev", __name__):
    from train import config as configuration
    from train.cells import ImageSet, image_sets
    from train.checkpoint import CHECKPOINT, read_checkpoint
    from train.config import TrainConfig
    from train.datasets import absolute
    from train.evaluate import Protocol, evaluate, finite, open_denoiser, read_clean
    from train.loop import CARD, WEIGHTS
    from train.results_page import PARTS

ROOT = Path(__file__).resolve().parent.parent
SET, SIGMA = "kodak24", 50.0
"""Table 1's test set and noise."""
NETWORKS: tuple[dict[str, Any], ...] = tuple(
    dict(zip(PARTS, present, strict=True))
    for present in itertools.product((False, True), repeat=len(PARTS))
    if present[0] or not present[1]  # without RSAB there are no offsets to transfer
)
"""Which parts each network has, from none of them to all."""

app = cli.application("Train the six networks of the paper's Table 1 at one budget, and score each on Kodak24.")


@app.command()
def main(
    data: Annotated[list[str], typer.Option(help="folders of clean photos to train on (one or more)")],
    test: Annotated[Path, typer.Option(help="folder with Kodak24 anywhere below it")],
    config: Annotated[Path, typer.Option(help="TOML file of the six runs")] = ROOT / "train/configs/ablation.toml",
    output: Annotated[Path, typer.Option(help="folder of the runs' folders")] = Path("runs/ablation"),
    json_: Annotated[Path, typer.Option("--json", help="file of the figures; replaced where it exists")] = ROOT
    / "docs/results/ablation.json",
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over the configuration")] = None,
) -> None:
    """Train what is not trained yet, then write the figures of all six."""
    folders = json.dumps([absolute(folder) for folder in data], ensure_ascii=False)
    changes = [f"data.folders={folders}", *(set_ or [])]
    settings = configuration.load(config, changes)
    noise, model = settings.noise, settings.model
    if (noise.sigma_min, noise.sigma_max, model.channels) != (SIGMA, SIGMA, 3):
        found = f"sigma {noise.sigma_min:g} to {noise.sigma_max:g} and {model.channels} channels"
        raise InputError(f"{config}: expected Table 1's sigma of {SIGMA:g} and 3 channels, found {found}")
    if not settings.run.steps or settings.run.minutes:
        raise InputError(f"{config}: expected a budget of steps alone, so that it is the same for all six")
    if not json_.parent.is_dir():
        raise OutputError(f"{json_}: expected a file in a folder that exists; choose another --json")
    held = _test_set(test)
    protocol = Protocol.CLIP8 if noise.clip8 else Protocol.FLOAT
    images = read_clean(example.clean[0] for example in held.examples)
    wanted = {output / _name(parts): replace(settings, model=replace(model, **parts)) for parts in NETWORKS}
    for folder, of in wanted.items():  # before hours of training
        _check(folder, of)
    rows = []
    for folder, of in wanted.items():
        print(f"{folder.name}:", flush=True)
        _train(folder, of, config, changes)
        with open_denoiser(folder / WEIGHTS) as denoiser:
            score = evaluate(denoiser, images, SIGMA, protocol)
        print(f"{folder.name}: {score['psnr']:.2f} / {score['ssim']:.3f}", flush=True)
        rows.append(_row(folder, of, score))
    budget = {"steps": settings.run.steps, "batch": settings.data.batch, "crop": settings.data.crop}
    record = {
        "set": SET,
        "set_sha256": held.sha256,
        "images": len(images),
        "protocol": str(protocol),
        "sigma": SIGMA,
        "variant": model.variant,
        "seed": settings.run.seed,
        **budget,
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    write_whole(json_, json.dumps(finite(record), indent=1) + "\n", overwrite=True)
    print(f"wrote {json_}; make tables shows it")


def _name(parts: dict[str, Any]) -> str:
    return "-".join(part for part in PARTS if parts[part]) or "none"


def _test_set(folder: Path) -> ImageSet:
    sets, why = image_sets(folder)
    held = next((held for held in sets if held.name == SET), None)
    if held is None:
        raise InputError(f"{folder}: expected Kodak24 below it, found none: {why[SET]}")
    return held


def _check(folder: Path, settings: TrainConfig) -> None:
    """Raises InputError where a run stands in the folder that is not the one that is asked for."""
    if not (folder / CHECKPOINT).exists():
        return
    there = configuration.from_dict(read_checkpoint(folder)["config"], str(folder))
    if there != settings:
        pairs = zip(_flat(there).items(), _flat(settings).items(), strict=True)
        name, found, asked = next((name, a, b) for (name, a), (_, b) in pairs if a != b)
        raise InputError(f"{folder} holds a run with {name} {found}, not {asked}: choose another --output")


def _flat(settings: TrainConfig) -> dict[str, Any]:
    return {f"{section}.{key}": v for section, values in settings.as_dict().items() for key, v in values.items()}


def _train(folder: Path, settings: TrainConfig, config: Path, changes: list[str]) -> None:
    """Train a network as a user would; one that is finished has nothing to do."""
    model = [f"model.{part}={str(getattr(settings.model, part)).lower()}" for part in PARTS]
    begin = ["--config", str(config), "--output", str(folder), "--set", *changes, *model]
    code = run_py(["--resume", str(folder)] if (folder / CHECKPOINT).exists() else begin)
    if code:  # it has told why by itself
        raise typer.Exit(code)


def run_py(arguments: list[str]) -> int:
    """The exit code of `train/run.py`, in a process of its own, so that no run leaves anything to the next."""
    return subprocess.run([sys.executable, str(ROOT / "train" / "run.py"), *arguments], check=False).returncode


def _row(folder: Path, settings: TrainConfig, score: dict[str, Any]) -> dict[str, Any]:
    card = json.loads((folder / CARD).read_text())
    return {
        **{part: getattr(settings.model, part) for part in PARTS},
        "psnr": round(score["psnr"], 4),
        "ssim": round(score["ssim"], 6),
        "step": card["step"],
        "seconds": card["seconds"],
        "on": f"{card['device']}, torch {card['torch']}",
        "training_images": card["training_images"],
        "weights_sha256": sha256(folder / WEIGHTS),
    }


if __name__ == "__main__":
    cli.run(app, several=("--data", "--set"))
