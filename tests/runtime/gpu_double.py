"""A GPU and cuda-core on a CPU, which do what they must as late, and in as odd an order, as they may.

Work that is queued on a stream runs only when something waits for it, and then in an order drawn by chance among all
that streams and events allow. Host memory is read when a copy runs, not when it is queued. Memory that was given back
is poisoned and may not be touched, nor may memory of the pool by a stream that does not come after its allocation. A
thread that has not made the device current can do nothing, and one that is in a capture cannot allocate. So an engine
that forgets an event or reuses a buffer too early computes nonsense.
"""

import random
import threading
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNED = 512
POISON = 0xEE


class CUDAError(Exception):
    """As cuda-core names its own, in a private module."""


class World:
    """The GPU: its memory and what is queued on it."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.streams: list[Stream] = []
        self.late: list[Stream] = []
        """Streams whose work is put off for as long as there is any other."""
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
            stream = self.chance.choice([stream for stream in ready if stream not in self.late] or ready)
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
