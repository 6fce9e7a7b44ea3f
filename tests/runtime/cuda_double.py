"""A GPU for `runtime.engines.torch` that a CPU plays: what CUDA leaves open it does late, at random, or at once."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from runtime.engines.base import Images
from runtime.engines.torch import Stage, TorchEngine, _Cuda

JUNK = 77
"""What memory holds until it is written."""
Policy = Literal["at once", "late", "random"]


@dataclass
class Task:
    """Work that a stream has been given; it is the event of its own end."""

    double: "CudaDouble"
    stage: Stage
    work: Callable[[], object]
    after: "Task | None"
    finished: bool = False

    def synchronize(self) -> None:
        self.double.finish(self)


@dataclass
class Recorded:
    """A graph. A replay leaves junk in the outputs of others with the same pool, as they may be its scratch."""

    work: Callable[[], Tensor]
    output: Tensor
    shared: "list[Recorded]" = field(default_factory=list)
    replays: int = 0

    def replay(self) -> None:
        time.sleep(1e-4)  # here another thread goes on, if it can
        for other in self.shared:
            other.output.fill_(JUNK)
        self.output.copy_(self.work())
        self.replays += 1

    def pool(self) -> "list[Recorded]":
        return self.shared


class CudaDouble(_Cuda):
    """Streams keep their own order and wait for events; between these, tasks of different streams run in any order.

    "late" runs a task when somebody waits for it or for one behind it, "random" some of those that could run,
    "at once" all, as a GPU without a queue. A failure shows when the task runs.
    """

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.waiting: dict[Stage, deque[Task]] = {"upload": deque(), "compute": deque(), "download": deque()}
        self.recorded: list[Recorded] = []
        self.given_back = 0
        self._policy, self._random = policy, Random(seed)
        # Without one of its own where the engine's has to do.
        self._lock = contextlib.nullcontext() if policy == "at once" else threading.RLock()

    def buffers(self, images: Images) -> tuple[Tensor, Tensor]:
        host = torch.from_numpy(np.array(images))
        return host, torch.full_like(host, JUNK)

    def queue(self, stage: Stage, work: Callable[[], object], after: Any = None) -> Task:
        with self._lock:
            task = Task(self, stage, work, after)
            self.waiting[stage].append(task)
            self._go_on()
            return task

    def finish(self, task: Task) -> None:
        with self._lock:
            self._go_on()
            while not task.finished:
                head = self.waiting[task.stage][0]
                if head.after is not None:
                    self.finish(head.after)
                if not head.finished:
                    self._run(head)

    def capture(self, work: Callable[[], Tensor], pool: Any) -> tuple[Recorded, Tensor]:
        output = torch.full_like(work(), JUNK)  # a capture computes nothing
        recorded = Recorded(work, output, [] if pool is None else pool)
        recorded.shared.append(recorded)
        self.recorded.append(recorded)
        return recorded, output

    def seconds(self, work: Callable[[], object], repeat: int) -> list[float]:
        seconds = []
        for _ in range(repeat):
            begun = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begun)
        return seconds

    def settle(self) -> None:
        with self._lock:
            for tasks in self.waiting.values():
                while tasks:
                    self.finish(tasks[-1])

    def give_back(self) -> None:
        self.given_back += 1

    def _go_on(self) -> None:
        while self._policy == "at once" or (self._policy == "random" and self._random.random() < 0.7):
            heads = [tasks[0] for tasks in self.waiting.values() if tasks]
            ready = [task for task in heads if task.after is None or task.after.finished]
            if not ready:
                return
            self._run(self._random.choice(ready))

    def _run(self, task: Task) -> None:
        self.waiting[task.stage].popleft()
        task.finished = True
        task.work()


FLOATS = [(1, 3, 8, 8), (1, 3, 8, 16), (2, 3, 8, 8), (1, 3, 16, 8), (3, 3, 24, 8), (1, 3, 8, 24)]
"""Shapes of N,C,H,W images; more than an engine remembers."""


class Invert(nn.Module):
    """1 - x, and what the test wants to happen before."""

    def __init__(self, before: Callable[[Tensor], object] = lambda x: None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        self.before(x)
        return self.scale * (1 - x)


def inverted(images: Images) -> Images:
    return 255 - images if images.dtype == np.uint8 else 1 - images


def batch(seed: int, shape: tuple[int, ...], kind: type = np.float32) -> Images:
    rng = np.random.default_rng(seed)
    return rng.random(shape, np.float32) if kind is np.float32 else rng.integers(0, 256, shape, np.uint8)


def on_double(network: nn.Module, policy: Policy, seed: int = 0, **options: Any) -> tuple[TorchEngine, CudaDouble]:
    engine, double = TorchEngine(network, 3, **options), CudaDouble(policy, seed)
    engine._cuda = double
    return engine, double
