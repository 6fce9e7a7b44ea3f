"""TensorRT and TensorRT-RTX: plans of one network, each for its sizes, on the first GPU.

Images go through one by one. While one is computed the next is copied to the GPU and the one before from it. The work
of each shape is one CUDA graph from its second image on; TensorRT-RTX, which replaces its kernels by better ones as it
runs, captures that graph itself.

Nothing in this module has run on a GPU. tests/runtime drives it with doubles of both libraries that put off and reorder
all that CUDA may.
"""

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.tensorrt_library import NAMES
from runtime.engines.base import Engine, Images, Size, size_of, to_io
from runtime.engines.gpu import SCRATCH_ALIGNMENT, CudaArray, Device, DeviceArray, address, cuda_errors
from runtime.engines.loaded_plan import SHAPES, Context, LoadedPlan, Ready, Slot
from runtime.engines.plan_file import open_plan, rebuild

ON_WAY = 2
"""Images of a stream on their way at once."""
WARM_UP = 5
"""Runs before those that are timed: the first ones compile and capture."""


@dataclass(frozen=True)
class _Image:
    """An image on its way, and where it goes: `results[index]`."""

    slot: Slot
    ready: Ready
    results: Images
    index: int


class TensorRTEngine(Engine):
    """Plans of one network, which `export/to_plan.py` built with one library; each image goes to one that takes it.

    Raises what `open_plan` does, InputError where the plans are not of one network, ModelError where the GPU's memory
    does not hold them.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        first, *others = files = [open_plan(path) for path in paths]
        for other in others:
            if other.kind != first.kind:
                raise InputError(
                    f"{first.path} and {other.path}: expected plans of one network, library and type of images, found "
                    "others: keep them in folders of their own"
                )
        self.io, self.channels = first.io, first.sidecar.inputs[0].channels
        self.sizes = tuple(file.sizes for file in files)
        self.name = f"{NAMES[first.sidecar.backend]} {first.sidecar.version}, {first.gpu.name}"
        self.details = first.sidecar.model
        self.gpu = Device()
        self._plans = [LoadedPlan(file) for file in files]
        # The work stream computes one image after another, so that all contexts share the memory that they work in.
        scratch = max(plan.scratch_bytes for plan in self._plans)
        with cuda_errors(f"take {scratch / 1e6:.0f} MB of the GPU's memory (plans of smaller sizes need less)"):
            self._scratch = self.gpu.memory(scratch + SCRATCH_ALIGNMENT)
        self._scratch_place = -(-int(self._scratch.handle) // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        self._direct: dict[tuple[LoadedPlan, Size], Context] = {}
        self._queueing = threading.Lock()
        self._slots: list[Slot] = []
        self._free: deque[Slot] = deque()

    def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
        on_way: deque[_Image] = deque()
        try:
            for images in batches:
                if not len(images):
                    raise InputError("expected at least one image, found none")
                plan, results = self._plan(size_of(images)), np.empty_like(images)
                for index, image in enumerate(images):
                    on_way.append(self._started(plan, image, results, index))
                    if len(on_way) == ON_WAY:
                        yield from self._finished(on_way.popleft())
            while on_way:
                yield from self._finished(on_way.popleft())
        finally:
            for image in on_way:  # one failed, or nobody wants the rest
                self._abandon(image.slot)

    def _run(self, images: Images) -> Images:
        (result,) = self._stream([images])
        return result

    def run_on_device(self, images: CudaArray, out: CudaArray | None = None) -> CudaArray:
        """Denoise images that are on the GPU, where the result stays; nothing is copied or converted.

        images, out: contiguous arrays of the type `io`, N,C,H,W or for uint8 N,H,W,C, of a size that a plan takes.
        Returns `out`, or a new array, when the work is done. Raises InputError for other arrays, ModelError as `run`.
        """
        source, shape = address(images, None, self.io)
        height, width = size = (shape[1], shape[2]) if self.io == "uint8" else (shape[2], shape[3])
        plan = self._plan(size)
        each = plan.file.shape(size)
        if shape[1:] != each[1:] or not shape[0]:
            raise InputError(f"expected one or more images of {each[1:]} on the GPU, found {shape}")
        step = math.prod(each) * np.dtype(self.io).itemsize
        self.gpu.make_current()
        with self._queueing, cuda_errors(f"denoise {width}x{height}"):
            result = DeviceArray(self.gpu.memory(shape[0] * step), shape, self.io) if out is None else out
            target, _ = address(result, shape, self.io, written=True)
            if abs(source - target) < shape[0] * step:
                raise InputError("expected an `out` that shares no memory with the images, found one that does")
            for array in (images, result):
                self.gpu.wait_for_owner(array.__cuda_array_interface__)
            if (plan, size) not in self._direct:
                while len(self._direct) >= SHAPES:
                    del self._direct[next(iter(self._direct))]
                self._direct[plan, size] = plan.context(size, self._scratch_place)
            try:
                for start in range(0, shape[0] * step, step):
                    self._direct[plan, size].bind(source + start, target + start)
                    self._direct[plan, size].enqueue(self.gpu.work)
            finally:
                self.gpu.work.sync()
        return result

    def seconds_on_device(self, images: Images, repeat: int) -> Sequence[float]:
        plan, slot = self._plan(size_of(images)), self._slot()
        try:
            with self._queueing, cuda_errors("time the network"):
                ready = self._ready(slot, plan, size_of(images))
                np.copyto(ready.sent, to_io(images[:1], self.io))
                ready.upload()
                times = []
                for _ in range(WARM_UP + repeat):
                    start, end = (self.gpu.event(timed=True) for _ in range(2))
                    self.gpu.work.record(start)
                    ready.work()
                    self.gpu.work.record(end)
                    times.append((start, end))
                self.gpu.work.sync()
                return [(end - start) / 1e3 for start, end in times[WARM_UP:]]
        finally:
            self._abandon(slot)

    def close(self) -> None:
        """Give everything back, and save what TensorRT-RTX has compiled beside the plans."""
        if not self._plans:
            return
        self.gpu.settle()
        plans, self._plans = self._plans, []
        for plan in plans:
            plan.save_cache()
        self._direct.clear()
        for slot in self._slots:
            slot.clear()
        for plan in plans:
            plan.close()
        self._scratch.close(self.gpu.work)
        self.gpu.close()

    def _plan(self, size: Size) -> LoadedPlan:
        """The plan for images of this size: of those that take it, the one that is for the smallest."""
        plans = self._plans
        if not plans:
            raise InputError(f"expected an open engine, found {self.name} closed")
        fitting = [plan for plan in plans if size in plan.file.sizes]
        if not fitting:
            height, width = size
            known = ", ".join(f"{plan.file.path} takes {plan.file.describe()}" for plan in plans)
            raise InputError(
                f"expected a size that a plan takes, found {width}x{height} ({known}): "
                f"{rebuild(plans[0].file.path, plans[0].file.sidecar, size=size)}"
            )
        return min(fitting, key=lambda plan: math.prod(plan.file.sizes.most or size))

    def _slot(self) -> Slot:
        """One that is free. There are as many as images have been on their way at once: nobody waits for another."""
        try:
            return self._free.pop()
        except IndexError:
            slot = Slot(self.gpu)
            self._slots.append(slot)
            return slot

    def _ready(self, slot: Slot, plan: LoadedPlan, size: Size) -> Ready:
        self.gpu.make_current()
        return slot.ready(plan, size, self._scratch_place)

    def _started(self, plan: LoadedPlan, image: NDArray[Any], results: Images, index: int) -> _Image:
        height, width = size_of(results)
        slot = self._slot()
        try:
            with cuda_errors(f"denoise {width}x{height} at once (--tile takes smaller pieces)"):
                with self._queueing:
                    ready = self._ready(slot, plan, (height, width))
                np.copyto(ready.sent[0], image)
                with self._queueing:
                    ready.upload()
                    ready.work()
                    ready.download()
        except BaseException:
            self._abandon(slot)
            raise
        return _Image(slot, ready, results, index)

    def _finished(self, image: _Image) -> Iterator[Images]:
        """Wait for an image; yields its batch where it is the last one of that."""
        self.gpu.make_current()  # of a generator that another thread goes on with
        with cuda_errors("finish an image"):
            image.ready.downloaded.sync()
        np.copyto(image.results[image.index], image.ready.received[0])
        self._free.append(image.slot)
        if image.index == len(image.results) - 1:
            yield image.results

    def _abandon(self, slot: Slot) -> None:
        """Free a slot whose image nobody waits for, once the GPU no longer touches its buffers."""
        self.gpu.settle()
        self._free.append(slot)
