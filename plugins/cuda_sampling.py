"""Launches kernels/training.cu, the sampling of the op in training, on PyTorch's CUDA tensors and current stream."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from plugins import cuda_driver, launch, nvrtc, op

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
SAMPLE, BACKWARD = "sadnet_sample", "sadnet_sample_backward"
MOST = 2**31
"""Threads of a launch, one for each pixel, offset group and tap: their numbers have 32 bits."""


def usable_for(x: Tensor, offset_groups: int) -> bool:
    """Whether the kernels take x (N, C, H, W), on a CUDA device, and can be compiled for it."""
    fits = x.dtype in TYPES and x.shape[0] * x.shape[2] * x.shape[3] * offset_groups * op.TAPS < MOST
    return fits and torch.cuda.is_available() and cuda_driver.usable(x.device)  # a traced tensor needs no GPU


def run(name: str, groups: int, x: Tensor, *tensors: Tensor) -> None:
    """Queue the kernel `name` on x and the tensors that it takes besides, all channels last; see training.cuh."""
    n, c, h, w = x.shape
    threads = n * h * w * groups * op.TAPS
    pointers = tuple(t.data_ptr() for t in (x, *tensors))
    values = (*pointers, h, w, threads)
    types = (ctypes.c_void_p,) * len(pointers) + (ctypes.c_int, ctypes.c_int, ctypes.c_uint)
    with torch.cuda.device(x.device):
        cuda_driver.bind(x.device.index)
        kernel = launch.training(TYPES[x.dtype], groups, c // groups)
        function = _functions(kernel, x.device.index)[name]
        stream, grid = torch.cuda.current_stream().cuda_stream, (-(-threads // kernel.threads), 1, 1)
        cuda_driver.queue(function, grid, kernel.threads, stream, (values, types), name)


@cache
def _functions(kernel: launch.Kernel, device: int) -> dict[str, Any]:
    number = nvrtc.capability(*torch.cuda.get_device_capability(device))
    compiled = nvrtc.compile_kernel(kernel, nvrtc.architecture(number))
    return cuda_driver.functions(compiled, number, (SAMPLE, BACKWARD))
