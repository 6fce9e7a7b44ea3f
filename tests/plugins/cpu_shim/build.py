"""Compiles a kernel's own source for the CPU, under the headers beside this file, and runs it on NumPy arrays."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins import launch

Array = NDArray[Any]

SHIM = Path(__file__).resolve().parent
# Kernels read memory as other types than it was written as. Local variables that no one set hold NaN as halves, and
# -1.7e38 as floats. Plain accesses that are not aligned, or outside of their array, are reported (memory.h).
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
    *("-ftrivial-auto-var-init=pattern", "-fsanitize=alignment,bounds"),
)
INPUT_MARGIN, OUTPUT_MARGIN = 512, 2**16
"""Samples of NaN before and after every input, and of a mark around the output: a stray read or write shows. A tile
that is stored whole beyond the image goes far."""
MARK = 7.5
ALIGNMENT = 256
"""Bytes that CUDA's allocations begin at multiples of."""


class KernelError(Exception):
    """A kernel did what it must not: the text says which block and thread, and what."""


class Arguments(ctypes.Structure):
    """Of a kernel, as launch.cpp takes them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "offset_mask", "weight", "bias")),
        *((name, ctypes.c_int) for name in launch.SCALARS),
        ("y", ctypes.c_void_p),
    )


@cache
def compiler() -> str | None:
    """g++ of Linux, from 12 on (before, it lacks _Float16 and -ftrivial-auto-var-init); None where there is none."""
    program = shutil.which("g++")
    if program is None or sys.platform != "linux":
        return None
    version = subprocess.run([program, "-dumpversion"], capture_output=True, text=True, check=False).stdout
    return program if int(version.split(".")[0] or 0) >= 12 else None


# CI has one; a user's machine need not.
NEEDS_COMPILER = pytest.mark.skipif(compiler() is None, reason="no g++ 12 or later here: apt-get install g++")


def build(kernel: launch.Kernel, folder: Path, sources: Mapping[str, str] | None = None) -> "Compiled":
    """Compile the kernel into `folder`. sources: text by file name, instead of that of plugins/kernels.

    Raises KernelError with the compiler's messages where it refuses.
    """
    for name, text in (sources or {}).items():
        (folder / name).write_text(text)
    program, object_file, library = compiler() or "g++", folder / "launch.o", folder / "launch.so"
    includes = [f"-I{path}" for path in (folder, SHIM, launch.KERNELS)]
    macros = [f"-D{name}={value}" for name, value in (*kernel.macros, ("SADNET_SOURCE", f'"{kernel.source}"'))]
    _run([program, *FLAGS, *includes, *macros, "-c", str(SHIM / "launch.cpp"), "-o", str(object_file)])
    _run([program, "-shared", str(object_file), "-o", str(library)])  # apart: no sanitizer's library is wanted
    entry = ctypes.CDLL(str(library)).launch
    entry.restype = ctypes.c_char_p
    return Compiled(kernel, entry)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise KernelError(f"expected {command[0]} to succeed, found: {result.stderr}")


@dataclass(frozen=True)
class Compiled:
    """A kernel on the CPU."""

    kernel: launch.Kernel
    entry: Any

    def __call__(self, arrays: tuple[Array, Array, Array, Array], groups: int, pitch: int = 0, seed: int = 0) -> Array:
        """y (N, O, H, W) of x, offset_mask, weight and bias in the shapes of `plugins.op`.

        A fused kernel gets them channels-last, offset_mask padded with NaN to `pitch` channels where that is not 0.
        seed: of the threads' order. Raises KernelError for what the shim saw.
        """
        (n, c, h, w), o = arrays[0].shape, len(arrays[3])
        last = self.kernel.source == "fused.cu"
        inputs = [Fenced(a, INPUT_MARGIN, np.nan) for a in (_channels_last(arrays, pitch) if last else arrays)]
        y = Fenced(np.full((n, h, w, o) if last else (n, o, h, w), np.nan, arrays[0].dtype), OUTPUT_MARGIN, MARK)
        addresses = [fenced.array.ctypes.data for fenced in (*inputs, y)]
        arguments = Arguments(*addresses[:4], n, c, h, w, o, groups, addresses[4])
        sizes = (ctypes.c_size_t * 4)(*(fenced.array.nbytes for fenced in inputs))
        grid = (ctypes.c_uint * 3)(*self.kernel.grid(n, h, w))
        fault = self.entry(ctypes.byref(arguments), sizes, grid, self.kernel.threads, ctypes.c_uint64(seed))
        if fault:
            raise KernelError(fault.decode())
        if not y.fence_stands():
            raise KernelError("a store outside of y")
        return y.array.transpose(0, 3, 1, 2) if last else y.array


class Fenced:
    """A copy of an array at an aligned address between two margins of one value."""

    def __init__(self, array: Array, margin: int, fence: float) -> None:
        self.fence = fence
        self.buffer = np.full(array.size + 2 * margin + ALIGNMENT // array.itemsize, fence, array.dtype)
        self.first = margin + -(self.buffer.ctypes.data + margin * array.itemsize) % ALIGNMENT // array.itemsize
        self.array = self.buffer[self.first : self.first + array.size].reshape(array.shape)
        self.array[:] = array

    def fence_stands(self) -> bool:
        end = self.first + self.array.size
        return bool((self.buffer[: self.first] == self.fence).all() and (self.buffer[end:] == self.fence).all())


def _channels_last(arrays: tuple[Array, Array, Array, Array], pitch: int) -> tuple[Array, Array, Array, Array]:
    x, offset_mask, weight, bias = arrays
    padding = (0, max(pitch - offset_mask.shape[1], 0))
    moves = np.pad(offset_mask.transpose(0, 2, 3, 1), [(0, 0)] * 3 + [padding], constant_values=np.nan)
    return x.transpose(0, 2, 3, 1), moves, weight.transpose(0, 2, 3, 1), bias
