"""Times and memory of engines on pictures of one size, taken in turn in one process.

Turn about, so that a machine's other load and a GPU's changing clock fall on each alike. What cannot be measured, such
as a size that an engine does not take, is noted in its result and stops nothing else.
"""

import contextlib
import ctypes
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ModelError
from common.images import read_picture, rgb8
from common.padding import MULTIPLE, pad_to
from runtime.engines import Engine
from runtime.engines.base import Images, Io, size_of, to_io
from runtime.memory import device_bytes

PHOTO = Path(__file__).resolve().parent.parent / "assets" / "astronaut_noisy.png"
WARM_UP = 3
"""Runs before any that count: kernels are compiled in the first, CUDA graphs captured in the second."""
ROUNDS = 3
"""Turns in which the times on a device are taken."""


@dataclass(frozen=True)
class Contender:
    """What is measured. open: loads it; called anew for each size."""

    label: str
    open: Callable[[], Engine]


@dataclass
class Result:
    """Of one contender at one size; seconds and bytes. Empty or None: not measured."""

    label: str
    name: str = ""
    io: Io = "float32"
    """Of the network itself."""
    config: dict[str, Any] = field(default_factory=dict)
    """The network's, as far as the engine tells it."""
    latency: list[float] = field(default_factory=list)
    """From bytes in host memory to bytes in host memory."""
    on_device: list[float] = field(default_factory=list)
    """Of the network alone, its input on the device already, by the device's clock."""
    frames_per_second: float | None = None
    """Of a stream of images from host memory to host memory, with what the engine overlaps of them."""
    device_bytes: int | None = None
    """What loading and warming up took of the GPU's memory, and did not give back."""
    host_bytes: int | None = None
    """What loading and warming up took of the host's memory at their peak."""
    alone: bool = False
    """No other engine was loaded meanwhile, because together they failed."""
    note: str | None = None
    """Why there are no figures; those that are there do not count."""


def measure(contenders: Sequence[Contender], width: int, height: int, repeat: int) -> list[Result]:
    """Load, warm up and time all of them, `repeat` runs each; who fails beside the others is tried once more alone.

    Raises InputError or DependencyError where a contender cannot be opened: a file or a package is missing.
    """
    results = _in_turn(contenders, width, height, repeat)
    for index, contender in enumerate(contenders):
        if results[index].note and len(contenders) > 1:
            (results[index],) = _in_turn([contender], width, height, repeat)
            results[index].alone = True
    return results


def picture(width: int, height: int, channels: int) -> Images:
    """Bytes (1, H, W, C): the bundled noisy photo, cut or reflected to a size whose sides become multiples of 8.

    A photo, because the deformable convolutions read where its edges send them.
    """
    planes = np.moveaxis(rgb8(read_picture(PHOTO)), -1, 0)[:channels]
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    planes = pad_to(planes[:, :height, :width], (height, width))
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1)[None])


def _in_turn(contenders: Sequence[Contender], width: int, height: int, repeat: int) -> list[Result]:
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(contextlib.closing(_Run(c))) for c in contenders]
        for run in runs:
            run.load(width, height)
        for share in np.array_split(range(repeat), min(ROUNDS, repeat)):
            for run in runs:
                run.time_on_device(len(share))
        for turn in range(-1, repeat):
            for run in runs:
                run.time_once(counts=turn >= 0)
        for run in runs:
            run.time_stream(repeat)
    return [run.result for run in runs]


class _Run:
    """A contender at one size. Once it has failed, which its result notes, all it is asked for does nothing."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.result = Result(contender.label)
        self.engine: Engine | None = None
        self.images: Images = np.empty(0)

    def load(self, width: int, height: int) -> None:
        with self._failing(), _memory(self.result):
            self.engine = engine = self.contender.open()
            self.images = picture(width, height, engine.channels)
            self.result.name, self.result.io = engine.name, engine.io
            self.result.config = {"channels": engine.channels} | engine.details.get("config", {})
            if not any(size_of(self.images) in sizes for sizes in engine.sizes):
                raise ModelError("does not take this size")
            for _ in range(WARM_UP):
                engine.run(self.images)

    def time_on_device(self, repeat: int) -> None:
        with self._failing():
            if self.engine:
                images = to_io(self.images, self.engine.io)
                self.result.on_device += self.engine.seconds_on_device(images, repeat) or ()

    def time_once(self, *, counts: bool) -> None:
        with self._failing():
            if self.engine:
                begun = time.perf_counter()
                self.engine.run(self.images)
                if counts:
                    self.result.latency.append(time.perf_counter() - begun)

    def time_stream(self, repeat: int) -> None:
        with self._failing():
            if self.engine and not self.result.on_device:  # nothing overlaps
                self.result.frames_per_second = repeat / sum(self.result.latency)
            elif self.engine:
                results = self.engine.stream(itertools.repeat(self.images, WARM_UP + repeat))
                for _ in itertools.islice(results, WARM_UP):
                    pass
                begun = time.perf_counter()
                for _ in results:
                    pass
                self.result.frames_per_second = repeat / (time.perf_counter() - begun)

    def close(self) -> None:
        if self.engine:
            self.engine.close()
        self.engine = None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (ModelError, MemoryError) as error:
            self.result.note = " ".join(str(error).split()) or "out of memory"
            self.close()


@contextlib.contextmanager
def _memory(result: Result) -> Iterator[None]:
    """What the block takes. CUDA's context is there before; libraries that several engines share count for the first.

    The device's is what all its processes use: others that come or go meanwhile are counted with it.
    """
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()  # or one engine would run in what another has left
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)  # the same on the host: glibc keeps what was freed in the middle of its heap
    device, resident = device_bytes(), _reset_host_peak()
    yield
    if device is not None and (after := device_bytes()) is not None:
        result.device_bytes = max(0, device[0] - after[0])
    if resident is not None:
        result.host_bytes = max(0, _host_bytes("VmHWM") - resident)


def _reset_host_peak() -> int | None:
    """Bytes resident now, from which the peak is counted anew; None where the system is not Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _host_bytes("VmRSS")
    except OSError:
        return None


def _host_bytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))
