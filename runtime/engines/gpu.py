"""One GPU as the engine of plans uses it: streams, memory at both ends, and arrays that other libraries own on it."""

import contextlib
import ctypes
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import DependencyError, InputError, ModelError
from runtime.engines.base import Images

DEVICE = 0
"""The GPU that plans run on: $CUDA_VISIBLE_DEVICES chooses another."""


class CudaArray(Protocol):
    """What PyTorch's, CuPy's, Numba's and PyCUDA's arrays on a GPU have in common."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


ALIGNMENT = 256
"""Of addresses that TensorRT reads images from and writes them to."""
SCRATCH_ALIGNMENT = 512
"""Of the memory that a context works in; its documentation says 256, builds in the field have asked for this."""


class Device:
    """The first GPU, with a stream each for uploads, work and downloads, so that these overlap.

    A thread that uses it has it as its current GPU from then on. Raises DependencyError where cuda-core, the driver or
    a GPU is missing, ModelError where the GPU cannot be used.
    """

    def __init__(self) -> None:
        try:
            self.core = importlib.import_module("cuda.core")
            self.device = self.core.Device(DEVICE)
            with cuda_errors("use the GPU"):
                self.make_current()
        except (ImportError, RuntimeError) as error:  # RuntimeError: cuda.pathfinder finds no libcuda
            raise DependencyError(
                f"expected cuda-core and an NVIDIA driver, found: {error}: pip install -e '.[rtx]'"
            ) from error
        with cuda_errors("make streams"):
            self.upload, self.work, self.download = (self.device.create_stream() for _ in range(3))
            # Its own: the driver's common one keeps what was given back.
            self._pool = self.core.DeviceMemoryResource(DEVICE, self.core.DeviceMemoryResourceOptions())
        self._pinned = self.core.LegacyPinnedMemoryResource()

    def make_current(self) -> None:
        """For this thread."""
        self.device.set_current()

    def memory(self, size: int) -> Any:
        """A buffer of `size` bytes on the device, for the work stream; others wait for an event of that."""
        return self._pool.allocate(size, stream=self.work)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> tuple[Any, Images]:
        """A buffer of host memory that the device copies from and to by itself, and an array over it."""
        buffer = self._pinned.allocate(math.prod(shape) * np.dtype(dtype).itemsize)
        return buffer, _array(int(buffer.handle), shape, np.dtype(dtype))

    def event(self, *, timed: bool = False) -> Any:
        """An event; a thread that waits for it sleeps, unless it is a timed one."""
        return self.device.create_event(self.core.EventOptions(timing_enabled=timed, blocking_sync=not timed))

    def settle(self) -> None:
        """Wait for all that is queued."""
        self.make_current()
        with cuda_errors("wait for the GPU"):
            for stream in (self.upload, self.work, self.download):
                stream.sync()

    def close(self) -> None:
        """Give the memory that nobody holds back to the GPU."""
        self.settle()
        self._pool.close()

    def wait_for_owner(self, interface: dict[str, Any]) -> None:
        """Make the work stream wait for the stream on which an array of another library is made.

        An interface that names none (version 2, as PyTorch's) is taken to mean the default stream.
        """
        stream = interface.get("stream", 1) if interface.get("version", 0) >= 3 else 1
        if stream is None:
            return  # its owner says that it is ready
        known = {1: self.core.LEGACY_DEFAULT_STREAM, 2: self.core.PER_THREAD_DEFAULT_STREAM}
        self.work.wait(known[stream] if stream in known else self.core.Stream.from_handle(stream))


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array on the GPU, ready to be read: `torch.as_tensor`, `cupy.asarray` and others take it as it is.

    The memory is given back once nobody holds the array.
    """

    buffer: Any
    shape: tuple[int, ...]
    dtype: str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (int(self.buffer.handle), False),
            "strides": None,
            "stream": None,
            "version": 3,
        }


def address(
    array: CudaArray, shape: tuple[int, ...] | None, dtype: str, *, written: bool = False
) -> tuple[int, tuple[int, ...]]:
    """Address and shape of an array of four dimensions on the GPU.

    Raises InputError unless it is contiguous, aligned and of `dtype`, and of `shape` where that is given.
    """
    interface = array.__cuda_array_interface__
    found, kind = tuple(interface["shape"]), np.dtype(interface["typestr"])
    place, read_only = interface["data"]
    wanted = np.dtype(dtype)
    if kind != wanted or len(found) != 4 or (shape is not None and found != shape):
        text = f"{shape}" if shape else "four dimensions"
        raise InputError(f"expected an array of {wanted} and {text} on the GPU, found {kind} and {found}")
    if not _is_contiguous(found, interface.get("strides"), wanted.itemsize):
        raise InputError(f"expected a contiguous array on the GPU, found strides {interface['strides']} of {found}")
    each = math.prod(found[1:]) * wanted.itemsize
    if place % ALIGNMENT or (found[0] > 1 and each % ALIGNMENT):
        raise InputError(
            f"expected images that lie at multiples of {ALIGNMENT} bytes on the GPU, found {found[0]} of {each} bytes "
            f"from {place:#x} on: give them one by one, each in memory of its own"
        )
    if written and read_only:
        raise InputError("expected an array on the GPU that can be written, found a read-only one")
    return int(place), found


@contextlib.contextmanager
def cuda_errors(what: str) -> Iterator[None]:
    """Make a ModelError of what CUDA says, as where its memory runs out; `what` was meant to be done."""
    try:
        yield
    except MemoryError as error:
        raise ModelError(f"cannot {what}: out of memory") from error
    except Exception as error:
        if not is_cuda_error(error):
            raise
        raise ModelError(f"cannot {what}: {error}") from error


def is_cuda_error(error: BaseException) -> bool:
    """Whether it is cuda-core's CUDAError, which derives from Exception alone and lives in a private module."""
    return type(error).__name__ == "CUDAError"


def _array(place: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(place)
    return np.frombuffer(memoryview(memory), dtype).reshape(shape)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> bool:
    if strides is None:
        return True
    expected = itemsize
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True
