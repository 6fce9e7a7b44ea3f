"""TensorRT and TensorRT-RTX on the GPU of `gpu_double`, and plans for them.

A context that is changed after a capture spoils the graph, as TensorRT says, and takes no address off 256 bytes. Two
contexts that share scratch memory at a time find each other's marks in it.
"""

import json
import sys
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
from runtime.engines.base import Images
from tests.runtime.gpu_double import ALIGNED, World, cuda_core

ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9")
VERSION = "1.7.1.116"
SCRATCH = 1 << 16
SMALL, LARGE = (64, 96), (128, 160)
Network = Callable[[NDArray[Any]], NDArray[Any]]
"""What a plan computes: an image batch as the plan takes it, to the same shape."""
Log = Callable[[str, str], None]
"""Takes a severity and a message."""


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

    def __init__(self, world: World, sidecar: dict[str, Any], network: Network, log: Log) -> None:
        self.world, self.network, self.log = world, network, log
        (tensor,) = sidecar["inputs"]
        self.tensors: dict[str, dict[str, Any]] = {
            tensor["name"]: tensor for tensor in (*sidecar["inputs"], *sidecar["outputs"])
        }
        self.modes = {tensor["name"]: side for side in ("inputs", "outputs") for tensor in sidecar[side]}
        self.num_io_tensors = len(self.tensors)
        self.dtype = np.dtype(tensor["type"])
        self.shapes = tensor["min"], tensor["max"]
        self.device_memory_size_v2 = sidecar["activation_bytes"]
        self.fails = self.fails_in_captures = False

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name={"inputs": "INPUT", "outputs": "OUTPUT"}[self.modes[name]])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(
            name={"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}[self.tensors[name]["type"]]
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sides = zip(self.tensors[name]["min"], self.tensors[name]["max"], strict=True)
        return tuple(low if low == high else -1 for low, high in sides)

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


def images(count: int, size: tuple[int, int], io: str = "float32", seed: int = 0) -> Images:
    """A batch as a plan of that `io` takes it."""
    rng = np.random.default_rng(seed)
    if io == "uint8":
        return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return rng.random((count, 3, *size), dtype=np.float32).astype(io)
