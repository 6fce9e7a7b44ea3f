"""Table 1 of the paper with networks of ours: trains its six at one budget, and scores each on Kodak24.

    python train/ablation.py --data BSDS500/train BSDS500/test photos --test /data/testsets
    python train/ablation.py --data BSDS500/train BSDS500/test photos --test /data/testsets --output runs/longer \\
        --set run.steps=20000 optimizer.decay_steps=19500

Each network is a run of `train/run.py` in a folder of OUTPUT; the same command goes on where it was stopped, and where
all six are trained it only scores them. The figures are in OUTPUT/ablation.json; those in docs/results are what
`make tables` puts beside the paper's.
"""

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from common import cli
from common.errors import InputError, ModelError
from common.files import sha256, write_whole

with cli.needs("dev", __name__):
    from train import config as configuration
    from train import run
    from train.cells import ImageSet, image_sets
    from train.checkpoint import CHECKPOINT, read_checkpoint
    from train.config import TrainConfig
    from train.datasets import absolute
    from train.evaluate import Protocol, evaluate, finite, open_denoiser, read_clean
    from train.journal import LOG
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
    output: Annotated[Path, typer.Option(help="folder of the runs' folders and of the figures")] = Path(
        "runs/ablation"
    ),
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
    held = _test_set(test)
    protocol = Protocol.CLIP8 if noise.clip8 else Protocol.FLOAT
    images = read_clean(example.clean[0] for example in held.examples)
    wanted = {output / _name(parts): replace(settings, model=replace(model, **parts)) for parts in NETWORKS}
    finished = [folder for folder, of in wanted.items() if _finished(folder, of)]  # a wrong one shows before training
    rows = []
    for folder, of in wanted.items():
        if folder not in finished:
            print(f"{folder.name}:", flush=True)
            _train(folder, of, config, changes)
        with open_denoiser(folder / WEIGHTS) as denoiser:
            score = evaluate(denoiser, images, SIGMA, protocol)
        print(f"{folder.name}: {score['psnr']:.2f} / {score['ssim']:.3f}", flush=True)
        rows.append(_row(folder, of, score))
    record = {
        "set": SET,
        "set_sha256": held.sha256,
        "images": len(images),
        "protocol": str(protocol),
        "sigma": SIGMA,
        "variant": model.variant,
        "seed": settings.run.seed,
        "steps": settings.run.steps,
        "batch": settings.data.batch,
        "crop": settings.data.crop,
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    figures = output / "ablation.json"
    write_whole(figures, json.dumps(finite(record), indent=1) + "\n", overwrite=True)
    print(f"wrote {figures}")


def _name(parts: dict[str, Any]) -> str:
    return "-".join(part for part in PARTS if parts[part]) or "none"


def _test_set(folder: Path) -> ImageSet:
    sets, why = image_sets(folder)
    held = next((held for held in sets if held.name == SET), None)
    if held is None:
        raise InputError(f"{folder}: expected Kodak24 below it, found none: {why[SET]}")
    if held.channels != 3:
        raise InputError(f"{folder}: expected Kodak24 in colour, found gray images")
    return held


def _finished(folder: Path, settings: TrainConfig) -> bool:
    """Whether this run is at its end, validated. Raises InputError where the folder holds another run."""
    if not (folder / CHECKPOINT).exists():
        if held := [name for name in (WEIGHTS, CARD, LOG) if (folder / name).exists()]:  # killed in its first minute
            raise InputError(f"{folder} holds {', '.join(held)}, but no checkpoint to go on from: remove it")
        return False
    state = read_checkpoint(folder)
    there = configuration.from_dict(state["config"], str(folder))
    if there != settings:
        pairs = zip(_flat(there).items(), _flat(settings).items(), strict=True)
        name, found, asked = next((name, a, b) for (name, a), (_, b) in pairs if a != b)
        raise InputError(f"{folder} holds a run with {name} {found}, not {asked}: choose another --output")
    return bool(settings.run.steps <= state["step"] == state["validated"])  # killed in its last validation: no


def _flat(settings: TrainConfig) -> dict[str, Any]:
    return {f"{section}.{key}": v for section, values in settings.as_dict().items() for key, v in values.items()}


def _train(folder: Path, settings: TrainConfig, config: Path, changes: list[str]) -> None:
    """Begin or resume one network's run. Raises typer.Exit where Ctrl-C or SIGTERM stopped it, after it has saved."""
    model = [f"model.{part}={str(getattr(settings.model, part)).lower()}" for part in PARTS]
    if (folder / CHECKPOINT).exists():
        run.main(resume=folder)
    else:
        run.main(config=config, output=folder, set_=[*changes, *model])


def _row(folder: Path, settings: TrainConfig, score: dict[str, Any]) -> dict[str, Any]:
    state = read_checkpoint(folder)
    try:
        card = json.loads((folder / CARD).read_text())
        on, images = f"{card['device']}, torch {card['torch']}", card["training_images"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{folder / CARD}: expected a run's card, found: {error!r}") from error
    return {
        **{part: getattr(settings.model, part) for part in PARTS},
        "psnr": round(score["psnr"], 4),
        "ssim": round(score["ssim"], 6),
        "seconds": round(state["seconds"]),
        "on": on,
        "training_images": images,
        "weights_sha256": sha256(folder / WEIGHTS),
    }


if __name__ == "__main__":
    cli.run(app, several=("--data", "--set"))
