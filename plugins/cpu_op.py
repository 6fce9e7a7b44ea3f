"""The op on CPU tensors, differentiable, by a kernel of our own: for training without a GPU.

`cpu_kernel.cpp` samples, and a matrix product sums over the taps. g++ compiles it for the machine's own CPU when it is
first wanted, in a few seconds, into `build/`. Where that fails, one warning says so and `plugins.reference` runs.
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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import DependencyError, SadnetError
from common.files import whole_file
from plugins import cuda_sampling, op

SOURCE = Path(__file__).with_name("cpu_kernel.cpp")
BUILD = Path(__file__).resolve().parent.parent / "build" / "cpu_kernel"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
TYPES = (torch.float32, torch.bfloat16)
"""What the kernel takes."""


def modulated_deform_conv2d(
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset_groups: int = op.OFFSET_GROUPS,
    negative_slope: float = op.NEGATIVE_SLOPE,
) -> Tensor:
    """`plugins.op` on CPU tensors of one of TYPES, or of autocast's; y is channels_last. Differentiable once.

    Coordinates and interpolation in fp32, samples rounded to the tensors' type for the sum over taps, as in
    `plugins.reference`. Raises ValueError for shapes that do not fit.
    """
    n, o, h, w = op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    columns = sample(x, offset_mask.to(x.dtype), offset_groups)
    # the kernel's order of a pixel's samples: offset group, tap, channel of the group
    rows = weight.reshape(o, offset_groups, -1, op.TAPS).transpose(2, 3).reshape(o, -1)
    y = F.linear(columns, rows, bias).reshape(n, h, w, o).permute(0, 3, 1, 2)
    return y if negative_slope == 1 else F.leaky_relu(y, negative_slope)


def sample(x: Tensor, offset_mask: Tensor, offset_groups: int) -> Tensor:
    """The masked samples of x and offset_mask, tensors of one type: (N*H*W, G*9*C/G)."""
    columns: Tensor = _sample(x, offset_mask, offset_groups)
    return columns


def usable_for(x: Tensor, *others: Tensor, offset_groups: int) -> bool:
    """Whether `modulated_deform_conv2d` takes these tensors on this machine."""
    if any(t.device != x.device for t in others):
        return False
    if x.is_cuda:
        return cuda_sampling.usable_for(x, offset_groups)
    return x.device.type == "cpu" and x.dtype in TYPES and usable()


def usable() -> bool:
    """Whether the kernel is there, compiled now if need be."""
    return _library() is not None


# Ops of PyTorch's, so that what traces or only sizes up a network sees shapes instead of memory that is not there.
@torch.library.custom_op("sadnet::sample", mutates_args=())
def _sample(x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    x, offset_mask = (_last(t) for t in (x, offset_mask))
    n, c, h, w = x.shape
    columns = x.new_empty(n * h * w, c * op.TAPS)
    _call("sadnet_sample", groups, x, offset_mask, columns)
    return columns


@_sample.register_fake
def _(x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n * h * w, c * op.TAPS)


@torch.library.custom_op("sadnet::sample_backward", mutates_args=())
def _sample_backward(x: Tensor, offset_mask: Tensor, grad: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    x, offset_mask = (_last(t) for t in (x, offset_mask))
    n, c, h, w = x.shape
    grad_offset_mask = torch.empty_like(offset_mask)
    if x.is_cuda:
        grad_x = torch.zeros_like(x, dtype=torch.float32)
        _call("sadnet_sample_backward", groups, x, offset_mask, grad.contiguous(), grad_x, grad_offset_mask)
        return grad_x.to(x.dtype), grad_offset_mask
    grad_x = torch.zeros(n, groups, h, w, c // groups, dtype=torch.float32)
    _call("sadnet_sample_backward", groups, x, offset_mask, grad.contiguous(), grad_x, grad_offset_mask)
    planes = grad_x.to(x.dtype).permute(0, 2, 3, 1, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return planes, grad_offset_mask


@_sample_backward.register_fake
def _(x: Tensor, offset_mask: Tensor, grad: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    order = torch.channels_last
    return torch.empty_like(x, memory_format=order), torch.empty_like(offset_mask, memory_format=order)


def _last(t: Tensor) -> Tensor:
    """t, channels last, at an address that vectors can be read from."""
    t = t.contiguous(memory_format=torch.channels_last)
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset_mask, ctx.groups = inputs
    ctx.save_for_backward(x, offset_mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_sample_backward(*ctx.saved_tensors, grad, ctx.groups), None


_sample.register_autograd(_backward, setup_context=_setup_context)


def _call(name: str, groups: int, x: Tensor, *tensors: Tensor) -> None:
    n, c, h, w = x.shape
    if not x.numel():
        return
    if x.is_cuda:
        cuda_sampling.run(name, groups, x, *tensors)
        return
    half = x.dtype == torch.bfloat16
    numbers = (int(half), torch.get_num_threads(), n, h, w, groups, c // groups)
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
