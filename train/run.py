"""Train SADNet.

    python train/run.py --config train/configs/blind_color.toml --data PHOTOS --minutes 60
    python train/run.py --config train/configs/real.toml --data PolyU PHOTOS --minutes 60     # pairs and clean photos
    python train/run.py --resume runs/blind_color --minutes 60              # go on where it stopped
    python train/run.py --decay runs/blind_color --steps 4000               # branch a release off
    python train/run.py --config train/configs/blind_color.toml --init assets/blind_color.safetensors --minutes 60
    torchrun --nproc-per-node 2 train/run.py --config FILE              # two processes or GPUs, one batch

The run's folder holds the checkpoint, the logs (JSON lines and TensorBoard) and `weights.safetensors`, the best
weights by PSNR on held-out images, with their card. `export/to_onnx.py` takes it from there. docs/training.md says
what a run keeps, and how it is spread over GPUs and machines.
"""

import json
import logging
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from common import cli
from common.errors import InputError
from common.files import sha256

with cli.needs("dev", __name__):
    import torch
    from lightning_fabric import Fabric

    from train import config as configuration
    from train.checkpoint import CHECKPOINT, read_checkpoint
    from train.config import TrainConfig
    from train.data import Bank, absent, open_bank, split
    from train.datasets import absolute, examples
    from train.journal import LOG
    from train.loop import CARD, WEIGHTS, Trainer
    from train.processes import Processes, joined
    from train.weights import load_weights

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
    asked = Asked(config, resume, decay, init, data or [], output, steps, minutes, set_ or [])
    with joined() as processes:
        plan = processes.from_first(lambda: _plan(asked, processes.size))
        settings, folder = plan.settings, plan.folder
        if warning := configuration.narrow_crops(settings):
            processes.say(warning)
        with processes.together():
            fabric = make_fabric(settings, processes)
        training, validation = processes.in_turns(lambda: _banks(settings, processes))
        alike = processes.same(json.dumps([training.names, training.shapes, validation.names, validation.shapes]))
        with processes.together():
            if not alike:
                raise InputError("expected the same images on every machine, found others at the same paths")
        trainer = Trainer(settings, folder, training, validation, fabric, processes)
        with processes.together():
            if plan.state is not None:
                trainer.restore(plan.state)
            if plan.released is not None:
                trainer.begin_at(plan.released, str(init))
        finished = trainer.run()
        processes.say(f"step {trainer.step}: {'finished' if finished else 'stopped'}, state in {folder / CHECKPOINT}")
        if (folder / WEIGHTS).exists() and math.isfinite(trainer.best):
            best = f"PSNR {trainer.best:.2f} dB on {len(validation)} held-out images"
            processes.say(f"best weights ({best}): {folder / WEIGHTS}")
        if not finished:
            processes.say(f"go on with: python train/run.py --resume {folder}")
    if not finished:
        raise typer.Exit(130)


@dataclass(frozen=True)
class Asked:
    """The command line."""

    config: Path | None
    resume: Path | None
    decay: Path | None
    init: Path | None
    data: list[str]
    output: Path | None
    steps: int | None
    minutes: float | None
    changes: list[str]


@dataclass(frozen=True)
class Plan:
    """What is run where; from which state, or from which released weights."""

    settings: TrainConfig
    folder: Path
    state: dict[str, Any] | None
    released: dict[str, torch.Tensor] | None


