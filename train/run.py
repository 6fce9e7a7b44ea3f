"""Train SADNet.

    python train/run.py --config train/configs/blind_color.toml --data PHOTOS --minutes 60
    python train/run.py --config train/configs/real.toml --data PolyU PHOTOS --minutes 60     # pairs and clean photos
    python train/run.py --resume runs/blind_color --minutes 60              # go on where it stopped
    python train/run.py --decay runs/blind_color --steps 4000               # branch a release off
    python train/run.py --config train/configs/blind_color.toml --init assets/blind_color.safetensors --minutes 60

The run's folder holds the checkpoint, the logs (JSON lines and TensorBoard) and `weights.safetensors`, the best
weights by PSNR on held-out images, with their card. `export/to_onnx.py` takes it from there.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common import cli
from common.errors import InputError

with cli.needs("dev", __name__):
    import torch
    from lightning_fabric import Fabric

    from train import config as configuration
    from train.config import TrainConfig
    from train.data import Bank, open_bank, split
    from train.datasets import absolute, examples
    from train.loop import CARD, CHECKPOINT, LOG, WEIGHTS, Trainer, read_checkpoint
    from train.weights import load_state, load_weights

CHECKOUT = Path(__file__).resolve().parent.parent
INIT_WARMUP = 500
"""Steps of warm-up for `--init`, where the configuration has none."""
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

app = cli.application("Train SADNet on folders of clean photos and of pairs of noisy and clean ones.")


@app.command()
def main(
    config: Annotated[Path | None, typer.Option(help="TOML file of a new run (train/configs holds some)")] = None,
    resume: Annotated[Path | None, typer.Option(help="folder of a run to continue")] = None,
    decay: Annotated[
        Path | None, typer.Option(help="folder of a run to branch a release off, whose rate falls over --steps")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="weights.safetensors that a new run starts from")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="folders of images, or NAME=FOLDER of a data set (train/datasets.py)")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder of a new run; default runs/<name of the config>")] = None,
    steps: Annotated[int | None, typer.Option(help="budget: the run's steps in all; with --decay, the decay's")] = None,
    minutes: Annotated[float | None, typer.Option(help="budget: minutes of this process (run.minutes)")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over the configuration")] = None,
) -> None:
    """Train until the budget is spent; Ctrl-C saves and exits."""
    if sum(option is not None for option in (config, resume, decay)) != 1:
        raise InputError("expected one of --config FILE, --resume RUN and --decay RUN")
    if init and not config:
        raise InputError("--init starts a new run: expected --config FILE with it")
    if output and resume:
        raise InputError("--resume goes on in the run's own folder: expected no --output with it")
    if minutes is not None and decay:
        raise InputError("--decay lasts for --steps: expected no --minutes with it")
    folders = json.dumps([absolute(d) for d in data or []], ensure_ascii=False)  # found again from anywhere
    overrides = [f"data.folders={folders}"] if data else []
    overrides += [f"run.steps={steps}"] if steps is not None and not decay else []
    overrides += [f"run.minutes={minutes}"] if minutes is not None else []
    overrides += set_ or []

    state = None
    if config:
        settings = configuration.load(config, overrides)
        if init and not settings.optimizer.warmup:  # fresh moments and trained weights: not at the full rate at once
            settings = replace(settings, optimizer=replace(settings.optimizer, warmup=INIT_WARMUP))
        folder = output or Path("runs") / config.stem
    else:
        source = resume or decay
        assert source is not None
        state = read_checkpoint(source)
        if decay:
            overrides = [*_branch(state["step"], steps), *overrides]
        settings = configuration.from_dict(configuration.override(state["config"], overrides), str(source))
        folder = source
        if decay:
            state["best"] = float("-inf")  # the branch keeps the best of its own
            named = source if source.name not in ("", "..") else source.resolve()
            folder = output or named.with_name(f"{named.name}-decay{state['step']}")
    held = [name for name in (CHECKPOINT, WEIGHTS, CARD, LOG) if (folder / name).exists()]
    if held and not resume:
        hint = "--resume it, or " if CHECKPOINT in held else ""
        raise InputError(f"{folder} holds a run already ({', '.join(held)}): {hint}choose another --output")

    fabric = _fabric(settings)
    training, validation = _banks(settings)
    trainer = Trainer(settings, folder, training, validation, fabric)
    if state is not None:
        trainer.restore(state)
    if init:
        released = load_weights(init)
        load_state(trainer.network, released.state_dict(), str(init))
        if trainer.ema is not None:
            load_state(trainer.ema.module, released.state_dict(), str(init))
    finished = trainer.run()
    print(f"step {trainer.step}: {'finished' if finished else 'stopped'}, state in {folder / CHECKPOINT}")
    if (folder / WEIGHTS).exists():
        print(f"best weights (PSNR {trainer.best:.2f} dB on {len(validation)} held-out images): {folder / WEIGHTS}")
    if not finished:
        print(f"go on with: python train/run.py --resume {folder}")
        raise typer.Exit(130)


def _branch(step: int, length: int | None) -> list[str]:
    """The overrides of a decay of `length` steps that starts at `step`; its budget is the decay itself."""
    if length is None or length < 1:
        raise InputError(f"--decay: expected --steps N with it, the length of the decay, found {length or 'none'}")
    decay = [f"optimizer.decay_from={step}", f"optimizer.decay_steps={length}"]
    return [*decay, f"run.steps={step + length}", "run.minutes=0.0"]


def _fabric(settings: TrainConfig) -> Fabric:
    cuda = torch.cuda.is_available()
    precision = "bf16" if settings.run.precision == "auto" else settings.run.precision
    if precision == "fp16" and not cuda:
        raise InputError("run.precision=fp16: expected a CUDA GPU, found none; use bf16 or fp32")
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells what the configuration says already
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return Fabric(accelerator="cuda" if cuda else "cpu", devices=1, precision=PRECISIONS[precision])  # type: ignore[arg-type]


def _banks(settings: TrainConfig) -> tuple[Bank, Bank]:
    data = settings.data
    everything, found = examples(data.folders)
    for part in found:
        print(f"{part}: {part.missing}" if part.missing else part)
    training, validation = split(everything, CHECKOUT / data.holdout)
    banks = []
    for chosen, what, least in ((training, "training", data.crop), (validation, "validation", 8)):
        banks.append(
            open_bank(chosen, channels=settings.model.channels, least=least, cache=Path(data.cache), report=_report)
        )
        pairs = sum(example.noisy is not None for example in chosen)
        counts = [f"{count} {kind}" for count, kind in ((len(chosen) - pairs, "images"), (pairs, "pairs")) if count]
        print(f"{what}: {', '.join(counts)}", flush=True)
    return banks[0], banks[1]


def _report(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 20 == 0 or done == total):
        print(f"\rdecoding {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(app, several=("--data",))
