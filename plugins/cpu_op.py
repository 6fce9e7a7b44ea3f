"""The op on CPU tensors, differentiable, by a kernel of our own: for training without a GPU.

`cpu_kernel.cpp` samples, and a matrix product sums over the taps. g++ compiles it for the machine's own CPU when it is
first wanted, in a few seconds, into `build/`. Where that fails, one warning says so and `plugins.reference` runs.
"""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.machine import cpu_name
from plugins import op

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
    columns: Tensor = _Sample.apply(x, offset_mask, offset_groups)  # type: ignore[no-untyped-call]  # PyTorch's
    return columns


def usable_for(x: Tensor) -> bool:
    """Whether `modulated_deform_conv2d` takes tensors of the kind of x on this machine."""
    return x.device.type == "cpu" and x.dtype in TYPES and x.numel() > 0 and usable()


def usable() -> bool:
    """Whether the kernel is there, compiled now if need be."""
    return _library() is not None


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
        x, offset_mask = (t.contiguous(memory_format=torch.channels_last) for t in (x, offset_mask))
        n, c, h, w = x.shape
        columns = x.new_empty(n * h * w, c * op.TAPS)
        _call("sadnet_sample", groups, x, offset_mask, columns)
        ctx.save_for_backward(x, offset_mask)
        ctx.groups = groups
        return columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, offset_mask = ctx.saved_tensors
        n, c, h, w = x.shape
        grad_x = torch.zeros(n, ctx.groups, h, w, c // ctx.groups)
        grad_offset_mask = torch.empty_like(offset_mask)
        _call("sadnet_sample_backward", ctx.groups, x, offset_mask, grad.contiguous(), grad_x, grad_offset_mask)
        planes = grad_x.to(x.dtype).permute(0, 2, 3, 1, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
        return planes, grad_offset_mask, None


def _call(name: str, groups: int, x: Tensor, *tensors: Tensor) -> None:
    library = _library()
    assert library is not None
    n, c, h, w = x.shape
    half = x.dtype == torch.bfloat16
    numbers = (int(half), torch.get_num_threads(), n, h, w, groups, c // groups)
    library[name](*map(ctypes.c_int, numbers), *(ctypes.c_void_p(t.data_ptr()) for t in (x, *tensors)))


@cache
def _library() -> ctypes.CDLL | None:
    """The kernel, compiled for this CPU where it is not there yet; None, with a warning, where that fails."""
    key = hashlib.sha256(SOURCE.read_bytes() + cpu_name().encode()).hexdigest()[:16]
    path = BUILD / f"{key}.so"
    try:
        if not path.exists():
            _compile(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        reason = error.strerror or error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
    warnings.warn(
        f"no kernel of ours on this CPU ({reason}): the op runs as grid_sample, and training steps take about 1.4 "
        "times as long; apt-get install g++",
        stacklevel=2,
    )
    return None


def _compile(path: Path) -> None:
    """Write the library whole or not at all; processes that start together may all do so."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError(0, "expected a C++ compiler, found no g++")
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        made = Path(folder) / path.name
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(made)], check=True, capture_output=True, text=True)
        made.replace(path)