def _plan(asked: Asked, processes: int) -> Plan:
    config, resume, decay, output, steps = asked.config, asked.resume, asked.decay, asked.output, asked.steps
    if sum(option is not None for option in (config, resume, decay)) != 1:
        raise InputError("expected one of --config FILE, --resume RUN and --decay RUN")
    if asked.init and not config:
        raise InputError("--init starts a new run: expected --config FILE with it")
    if output and resume:
        raise InputError("--resume goes on in the run's own folder: expected no --output with it")
    if asked.minutes is not None and decay:
        raise InputError("--decay lasts for --steps: expected no --minutes with it")
    folders = json.dumps([absolute(d) for d in asked.data], ensure_ascii=False)  # found again from anywhere
    overrides = [f"data.folders={folders}"] if asked.data else []
    overrides += [f"run.steps={steps}"] if steps is not None and not decay else []
    overrides += [f"run.minutes={asked.minutes}"] if asked.minutes is not None else []
    overrides += asked.changes

    state = released = None
    if config:
        settings = configuration.load(config, overrides)
        if asked.init and not settings.optimizer.warmup:  # fresh moments: not at the full rate at once
            settings = replace(settings, optimizer=replace(settings.optimizer, warmup=INIT_WARMUP))
        if asked.init:
            released = load_weights(asked.init).state_dict()
            if not settings.run.seed:  # not the crops and noise again that the release began with
                settings = replace(settings, run=replace(settings.run, seed=int(sha256(asked.init)[:8], 16)))
        folder = output or Path("runs") / config.stem
    else:
        source = resume or decay
        assert source is not None
        state = read_checkpoint(source)
        trained = configuration.from_dict(state["config"], str(source))
        if decay and trained.optimizer.decay_steps and state["step"] > trained.optimizer.decay_from:
            found = f"one whose rate has fallen since step {trained.optimizer.decay_from}"
            hint = f"--resume it with more --steps, or begin a new run with --init {source / WEIGHTS}"
            raise InputError(f"--decay {source}: expected a run at its whole rate, found {found}: {hint}")
        if decay:
            overrides = [*_branch(state["step"], steps), *overrides]
        settings = configuration.from_dict(configuration.override(state["config"], overrides), str(source))
        if settings.optimizer.kind != trained.optimizer.kind:
            text = f"optimizer.kind: expected {trained.optimizer.kind}, as {source} has it, found"
            hint = "leave it out, or begin a new run with --init"
            raise InputError(f"{text} {settings.optimizer.kind}: {hint} {source / WEIGHTS}")
        folder = source
        if decay or _validation(settings) != _validation(trained):
            state["best"] = float("-inf")  # a branch keeps the best of its own; other scores do not compare
        if decay:
            named = source if source.name not in ("", "..") else source.resolve()
            folder = output or named.with_name(f"{named.name}-decay{state['step']}")
    if settings.data.batch % processes:
        text = f"data.batch: expected a multiple of torchrun's {processes} processes, found {settings.data.batch}"
        raise InputError(text)
    held = [name for name in (CHECKPOINT, WEIGHTS, CARD, LOG) if (folder / name).exists()]
    if held and not resume:
        failed = held == [LOG]  # before it had a checkpoint
        hint = "--resume it, or " if CHECKPOINT in held else "remove it, or " if failed else ""
        raise InputError(f"{folder} holds a run already ({', '.join(held)}): {hint}choose another --output")
    return Plan(settings, folder, state, released)


def _validation(settings: TrainConfig) -> tuple[object, ...]:
    """What a validation's PSNR depends on, but for the weights and the images, which the checkpoint names."""
    run = settings.run
    noise = run.validation_sigmas, settings.noise.clip8, settings.camera
    return run.validation_crop, noise


def _branch(step: int, length: int | None) -> list[str]:
    """The overrides of a decay of `length` steps that starts at `step`; its budget is the decay itself."""
    if length is None or length < 1:
        raise InputError(f"--decay: expected --steps N with it, the length of the decay, found {length or 'none'}")
    decay = [f"optimizer.decay_from={step}", f"optimizer.decay_steps={length}"]
    return [*decay, f"run.steps={step + length}", "run.minutes=0.0"]


def make_fabric(settings: TrainConfig, processes: Processes) -> Fabric:
    """Device, precision and, among several processes, DDP. Raises InputError for what this machine does not have."""
    cuda, here, cores = torch.cuda.is_available(), processes.local_size, os.cpu_count() or 1
    if settings.run.threads > cores:
        raise InputError(f"run.threads: expected at most this machine's {cores}, found {settings.run.threads}")
    precision = _fast_precision() if settings.run.precision == "auto" else settings.run.precision
    if precision == "fp16" and not cuda:
        raise InputError("run.precision=fp16: expected a CUDA GPU, found none; use bf16 or fp32")
    if cuda and here > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(f"torchrun: expected at most one process for each GPU, found {here} for {found}")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells what the configuration says already
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        strategy="ddp" if processes.size > 1 else "auto",
        devices=here,
        num_nodes=processes.size // here,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    return fabric


def _fast_precision() -> str:
    """What `run.precision = "auto"` is here: without instructions for bf16 a step in it takes many times as long."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"  # as AMX has, too; no public name


def _banks(settings: TrainConfig, processes: Processes) -> tuple[Bank, Bank]:
    data = settings.data
    everything, found = examples(data.folders)
    for part in found:
        processes.say(f"{part}: {part.missing}" if part.missing else str(part))
    training, validation = split(everything, CHECKOUT / data.holdout)
    if warning := absent(everything, CHECKOUT / data.holdout):
        processes.say(warning)
    banks = []
    for chosen, what in ((training, "training"), (validation, "validation")):
        with cli.terminable():
            banks.append(open_bank(chosen, channels=settings.model.channels, cache=Path(data.cache), report=_report))
        pairs = sum(example.noisy is not None for example in chosen)
        counts = [f"{count} {kind}" for count, kind in ((len(chosen) - pairs, "images"), (pairs, "pairs")) if count]
        processes.say(f"{what}: {', '.join(counts)}")
    return banks[0], banks[1]


def _report(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 20 == 0 or done == total):
        print(f"\rdecoding {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(app, several=("--data", "--set"))
