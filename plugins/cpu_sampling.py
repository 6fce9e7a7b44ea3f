"""Runs cpu_sampling.cpp, the sampling of the op in training, on CPU tensors.

g++ compiles it for the machine's own CPU when it is first wanted, in a few seconds, into `build/`. Where that fails,
one warning says so, and `plugins.reference` computes the op.
"""

import contextlib
import ctypes
import hashlib
import platform
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DependencyError, SadnetError
from common.files import whole_file

SOURCE = Path(__file__).with_name("cpu_sampling.cpp")
BUILD = Path(__file__).resolve().parent.parent / "build" / "cpu_sampling"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
TYPES = (torch.float32, torch.bfloat16)


def usable_for(x: Tensor) -> bool:
    """Whether the kernel takes x, a CPU tensor, on this machine."""
    return x.dtype in TYPES and usable()


def usable() -> bool:
    """Whether the kernel is there, compiled now if need be."""
    return _library() is not None


def run(name: str, groups: int, x: Tensor, *tensors: Tensor) -> None:
    """Call the kernel `name` with x and the tensors that it takes besides, all channels last; see cpu_sampling.cpp."""
    n, c, h, w = x.shape
    numbers = (int(x.dtype == torch.bfloat16), torch.get_num_threads(), n, h, w, groups, c // groups)
    library = _library()
    assert library is not None
    library[name](*map(ctypes.c_int, numbers), *(ctypes.c_void_p(t.data_ptr()) for t in (x, *tensors)))


@cache
def _library() -> ctypes.CDLL | None:
    """The kernel, compiled for this CPU where it is not there yet; None, with a warning, where that fails."""
    path = BUILD / f"{_key()}.so"
    try:
        if path.exists():
            with contextlib.suppress(OSError):  # a damaged file: it is made again
                return ctypes.CDLL(str(path))
        _compile(path)
        return ctypes.CDLL(str(path))
    except (OSError, SadnetError) as error:
        warnings.warn(
            f"no kernel of ours on this CPU ({error}): the op runs as grid_sample, and training steps take about 1.4 "
            "times as long",
            stacklevel=2,
        )
    return None


def _key() -> str:
    """Of source, flags, and what this CPU can do: another one may share the disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    text = " ".join((*FLAGS, platform.machine(), features)).encode()
    return hashlib.sha256(SOURCE.read_bytes() + text).hexdigest()[:16]


def _compile(path: Path) -> None:
    """Write the library whole or not at all; processes that start together may all do so."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise DependencyError("expected a C++ compiler, found no g++: apt-get install g++")
    with whole_file(path, overwrite=True) as temporary:
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(temporary)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DependencyError(f"expected g++ to compile {SOURCE.name}, found: {lines[-1]}")
