"""Make a bundled model of a run: weights, ONNX file and model card, scored on test sets.

    python export/release.py runs/blind_color-decay20000 --name blind_color --test Kodak24 CBSD68 \
        --training-data "BSDS500 train and test, 380 images, non-commercial research"

Writes assets/NAME.safetensors (fp16), assets/NAME.onnx (fp32, images float32, parity checked) and assets/NAME.json,
the card. The test sets are for released models only: a run chooses its weights on its held-out images.
"""

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from common import cli
from common.errors import InputError, ModelError
from common.files import sha256, write_whole
from export.parity import ASSETS
from export.to_onnx import Io, Precision, write_onnx
from runtime.denoiser import Denoiser
from train.evaluate import Protocol, clean_images, evaluate, open_model
from train.loop import CARD, WEIGHTS

TERMS = "non-commercial research and education, as the training data: assets/LICENSE"

app = cli.application("Make a bundled model of a training run.")


@app.command()
def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run of train/run.py")],
    name: Annotated[str, typer.Option(help="of the model's files in assets/")],
    training_data: Annotated[str, typer.Option(help="the sets, their size and their terms, for the card")],
    test: Annotated[list[Path], typer.Option(help="folders of clean test images (one or more)")],
    sigma: Annotated[list[float] | None, typer.Option(help="noise levels of the test (one or more)")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model that is there")] = False,
) -> None:
    """Copy the run's best weights, export them, score them and write the card."""
    try:
        trained: dict[str, Any] = json.loads((run / CARD).read_text())
        weights = (run / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"{run}: expected a run with {WEIGHTS} and {CARD}, found: {error}") from error
    folders = trained["config"]["data"]["folders"]
    trained["config"]["data"]["folders"] = [Path(folder).name for folder in folders]  # not where they lay here
    sets = {folder.name: clean_images(folder) for folder in test}
    paths = {kind: ASSETS / f"{name}.{kind}" for kind in ("safetensors", "onnx", "json")}
    if not overwrite and any(path.exists() for path in paths.values()):
        raise InputError(f"{ASSETS / name}.*: expected no such model, found one: pass --overwrite to replace it")

    write_whole(paths["safetensors"], weights, overwrite=overwrite)
    write_onnx(paths["safetensors"], paths["onnx"], Precision.FP32, Io.FLOAT32, overwrite=overwrite)
    with open_model(paths["onnx"]) as engine, Denoiser(engine) as denoiser:
        rows = []
        for folder, images in sets.items():
            for level in sigma or [15, 25, 30, 50, 70]:
                row = evaluate(denoiser, images, level, Protocol.CLIP8)
                rows.append({"set": folder, "images": len(images)} | {k: row[k] for k in ("sigma", "protocol")})
                rows[-1] |= {"psnr": round(row["psnr"], 3), "ssim": round(row["ssim"], 4)}
                print(json.dumps(rows[-1]), flush=True)
        scored_on = engine.name
    card = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "terms": TERMS,
        "training_data": training_data,
        "trained": trained,
        "processor": platform.processor() or platform.machine(),
        "commit": _commit(),
        "sha256": {path.name: sha256(path) for path in (paths["safetensors"], paths["onnx"])},
        "scored_on": scored_on,
        "scores": rows,
    }
    write_whole(paths["json"], json.dumps(card, indent=1) + "\n", overwrite=overwrite)
    print(f"wrote {', '.join(str(path) for path in paths.values())}")


def _commit() -> str:
    """The checkout's commit, for the card."""
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ASSETS, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown: not a git checkout"


if __name__ == "__main__":
    cli.run(app, several=("--test", "--sigma"))
