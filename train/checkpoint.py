"""A run's checkpoint on disk: everything that the run needs to go on; and that one process at a time writes it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.errors import ModelError, OutputError
from common.files import whole_file

CHECKPOINT = "checkpoint.pt"
ENTRIES = {"best", "config", "ema", "losses", "network", "optimizer", "precision", "seconds", "step", "validated"}
"""Of its state."""
LOCK = ".lock"


@contextmanager
def locked(folder: Path, step: int) -> Iterator[None]:
    """Keep other processes from training into `folder`, whose checkpoint, if there is one, is of `step`. The lock goes
    with the process, however that ends. Where the system has none, as on Windows and some network drives, there is
    none.

    Raises OutputError where another process trains there, or has done so since its checkpoint was looked for.
    """
    with open(folder / LOCK, "wb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"{folder}: expected a run that rests, found one that another process trains"
            raise OutputError(f"{text}: wait for it, or stop it") from None
        except (ImportError, OSError):
            pass
        if (folder / CHECKPOINT).exists() and (found := read_checkpoint(folder)["step"]) != step:
            text = f"{folder}: expected the run to be at step {step}, as it was, found it at {found} now"
            raise OutputError(f"{text}: another process trained it meanwhile, --resume it again")
        yield


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write it whole or not at all; the old one stands otherwise. Raises OSError where the disk is full, say."""
    # by way of memory: torch.save to a path hides a full disk behind a RuntimeError
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with whole_file(folder / CHECKPOINT, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a run's folder. Raises ModelError where there is none or it is damaged."""
    path = folder / CHECKPOINT
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not state.keys() >= ENTRIES:
            raise ValueError(f"only {', '.join(map(str, state))}")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: expected a checkpoint of train/run.py, found no such file") from error
    except Exception as error:  # torch.load raises whatever the damaged pickle makes it
        text = f"{path}: expected a checkpoint of train/run.py, found a file that does not load: {error}"
        raise ModelError(text) from error
    return state
