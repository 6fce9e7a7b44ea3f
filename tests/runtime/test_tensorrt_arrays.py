"""Arrays on the GPU, which the engine of plans takes where they lie: whose stream is waited for, what is refused."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import InputError
from runtime.engines.loaded_plan import SHAPES
from runtime.engines.tensorrt import TensorRTEngine
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import SMALL, images, inverted, machine, write_plan


class OnDevice:
    """An array of another library in the double's memory. stream: on which it is made; None: it is ready."""

    def __init__(self, world: World, array: NDArray[Any], *, version: int = 3, **changes: Any) -> None:
        world.current.add(threading.get_ident())
        self.buffer = world.take(array.nbytes)
        self.world, self.like = world, array
        world.at(self.buffer.handle, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.interface: dict[str, Any] = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.buffer.handle, False),
            "version": version,
        } | changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface

    def read(self) -> NDArray[Any]:
        return self.world.at(self.buffer.handle, self.like.nbytes).view(self.like.dtype).reshape(self.like.shape)


def read(world: World, array: Any) -> NDArray[Any]:
    interface = array.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    size = int(np.prod(interface["shape"])) * dtype.itemsize
    return np.array(world.at(interface["data"][0], size).view(dtype).reshape(interface["shape"]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("io", ["float32", "float16", "uint8"])
def test_arrays_on_the_gpu_stay_there(tmp_path: Path, seed: int, io: str) -> None:
    plan = write_plan(tmp_path / "a.plan", SMALL, SMALL, io=io)
    world, batch = World(seed), images(3, SMALL, io)
    with machine(world), TensorRTEngine([plan]) as engine:
        array = OnDevice(world, batch)
        result = engine.run_on_device(array)
        np.testing.assert_array_equal(read(world, result), inverted(batch))
        out = OnDevice(world, np.zeros_like(batch), stream=None)
        assert engine.run_on_device(array, out) is out
        np.testing.assert_array_equal(out.read(), inverted(batch))
        assert world.contexts == 1


@pytest.mark.parametrize(("version", "stream"), [(3, 1), (3, 2), (2, None), (3, "own")])
def test_the_owners_stream_is_waited_for(plans: Path, version: int, stream: Any) -> None:
    """The array is written on the owner's stream, which the double puts off for as long as it may."""
    world, batch = World(), images(1, SMALL)
    with machine(world), TensorRTEngine([plans / "small.plan"]) as engine:
        core = engine.gpu.core
        owner = {1: core.LEGACY_DEFAULT_STREAM, 2: core.PER_THREAD_DEFAULT_STREAM, "own": engine.gpu.upload}
        array = OnDevice(world, np.zeros_like(batch), version=version)
        if stream is not None:
            array.interface["stream"] = engine.gpu.upload.handle if stream == "own" else stream
        written = owner[stream or 1]
        world.late.append(written)
        memory = world.at(array.buffer.handle, batch.nbytes)
        written.add(lambda: np.copyto(memory, batch.reshape(-1).view(np.uint8)))
        np.testing.assert_array_equal(read(world, engine.run_on_device(array)), 1 - batch)


def test_the_stream_of_out_is_waited_for(plans: Path) -> None:
    """Where the result goes may still be filled with zeros, as by `torch.zeros_like`."""
    world, batch = World(), images(1, SMALL)
    with machine(world), TensorRTEngine([plans / "small.plan"]) as engine:
        out = OnDevice(world, np.ones_like(batch), stream=1)
        memory, default = world.at(out.buffer.handle, batch.nbytes), engine.gpu.core.LEGACY_DEFAULT_STREAM
        world.late.append(default)
        default.add(lambda: memory.fill(0))
        engine.run_on_device(OnDevice(world, batch, stream=None), out)
        default.sync()
        np.testing.assert_array_equal(out.read(), 1 - batch)


def test_contexts_of_few_shapes_are_kept(plans: Path) -> None:
    world = World()
    with machine(world), TensorRTEngine([plans / "range.plan"]) as engine:
        for side in range(1, 3 * SHAPES):
            engine.run_on_device(OnDevice(world, images(1, (8 * side, 8)), stream=None))
            assert len(engine._direct) == min(side, SHAPES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"typestr": "<f8"}, "expected an array of float32 and four dimensions on the GPU, found float64"),
        ({"shape": (3, 64, 96)}, "four dimensions"),
        ({"shape": (1, 1, 64, 96)}, r"images of \(3, 64, 96\) on the GPU, found \(1, 1, 64, 96\)"),
        ({"shape": (0, 3, 64, 96)}, "one or more images"),
        ({"shape": (1, 3, 64, 64)}, "found 64x64"),
        ({"strides": (4 * 3 * 64 * 96, 4, 4 * 3 * 96, 12)}, "expected a contiguous array"),
    ],
)
def test_arrays_on_the_gpu_that_are_refused(plans: Path, change: dict[str, Any], words: str) -> None:
    world = World()
    with machine(world), TensorRTEngine([plans / "small.plan"]) as engine:
        with pytest.raises(InputError, match=words):
            engine.run_on_device(OnDevice(world, images(1, SMALL), **change))
        array = OnDevice(world, images(1, SMALL))
        with pytest.raises(InputError, match="shares no memory"):
            engine.run_on_device(array, array)
        inside = OnDevice(world, images(1, SMALL), data=(array.buffer.handle + 256, False))
        with pytest.raises(InputError, match="shares no memory"):
            engine.run_on_device(array, inside)
        with pytest.raises(InputError, match="at multiples of 256 bytes"):
            engine.run_on_device(OnDevice(world, images(1, SMALL), data=(array.buffer.handle + 16, False)))
        read_only = OnDevice(world, images(1, SMALL), data=(0, True))
        with pytest.raises(InputError, match="read-only"):
            engine.run_on_device(OnDevice(world, images(1, SMALL)), read_only)


def test_images_that_lie_off_the_alignment_go_one_by_one(tmp_path: Path) -> None:
    """Of 40x24 bytes of three channels the second would lie where TensorRT takes none."""
    plan = write_plan(tmp_path / "a.plan", (24, 40), (24, 40), io="uint8")
    world, batch = World(), images(2, (24, 40), "uint8")
    with machine(world), TensorRTEngine([plan]) as engine:
        with pytest.raises(InputError, match="one by one"):
            engine.run_on_device(OnDevice(world, batch))
        np.testing.assert_array_equal(read(world, engine.run_on_device(OnDevice(world, batch[1:]))), 255 - batch[1:])


def test_contiguous_strides_are_taken(plans: Path) -> None:
    world, batch = World(), images(1, SMALL)
    with machine(world), TensorRTEngine([plans / "small.plan"]) as engine:
        array = OnDevice(world, batch, strides=(7, 4 * 64 * 96, 4 * 96, 4))  # of an axis of one, any
        np.testing.assert_array_equal(read(world, engine.run_on_device(array)), 1 - batch)
