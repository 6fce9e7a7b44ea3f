"""What a run tells while it goes: log.jsonl, TensorBoard's events, and a line or a bar on the terminal."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from common.files import write_whole
from train.config import TrainConfig

LOG = "log.jsonl"


class Journal:
    """An open journal; see `opened`."""

    def __init__(self, log: Any, board: SummaryWriter, advance: Callable[[int, str], None], batch: int) -> None:
        self._log, self._board, self._advance, self._batch = log, board, advance, batch

    def record(self, step: int, seconds: float, **values: float) -> None:
        """Values of a step, after so many seconds of training, into the log and TensorBoard."""
        self._log.write(json.dumps({"step": step, "seconds": round(seconds, 1), **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def progress(self, step: int, loss: float, rate: float) -> None:
        """The loss and the steps a second since the last call, onto the terminal."""
        self._advance(step, f"step {step}  loss {loss:.6f}  {rate:.2f} steps/s  {rate * self._batch:.0f} crops/s")


@contextmanager
def opened(folder: Path, config: TrainConfig, step: int) -> Iterator[Journal]:
    """The journal of the run in `folder`, which goes on from `step`. Raises OSError where it cannot be written."""
    with (
        _terminal(config, step) as advance,
        SummaryWriter(str(folder), purge_step=step + 1) as board,
        open(folder / LOG, "a", buffering=1) as log,
    ):
        yield Journal(log, board, advance, config.data.batch)


def cut_log(path: Path, step: int, validated: int) -> None:
    """Forget what a killed run logged after its last checkpoint, which knows of validations up to step `validated`:
    those steps are about to be run again."""
    if path.exists():
        lines = [
            line
            for line in path.read_text().splitlines()
            if _logged_step(line) <= (validated if '"psnr_' in line else step)
        ]
        write_whole(path, "".join(line + "\n" for line in lines), overwrite=True)


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by the kill
        return math.inf


@contextmanager
def _terminal(config: TrainConfig, first: int) -> Iterator[Callable[[int, str], None]]:
    """Yields advance(step, text): a bar on a terminal, a line now and then into a file or pipe."""
    run = config.run

    def tell(text: str) -> None:
        with suppress(OSError):  # as `Processes.say`
            print(text, flush=True)

    if not sys.stderr.isatty():
        yield lambda _, text: tell(text)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = run.steps - first if run.steps else run.minutes * 60
        task, begun = progress.add_task("training", total=total), time.monotonic()

        def advance(step: int, text: str) -> None:
            done = step - first if run.steps else time.monotonic() - begun
            progress.update(task, completed=done, description=text)
            if not sys.stdout.isatty():
                tell(text)

        yield advance
