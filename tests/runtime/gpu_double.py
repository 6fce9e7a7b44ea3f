"""A GPU, cuda-core and TensorRT on a CPU, which do what they must as late, and in as odd an order, as they may.

Work that is queued on a stream runs only when something waits for it, and then in an order drawn by chance among all
that streams and events allow. Host memory is read when a copy runs, not when it is queued. Memory that was given back
is poisoned and may not be touched, nor may memory of the pool by a stream that does not come after its allocation. A
context that is changed after a capture spoils the graph, as TensorRT says, and takes no address off 256 bytes. A thread
that has not made the device current can do nothing, and one that is in a capture cannot allocate. So an engine that
forgets an event, reuses a buffer too early or shares scratch memory between two streams computes nonsense.
"""

import json
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import tensorrt_library
from common.files import sha256
from common.machine import Gpu
from common.plan_sidecar import sidecar_path

ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9")
VERSION = "1.7.1.116"
SCRATCH = 1 << 16
ALIGNED = 512
POISON = 0xEE
Network = Callable[[NDArray[Any]], NDArray[Any]]
"""What a plan computes: an image batch as the plan takes it, to the same shape."""


Log = Callable[[str, str], None]
"""Takes a severity and a message."""


class CUDAError(Exception):
    """As cuda-core names its own, in a private module."""


