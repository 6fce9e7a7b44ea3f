"""Launches the kernels on PyTorch's CUDA tensors and its current stream, by the driver's API: no TensorRT, no toolkit.

A kernel is compiled by NVRTC for the GPU at hand when it is first launched there, in about a third of a second.
"""

import ctypes
import statistics
import warnings
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
WAIT = 4_000_000
"""Cycles, about two milliseconds, that the GPU spins meanwhile: as long as queueing them takes."""


CUDA_VERSION = 13000
"""Of NVRTC, in the driver's words."""


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
    with torch.cuda.device(x.device):
        bind(x.device.index)
        function = _function(kernel, x.device.index)
        stream = torch.cuda.current_stream().cuda_stream
        what = f"{kernel.source} for {n} images of {h} x {w}"
        queue(function, kernel.grid(n, h, w), kernel.threads, stream, arguments, what)


def queue(function: Any, grid: tuple[int, int, int], threads: int, stream: int, arguments: Any, what: str) -> None:
    """Launch a function of the current context. arguments: values and their types. Raises LaunchError."""
    status, *_ = _driver().cuLaunchKernel(function, *grid, threads, 1, 1, 0, stream, arguments, 0)
    check(status, f"launch {what}")


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
    if n >= launches.BATCH_LIMIT:
        raise InputError(f"{op.NAME}: expected fewer than {launches.BATCH_LIMIT} images, found {n}")
    if not last and max(h * w, weight.numel()) >= launches.PLANE_LIMIT:
        raise InputError(
            f"{op.NAME}: expected fewer than {launches.PLANE_LIMIT} pixels and weights, found {h} x {w} and "
            f"{weight.numel()}"
        )
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

    The medians of a few runs each, turn about; the GPU waits until all are queued, so that no time is Python's. Which
    one wins may differ from process to process, and with it the order of a sum: the last bit of an output.
    """
    for kernel in kernels:
        launch(kernel, x, offset_mask, weight, bias, y, offset_groups)  # compiles
    events: dict[launches.Kernel, list[tuple[Any, Any]]] = {kernel: [] for kernel in kernels}
    with torch.cuda.device(x.device):
        torch.cuda._sleep(WAIT)
        for _ in range(RUNS):
            for kernel in kernels:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                launch(kernel, x, offset_mask, weight, bias, y, offset_groups)
                end.record()
                events[kernel].append((start, end))
        torch.cuda.current_stream().synchronize()
    return min(kernels, key=lambda kernel: statistics.median(a.elapsed_time(b) for a, b in events[kernel]))


@cache
def usable(device: torch.device) -> bool:
    """Whether kernels can be compiled for a CUDA device here; warns once, saying what is missing, where they cannot."""
    try:
        nvrtc.load_nvrtc()
        nvrtc.architecture(nvrtc.capability(*torch.cuda.get_device_capability(device)))
        driver = _driver()
        version = driver.cuDriverGetVersion()[1] if torch.cuda.is_available() else CUDA_VERSION
        if version < CUDA_VERSION:
            raise DependencyError(_old_driver(version))
    except DependencyError as error:
        warnings.warn(f"torchvision's deformable convolution runs in place of our kernels: {error}", stacklevel=2)
        return False
    return True


@cache
def _function(kernel: launches.Kernel, device: int) -> Any:
    """The kernel loaded on a device, whose context is current; it stays for as long as the process does."""
    number = nvrtc.capability(*torch.cuda.get_device_capability(device))
    compiled = nvrtc.compile_kernel(kernel, nvrtc.architecture(number))
    return functions(compiled, number, (launches.ENTRY,))[launches.ENTRY]


def functions(compiled: nvrtc.Compiled, number: int, names: Sequence[str]) -> dict[str, Any]:
    """Functions by name, loaded into the current context, of a GPU of capability `number`. Raises LaunchError."""
    driver = _driver()
    # A graph may be on its way, which loading is no part of.
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    status, mode = driver.cuThreadExchangeStreamCaptureMode(relaxed)
    check(status, "set the capture mode")
    try:
        module = load(compiled.cubin if compiled.arch == number else compiled.ptx, compiled.source)
        found = {}
        for name in names:
            status, found[name] = driver.cuModuleGetFunction(module, name.encode())
            check(status, f"find {name} in {compiled.source}")
    finally:
        driver.cuThreadExchangeStreamCaptureMode(mode)
    return found


def load(image: bytes, name: str) -> Any:
    """A module from PTX or machine code, in the current context. Raises LaunchError, saying what to do."""
    driver = _driver()
    status, module = driver.cuModuleLoadData(image)
    if int(status):
        _, version = driver.cuDriverGetVersion()  # an old one refuses PTX and machine code with different words
        if version < CUDA_VERSION or status == driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
            raise LaunchError(f"{name}: {_old_driver(version)}")
    check(status, f"load {name}")
    return module


def _old_driver(version: int) -> str:
    found, least = _dotted(version), _dotted(CUDA_VERSION)
    return f"expected a driver of CUDA {least} or later, found one of CUDA {found}: install NVIDIA driver 580 or later"


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def bind(device: int) -> None:
    """Make the device's context this thread's, as PyTorch does, but not before a thread's first work of its own."""
    driver = _driver()
    status, context = driver.cuCtxGetCurrent()
    check(status, "ask for the CUDA context")
    if not int(context):
        status, context = driver.cuDevicePrimaryCtxRetain(device)  # PyTorch's own; it lives as long as the process
        check(status, f"take the context of CUDA device {device}")
        check(driver.cuCtxSetCurrent(context)[0], "make it current")


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
