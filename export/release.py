"""Make a bundled model of a run: weights, ONNX file and model card, scored on test sets.

    python export/release.py runs/blind_color-decay20000 --name blind_color --test Kodak24 CBSD68 \
        --training-data "BSDS500 train and test, 380 images, non-commercial research"
    python export/release.py runs/real --name real_color --test CC --training-data "..." --mean-with start.safetensors

Writes assets/NAME.safetensors (fp16), assets/NAME.onnx (fp32, images float32, parity checked) and assets/NAME.json,
the card. The test sets, clean images or pairs, are for released models only: a run chooses its weights on its held-out
images.
"""

import contextlib
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from common import cli
from common.errors import InputError, ModelError
from common.files import sha256, whole_file

with cli.needs("dev", __name__):
    from export.parity import ASSETS
    from export.to_onnx import Io, Precision, write_onnx
    from train.datasets import parse
    from train.evaluate import (
        Protocol,
        check_sigmas,
        clean_images,
        evaluate,
        evaluate_pairs,
        open_denoiser,
        pairs_of,
    )
    from train.loop import CARD, WEIGHTS
    from train.sadnet import SADNet
    from train.weights import load_weights, save_weights

TERMS = "non-commercial research and education, as the training data: assets/LICENSE"

app = cli.application("Make a bundled model of a training run.")


@app.command()
def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run of train/run.py")],
    name: Annotated[str, typer.Option(help="of the model's files in assets/")],
    training_data: Annotated[str, typer.Option(help="the sets, their size and their terms, for the card")],
    test: Annotated[list[str], typer.Option(help="folders of clean test images or of pairs (one or more)")],
    sigma: Annotated[list[float] | None, typer.Option(help="noise levels for clean images (one or more)")] = None,
    mean_with: Annotated[
        Path | None, typer.Option(help="weights, as a rule those that the run began with: release a mean of both")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="of the run's weights in that mean")] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model that is there")] = False,
) -> None:
    """Copy the run's best weights, export them, score them and write the card; all three files appear at the end."""
    levels = sigma or [15, 25, 30, 50, 70]
    check_sigmas(levels)
    try:
        trained: dict[str, Any] = json.loads((run / CARD).read_text())
        folders = trained["config"]["data"]["folders"]
        trained["config"]["data"]["folders"] = [Path(folder).name for folder in folders]  # not where they lay here
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{run}: expected a run with {WEIGHTS} and {CARD}, found: {error!r}") from error
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"--name: expected letters, digits and any of _.-, found {name!r}")
    paths = {kind: ASSETS / f"{name}.{kind}" for kind in ("safetensors", "onnx", "json")}
    if not overwrite and any(path.exists() for path in paths.values()):
        raise InputError(f"{ASSETS / name}.*: expected no such model, found one: pass --overwrite to replace it")
    pairs = {text: found for text in test if (found := pairs_of(text))}
    sets = {text: clean_images(parse(text)[1]) for text in test if text not in pairs}

    with contextlib.ExitStack() as stack:
        weights, onnx_file, card_file = (
            stack.enter_context(whole_file(p, overwrite=overwrite)) for p in paths.values()
        )
        save_weights(_mean(run / WEIGHTS, mean_with, share) if mean_with else load_weights(run / WEIGHTS), weights)
        write_onnx(weights, onnx_file, Precision.FP32, Io.FLOAT32, overwrite=True)
        scores = []
        with open_denoiser(onnx_file) as denoiser:
            scored_on = denoiser.engine.name
            for text in test:
                rows = (
                    [evaluate_pairs(denoiser, pairs[text])]
                    if text in pairs
                    else (evaluate(denoiser, sets[text], level, Protocol.CLIP8) for level in levels)
                )
                for row in rows:
                    scores.append(_score(parse(text)[1].resolve().name, row))
                    print(json.dumps(scores[-1]), flush=True)
        card = {
            "name": name,
            "date": time.strftime("%Y-%m-%d"),
            "terms": TERMS,
            "training_data": training_data,
            "trained": trained,
            **({"mean_with": {"weights_sha256": sha256(mean_with), "share": share}} if mean_with else {}),
            "commit": _commit(),
            "sha256": {paths["safetensors"].name: sha256(weights), paths["onnx"].name: sha256(onnx_file)},
            "scored_on": scored_on,
            "scores": scores,
        }
        card_file.write_text(json.dumps(card, indent=1) + "\n")
    print(f"wrote {', '.join(str(path) for path in paths.values())}")


def _mean(trained: Path, other: Path, share: float) -> SADNet:
    """A share of what a run has learned and the rest of what it began with: often better than either where the run's
    data are not the test's (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022)."""
    network, second = load_weights(trained), load_weights(other)
    if network.config != second.config:
        raise ModelError(f"{other}: expected weights of the network of {trained}, found another: {second.config}")
    theirs = second.state_dict()
    network.load_state_dict({key: theirs[key].lerp(value, share) for key, value in network.state_dict().items()})
    return network


def _score(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of `train/evaluate.py` as the card holds it."""
    score = {"set": name, "images": len(row["images"])} | {key: row[key] for key in ("sigma", "protocol") if key in row}
    digits = {"psnr": 4, "ssim": 6, "noisy_psnr": 4, "noisy_ssim": 6}  # to be rounded to 2 and 3 once
    return score | {key: round(row[key], places) for key, places in digits.items() if key in row}


def _commit() -> str:
    """The checkout's commit, for the card; "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, cwd=ASSETS, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown: not a git checkout"


if __name__ == "__main__":
    cli.run(app, several=("--test", "--sigma"))