class World:
    """The GPU: its memory and what is queued on it."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.streams: list[Stream] = []
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.given_back: list[NDArray[np.uint8]] = []  # kept, so that their addresses are not used again
        self.unborn: set[int] = set()
        self.limit = 1 << 32
        self.now = 0
        self.contexts = 0
        self.captures = 0
        self.current: set[int] = set()  # threads
        self.capturing: set[int] = set()  # threads

    def call(self, *, allocates: bool = False) -> None:
        """What every call into CUDA meets."""
        thread = threading.get_ident()
        assert thread in self.current, "no device is current in this thread"
        if allocates and thread in self.capturing:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def take(self, size: int, stream: "Stream | None" = None) -> "Buffer":
        self.call(allocates=True)
        if sum(array.nbytes for array in self.memory.values()) + size > self.limit:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY")
        room = np.full(size + ALIGNED, POISON, np.uint8)
        shift = -room.ctypes.data % ALIGNED
        array = room[shift : shift + size]
        place = array.ctypes.data
        self.memory[place] = array
        if stream is not None:
            self.unborn.add(place)
            stream.add(lambda: self.unborn.discard(place))
        return Buffer(self, array)

    def at(self, place: int, size: int) -> NDArray[np.uint8]:
        """Memory that somebody holds. An address in none is the bug that a real GPU calls an illegal access."""
        for start, array in self.memory.items():
            if start <= place and place + size <= start + array.nbytes:
                assert start not in self.unborn, "the memory is not there yet for this stream"
                return array[place - start : place - start + size]
        raise AssertionError(f"{size} bytes at {place:#x} are not anybody's")

    def run_until(self, done: Callable[[], bool]) -> None:
        """Do queued work by chance until `done`, and no more of it than that needs by luck."""
        while not done():
            ready = [stream for stream in self.streams if stream.queue and stream.queue[0].is_ready()]
            assert ready, "everybody waits for everybody"
            stream = self.chance.choice(ready)
            self.now += 1
            stream.queue.popleft().act()


class Work:
    """A piece of work; it may run once `is_ready`."""

    def __init__(self, act: Callable[[], None], is_ready: Callable[[], bool] = lambda: True) -> None:
        self.act, self.is_ready = act, is_ready


class Event:
    def __init__(self, world: World, options: Any) -> None:
        self.world, self.options = world, options
        self.recorded = self.reached = 0
        self.time = 0

    def sync(self) -> None:
        self.world.call()
        wanted = self.recorded
        self.world.run_until(lambda: self.reached >= wanted)

    def __sub__(self, other: "Event") -> float:
        assert self.options.timing_enabled
        assert self.reached == self.recorded > 0
        return float(self.time - other.time)  # milliseconds, as cuda-core says it


class Stream:
    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: deque[Work] = deque()
        self.captured: list[Callable[[], None]] | None = None
        world.streams.append(self)
        self.handle = len(world.streams)

    def add(self, act: Callable[[], None], is_ready: Callable[[], bool] = lambda: True) -> None:
        self.world.call()
        if self.captured is None:
            self.queue.append(Work(act, is_ready))
        else:
            self.captured.append(act)

    def record(self, event: Event) -> Event:
        event.recorded += 1
        number = event.recorded

        def reach() -> None:
            event.reached, event.time = number, self.world.now

        self.add(reach)
        return event

    def wait(self, other: "Event | Stream") -> None:
        if isinstance(other, Stream):
            event = Event(self.world, None)
            other.record(event)
            other = event
        event, wanted = other, other.recorded
        self.add(lambda: None, lambda: event.reached >= wanted)

    def sync(self) -> None:
        assert self.captured is None, "a stream that is captured cannot be waited for"
        self.world.run_until(lambda: not self.queue)


class Buffer:
    def __init__(self, world: World, array: NDArray[np.uint8]) -> None:
        self.world, self.handle, self.size = world, array.ctypes.data, array.nbytes

    def copy_from(self, other: "Buffer", *, stream: Stream) -> None:
        assert self.size == other.size

        def copy() -> None:
            self.world.at(self.handle, self.size)[:] = self.world.at(other.handle, other.size)

        stream.add(copy)

    def close(self, stream: Stream | None = None) -> None:
        def release() -> None:
            array = self.world.memory.pop(self.handle)
            array[:] = POISON
            self.world.given_back.append(array)

        if stream is None:
            release()
        else:
            stream.add(release)


class Graph:
    def __init__(self, acts: list[Callable[[], None]]) -> None:
        self.acts: list[Callable[[], None]] | None = acts

    def launch(self, stream: Stream) -> None:
        assert self.acts is not None, "this graph was closed"
        for act in self.acts:
            stream.add(act)

    def close(self) -> None:
        self.acts = None


class GraphBuilder:
    def __init__(self, world: World) -> None:
        self.stream = Stream(world)

    def begin_building(self, mode: str) -> "GraphBuilder":
        assert mode == "thread_local"  # other threads go on with other streams
        self.stream.captured = []
        self.stream.world.capturing.add(threading.get_ident())
        return self

    def end_building(self) -> "GraphBuilder":
        self.close()
        return self

    def complete(self) -> Graph:
        assert self.stream.captured is not None
        self.stream.world.captures += 1
        return Graph(self.stream.captured)

    def close(self) -> None:
        self.stream.world.capturing.discard(threading.get_ident())


def cuda_core(world: World) -> ModuleType:
    """The module `cuda.core` of this GPU."""
    device = SimpleNamespace(
        set_current=lambda: world.current.add(threading.get_ident()),
        create_stream=lambda: Stream(world),
        create_event=lambda options: Event(world, options),
        create_graph_builder=lambda: GraphBuilder(world),
    )
    module = ModuleType("cuda.core")
    vars(module).update(
        Device=lambda number: device,
        EventOptions=lambda **options: SimpleNamespace(**options),
        DeviceMemoryResource=lambda number, options: SimpleNamespace(
            allocate=lambda size, *, stream: world.take(size, stream), close=lambda: None
        ),
        DeviceMemoryResourceOptions=SimpleNamespace,
        LegacyPinnedMemoryResource=lambda: SimpleNamespace(allocate=world.take),
        LEGACY_DEFAULT_STREAM=Stream(world),
        PER_THREAD_DEFAULT_STREAM=Stream(world),
        Stream=SimpleNamespace(from_handle=lambda handle: world.streams[handle - 1]),
    )
    return module


class Context:
    """An IExecutionContext."""

    def __init__(self, engine: "CudaEngine", config: Any) -> None:
        assert config.strategy == "user managed"
        self.engine = engine
        self.scratch = 0
        self.shape: tuple[int, ...] = ()
        self.places: dict[str, int] = {}
        self.changes = 0
        engine.world.contexts += 1

    def set_device_memory(self, place: int, size: int) -> None:
        assert place % ALIGNED == 0
        assert size >= self.engine.device_memory_size_v2
        self.scratch = place
        self.changes += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "noisy"
        self.shape = shape
        self.changes += 1
        low, high = self.engine.shapes
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, place: int) -> bool:
        assert name in ("noisy", "denoised")
        if place % 256:
            self.engine.log("ERROR", "an address off 256 bytes")
            return False
        self.places[name] = place
        self.changes += 1
        return True

    def execute_async_v3(self, handle: int) -> bool:
        engine, world = self.engine, self.engine.world
        if engine.fails or (engine.fails_in_captures and world.streams[handle - 1].captured is not None):
            engine.log("ERROR", "an illegal instruction")
            return False
        source, target, changes = self.places["noisy"], self.places["denoised"], self.changes
        size = int(np.prod(self.shape)) * engine.dtype.itemsize
        stream = world.streams[handle - 1]
        is_capture = stream.captured is not None
        mark = world.chance.randrange(256)

        scratch = engine.device_memory_size_v2

        def begin() -> None:
            assert not is_capture or changes == self.changes, "the context was changed after the capture"
            world.at(self.scratch, scratch)[:] = mark
            self.seen = world.at(source, size).copy()

        def end() -> None:
            assert (world.at(self.scratch, scratch) == mark).all(), "another context wrote into the scratch memory"
            image = self.seen.view(engine.dtype).reshape(self.shape)
            result = np.ascontiguousarray(engine.network(image), engine.dtype)
            world.at(target, size)[:] = result.reshape(-1).view(np.uint8)

        stream.add(begin)
        stream.add(end)
        return True


class CudaEngine:
    """An ICudaEngine."""

    def __init__(
        self, world: World, sidecar: dict[str, Any], network: Network, log: Callable[[str, str], None]
    ) -> None:
        self.world, self.network, self.log = world, network, log
        (tensor,) = sidecar["inputs"]
        self.dtype = np.dtype(tensor["type"])
        self.shapes = tensor["min"], tensor["max"]
        self.device_memory_size_v2 = sidecar["activation_bytes"]
        self.fails = self.fails_in_captures = False

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}[self.dtype.name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(low if low == high else -1 for low, high in zip(*self.shapes, strict=True))

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None, cache=None)
        config.set_execution_context_allocation_strategy = lambda value: vars(config).update(strategy=value)
        config.set_runtime_cache = lambda value: vars(config).update(cache=value)
        config.create_runtime_cache = lambda: RuntimeCache(self)
        self.config = config
        return config

    def create_execution_context(self, config: Any) -> Context:
        if config.cache is not None:
            config.cache.kernels += 1
        return Context(self, config)


class RuntimeCache:
    """An IRuntimeCache: it counts the contexts whose kernels it holds."""

    def __init__(self, engine: CudaEngine) -> None:
        self.kernels = 0

    def serialize(self) -> bytes:
        return b"kernels %d" % self.kernels

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"kernels "):
            return False
        self.kernels = int(data.split()[1])
        return True


def library(world: World, network: Network, *, version: str = VERSION) -> ModuleType:
    """The module `tensorrt_rtx` or `tensorrt`, whose plans compute `network`. `engines` are those that it loaded."""
    module = ModuleType("tensorrt_rtx")

    class ILogger:
        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> CudaEngine | None:
            def log(severity: str, text: str) -> None:
                self.logger.log(SimpleNamespace(name=severity), text)

            if not data.startswith(b"{"):
                log("ERROR", data.decode())
                return None
            engine = CudaEngine(world, json.loads(data), network, log)
            vars(module)["engines"].append(engine)
            return engine

    registry = SimpleNamespace(loaded=[])

    def load_library(path: str) -> object | None:
        if registry.loaded:
            return None  # its plugins are known
        registry.loaded.append(path)
        return object()

    registry.load_library = load_library
    registry.get_creator = lambda *_: object() if registry.loaded else None
    vars(module).update(
        __version__=version,
        ILogger=ILogger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
        get_plugin_registry=lambda: registry,
        registry=registry,
        engines=[],
    )
    return module


def inverted(image: NDArray[Any]) -> NDArray[Any]:
    """A network that is easily checked."""
    return 255 - image if image.dtype == np.uint8 else 1 - image


@contextmanager
def machine(
    world: World, network: Network = inverted, *, backend: str = "tensorrt_rtx", gpu: Gpu = ADA
) -> Iterator[ModuleType]:
    """Make this a machine with such a GPU, and yield its library."""
    module = library(world, network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.core", cuda_core(world))
        patch.setitem(sys.modules, backend, module)
        patch.setattr("runtime.engines.plan_file.gpu", lambda number: gpu)
        tensorrt_library.logger.cache_clear()
        yield module
    tensorrt_library.logger.cache_clear()


def write_plan(
    path: Path,
    least: tuple[int, int],
    most: tuple[int, int],
    *,
    io: str = "float32",
    channels: int = 3,
    **changes: Any,
) -> Path:
    """A plan for the library above, and its sidecar, of which `changes` overrides entries. Sizes (height, width)."""

    def shape(size: tuple[int, int]) -> list[int]:
        return [1, *size, channels] if io == "uint8" else [1, channels, *size]

    tensor = {"type": io, "format": "linear", "min": shape(least), "opt": shape(most), "max": shape(most)}
    sidecar = {
        "format": 1,
        "backend": "tensorrt-rtx",
        "version": VERSION,
        "precision": "fp16",
        "inputs": [{"name": "noisy", **tensor}],
        "outputs": [{"name": "denoised", **tensor}],
        "compute_capabilities": ["8.0 and later"],
        "gpu": None,
        "plugin": None,
        "kernels_sha256": None,
        "activation_bytes": SCRATCH + 1000 * max(most),
        "onnx": {"file": "sadnet.onnx", "sha256": "0" * 64},
        "model": {"weights_sha256": "1" * 64},
        "created": "2026-11-22T00:00:00Z",
    }
    path.write_text(json.dumps(sidecar))
    sidecar |= {"plan_sha256": sha256(path)} | changes
    sidecar_path(path).write_text(json.dumps(sidecar))
    return path
