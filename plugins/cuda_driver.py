"""Launches the kernels on PyTorch's CUDA tensors and its current stream, by the driver's API: no TensorRT, no toolkit.

A kernel is compiled by NVRTC for the GPU at hand when it is first launched there, in about a third of a second.
"""

import ctypes
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from common.errors import DependencyError, InputError, SadnetError
from plugins import launch as launches
from plugins import nvrtc, op

ALIGNMENT = 16
"""Bytes: what the widest loads and stores of the channels-last kernel want."""
RUNS = 5
"""Timed launches of each kernel when the fastest is chosen."""


class LaunchError(SadnetError):
    """The driver refused a kernel or its launch."""


def launch(
    kernel: launches.Kernel, x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, y: Tensor, offset_groups: int
) -> None:
    """Compute y by `kernel`, which was made for these tensors' channels and type (`plugins.launch.kernels`).

    Shapes as in `plugins.op`; all on one GPU and of the kernel's type, channels_last for fused.cu and contiguous for
    the others. Returns at once: the work is queued on the current stream. Raises InputError for tensors that do not
    fit, CompileError, LaunchError or DependencyError where the GPU, its driver or NVRTC refuse.
    """
    arguments = pack(kernel, x, offset_mask, weight, bias, y, offset_groups)
    n, _, h, w = x.shape
    if x.device.type != "cuda":
        raise InputError(f"{op.NAME}: expected tensors on a CUDA device, found them on {x.device}")
    driver = _driver()
    with torch.cuda.device(x.device):
        function = _function(kernel, x.device.index)
        stream = torch.cuda.current_stream().cuda_stream
        status, *_ = driver.cuLaunchKernel(
            function, *kernel.grid(n, h, w), kernel.threads, 1, 1, 0, stream, arguments, 0
        )
    check(status, f"launch {kernel.source} for {n} images of {h} x {w}")


def pack(
    kernel: launches.Kernel, x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, y: Tensor, offset_groups: int
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The launch's arguments in the order of `plugins.launch`: values, and their types.

    Raises InputError where a tensor's shape, type, order in memory or address is not the kernel's.
    """
    expected = op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    if tuple(y.shape) != tuple(expected):
        raise InputError(f"{op.NAME}: expected y of shape {tuple(expected)}, found {tuple(y.shape)}")
    last = kernel.source == "fused.cu"
    dtype = {"float": torch.float32, "__half": torch.float16}[dict(kernel.macros)["SADNET_TYPE"]]
    order = torch.channels_last if last else torch.contiguous_format
    tensors = {"x": x, "offset_mask": offset_mask, "weight": weight, "bias": bias, "y": y}
    for name, t in tensors.items():
        if t.dtype != dtype or t.device != x.device:
            raise InputError(f"{op.NAME}: expected {name} of {dtype} on {x.device}, found {t.dtype} on {t.device}")
        if not t.is_contiguous(memory_format=order if t.dim() == 4 else torch.contiguous_format):
            raise InputError(f"{op.NAME}: expected {name} in {order} for {kernel.source}, found strides {t.stride()}")
        if last and t.data_ptr() % ALIGNMENT:
            raise InputError(f"{op.NAME}: expected {name} at a multiple of {ALIGNMENT} bytes, found a shifted view")
    n, c, h, w = x.shape
    if last and c * h * w * x.element_size() >= launches.IMAGE_LIMIT:
        raise InputError(
            f"{op.NAME}: expected images below {launches.IMAGE_LIMIT} bytes, found {c} x {h} x {w}: use tiles"
        )
    scalars = (n, c, h, w, weight.shape[0], offset_groups)
    inputs = tuple(t.data_ptr() for t in (x, offset_mask, weight, bias))
    types = (ctypes.c_void_p,) * len(inputs) + (ctypes.c_int,) * len(scalars) + (ctypes.c_void_p,)
    return (*inputs, *scalars, y.data_ptr()), types


def fastest(
    kernels: Sequence[launches.Kernel],
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    offset_groups: int,
) -> launches.Kernel:
    """The kernel that takes the least time on these tensors; y is left as one of them computed it.

    The medians of a few runs each, turn about, once a shape: a tenth of what compiling the kernels takes.
    """
    times: dict[launches.Kernel, list[float]] = {kernel: [] for kernel in kernels}
    for run in range(RUNS + 1):
        for kernel in kernels:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            launch(kernel, x, offset_mask, weight, bias, y, offset_groups)
            end.record()
            end.synchronize()
            if run:  # the first compiles
                times[kernel].append(start.elapsed_time(end))
    return min(kernels, key=lambda kernel: statistics.median(times[kernel]))


@cache
def _function(kernel: launches.Kernel, device: int) -> Any:
    """The kernel loaded on a device, whose context is current; it stays for as long as the process does."""
    driver = _driver()
    number = nvrtc.capability(*torch.cuda.get_device_capability(device))
    arch = nvrtc.architecture(number)
    compiled = nvrtc.compile_kernel(kernel, arch)
    module = load(compiled.cubin if arch == number else compiled.ptx, kernel.source)
    status, function = driver.cuModuleGetFunction(module, launches.ENTRY.encode())
    check(status, f"find {launches.ENTRY} in {kernel.source}")
    return function


def load(image: bytes, name: str) -> Any:
    """A module from PTX or machine code, in the current context. Raises LaunchError, saying what to do."""
    driver = _driver()
    status, module = driver.cuModuleLoadData(image)
    if status == driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
        raise LaunchError(
            f"expected a driver that takes the PTX of CUDA 13.0, found one that does not ({name}): "
            "install NVIDIA driver 580 or later"
        )
    check(status, f"load {name}")
    return module


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DependencyError(f"expected CUDA's Python bindings, found none ({error}): {nvrtc.INSTALL}") from error
    return driver


def check(status: Any, what: str) -> None:
    """Raise LaunchError, saying what was meant to happen, unless the driver's status is success."""
    if int(status):
        driver = _driver()
        _, text = driver.cuGetErrorString(status)
        reason = text.decode() if isinstance(text, bytes) else str(status)
        raise LaunchError(f"expected to {what}, found: {reason} ({getattr(status, 'name', status)})")
