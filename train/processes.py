"""The processes that one run consists of: torchrun's, on one machine or several, or one alone.

They take equal shares of every batch. The first one, of rank 0, writes and speaks for all. What they must decide
together (when to stop, that one of them has failed) goes over the CPU by gloo, whatever carries the gradients.
"""

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import InputError, SadnetError, TrainingError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Of one exchange: a machine that went away without a word is noticed after this."""
PATIENCE = timedelta(days=7)
"""Of the others while images are decoded, which takes as long as there are images."""


class ElsewhereError(Exception):
    """Another process of the run has failed, and says why: this one ends without a word."""


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many: in all, and on this machine. `parent` is torchrun's id, 0 without it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    parent: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether torchrun was killed: nobody could stop this process any more."""
        return self.parent not in (0, os.getppid())

    def say(self, text: str) -> None:
        """A line on stdout, from the first process only."""
        if self.first:
            with contextlib.suppress(OSError):  # the reader of a pipe may go away, as `| head` does; the run goes on
                print(text, flush=True)

    def share(self, count: int) -> range:
        """This process's part of `count` samples, a multiple of `size`."""
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag as it is anywhere: true for all where it is true for one."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' `values`, elementwise, on the device of `values`."""
        if self.size == 1 or not values.numel():
            return values
        added = values.cpu()
        dist.all_reduce(added)
        return added.to(values.device)

    def same(self, text: str) -> bool:
        """Whether all processes have the same text."""
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        if self.size == 1:
            return True
        most = torch.tensor([digest, -digest])
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most[0]) == -int(most[1])

    @contextlib.contextmanager
    def together(self, group: dist.ProcessGroup | None = None) -> Iterator[None]:
        """All processes enter; what one of them raises ends the block for all. It keeps its error, of several the
        first, and the others get ElsewhereError."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size == 1:
            return
        failed = torch.tensor(self.size if failure is None else self.rank)
        dist.all_reduce(failed, dist.ReduceOp.MIN, group)
        if failure is not None and int(failed) == self.rank:
            raise failure
        if int(failed) < self.size:
            raise ElsewhereError

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in all of them."""
        made: list[Any] = [None]
        with self.together():
            if self.first:
                made = [make()]
        if self.size > 1:
            dist.broadcast_object_list(made, device=torch.device("cpu"))
        result: T = made[0]
        return result

    def in_turns(self, make: Callable[[], T]) -> T:
        """`make` in each process: in the first, then in the first of every machine, then in the others.

        So a file that it makes where there is none is made once, on a disk that the machines share or on each of
        theirs. The wait for it has no limit that matters.
        """
        if self.size == 1:
            return make()
        patient = dist.new_group(timeout=PATIENCE, backend="gloo")
        own = 0 if self.first else 1 if self.local_rank == 0 else 2
        made = []
        for turn in range(3):
            with self.together(patient):
                if turn == own:
                    made.append(make())
        dist.destroy_process_group(patient)
        return made[0]


ALONE = Processes()

_kept: list[object] = []
"""The connection, until the interpreter ends. If DDP's reducer were the last to hold it, gloo's destructor would wait,
with Python's lock, for a thread that waits for that lock (pytorch/pytorch#56297)."""


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run, connected within the block.

    Raises TrainingError in the first process where the connection to another one breaks. The others then leave with
    exit code 2, as they do after an ElsewhereError: one process speaks.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    processes = Processes(rank, size, local_rank, local_size, os.getppid())
    if processes.size == 1:
        yield processes
        return
    if processes.size % processes.local_size:
        raise InputError("torchrun: expected the same --nproc-per-node on every machine")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    _kept.append(dist.group.WORLD)
    try:
        yield processes
        dist.destroy_process_group()
    except ElsewhereError:
        raise SystemExit(2) from None
    except SadnetError as error:
        _tell_torchrun(error)
        raise
    except KeyboardInterrupt:
        if processes.first:
            raise
        raise SystemExit(130) from None
    except RuntimeError as error:
        if not _is_of_the_connection(error):
            raise
        if not processes.first:
            raise SystemExit(2) from None
        text = "another process of this run ended or cannot be reached: torchrun says which; go on with --resume"
        raise TrainingError(text) from error


def _tell_torchrun(error: SadnetError) -> None:
    """Its report, a page that comes last, then says what failed beside which process did."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):  # the disk may be what is full
            told = {"py_callstack": str(error), "timestamp": str(int(time.time()))}
            Path(path).write_text(json.dumps({"message": {"message": str(error), "extraInfo": told}}))


def _is_of_the_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


@contextlib.contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Yields a list that a SIGINT or SIGTERM is put into: the step in progress ends first. A second one interrupts."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
