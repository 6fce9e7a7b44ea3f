"""What `plugins/benchmark.py` times: our kernels, torchvision's op, and the kernel of NVIDIA's TensorRT plugin.

In half precision torchvision and NVIDIA compute sampling coordinates in half.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from common.errors import InputError
from plugins import cuda_driver, launch, nvrtc, op, reference
from plugins.launch import Layer, Layout, Precision

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer. prepare: makes of one set of inputs the work that is timed, which returns y."""

    by: str
    """ours, torchvision or nvidia."""
    kernel: str
    prepare: Callable[[Tensors], Callable[[], Tensor]]


def contenders(
    channels: int, pixels: int, precision: Precision, layout: Layout, plugin: "NvidiaPlugin | None" = None
) -> list[Contender]:
    """All that compute a layer of SADNet on tensors of this type and order in memory."""
    layer = Layer(channels, channels)
    found = []
    if (precision, layout) == ("fp16", "hwc8"):
        labels = [f"fused.cu {tile.label}" for tile in launch.tiles(layer)]
    else:
        labels = ["linear.cu"] if layout == "linear" else []
    if labels:
        kernels = launch.kernels(layer, precision, layout)
        found = [ours(kernel, label) for kernel, label in zip(kernels, labels, strict=True)]
    found.append(Contender("torchvision", "torchvision", lambda tensors: lambda: torchvision_layer(*tensors)))
    # its kernel counts columns in 32 bits
    if plugin and layout == "linear" and op.TAPS * channels * pixels < 2**31:
        found.append(Contender("nvidia", "NVIDIA's plugin", plugin.prepare))
    return found


def ours(kernel: launch.Kernel, label: str) -> Contender:
    def prepare(tensors: Tensors) -> Callable[[], Tensor]:
        y = torch.empty_like(tensors[0])

        def work() -> Tensor:
            cuda_driver.launch(kernel, *tensors, y, op.OFFSET_GROUPS)
            return y

        return work

    return Contender("ours", label, prepare)


def torchvision_layer(x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer as a user of torchvision has it, y in the order of x."""
    offset, logits = offset_mask.tensor_split((op.offset_channels(op.OFFSET_GROUPS),), dim=1)
    y = deform_conv2d(x, offset, weight, bias, padding=1, mask=logits.sigmoid())
    last = x.is_contiguous(memory_format=torch.channels_last)
    return F.leaky_relu(y, op.NEGATIVE_SLOPE).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


class NvidiaPlugin:
    """The kernel of TensorRT's ModulatedDeformConv2d plugin, from its own source, with PyTorch's matrix product."""

    SOURCE = "modulatedDeformConvPluginKernel.cu"
    DEVICE = ("template <typename T>\n__device__", "template <typename T>\ncudaError_t")
    """The first words of the source's device code, and of the host code that follows it."""
    ENTRY = "template <typename T>\n__global__ void modulatedDeformableIm2colGpuKernel("
    THREADS, MOST_BLOCKS = 512, 4096

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder does not hold the plugin's source as it was in 2025."""
        try:
            text = (folder / self.SOURCE).read_text()
            self.source = text[text.index(self.DEVICE[0]) : text.index(self.DEVICE[1])]
        except (OSError, ValueError) as error:
            raise InputError(
                f"--nvidia-plugin: expected a folder that holds {self.SOURCE} of NVIDIA/TensorRT "
                f"(plugin/modulatedDeformConvPlugin), found {folder}: {error}"
            ) from error
        self.functions: dict[str, Any] = {}

    def kernel_source(self, precision: Precision) -> str:
        """Its device code for one type, the kernel under the name im2col."""
        entry = f'typedef {launch.TYPES[precision]} T;\nextern "C" __global__ void im2col('
        return "#include <cuda_fp16.h>\n" + self.source.replace(self.ENTRY, entry)

    def verify(self, device: str) -> None:
        """Raises InputError unless it computes the op: the source may be of a version with other arguments.

        And CompileError where the other type does not compile, before anything is timed.
        """
        nvrtc.compile_source(self.SOURCE, self.kernel_source("fp16"), 90, {"int32_t": "int"})
        g = torch.Generator(device).manual_seed(0)
        sizes = ((1, 16, 13, 21), (1, op.offset_mask_channels(op.OFFSET_GROUPS), 13, 21), (16, 16, 3, 3), (16,))
        x, offset_mask, weight, bias = (torch.randn(size, generator=g, device=device) for size in sizes)
        y = self.prepare((x, offset_mask, weight, bias))()
        right = reference.modulated_deform_conv2d(x, offset_mask, weight, bias)
        if not (y - right).abs().max() <= 0.02 * right.abs().max():  # NaN neither
            raise InputError(f"--nvidia-plugin: expected {self.SOURCE} to compute the op, found other results")

    def prepare(self, tensors: Tensors) -> Callable[[], Tensor]:
        x, offset_mask, weight, bias = tensors
        _, c, h, w = x.shape
        columns, y = x.new_empty(op.TAPS * c, h * w), torch.empty_like(x)
        offset, logits = offset_mask.tensor_split((op.offset_channels(op.OFFSET_GROUPS),), dim=1)

        def work() -> Tensor:
            self.im2col(x, offset, logits.sigmoid(), columns)
            torch.matmul(weight.view(c, -1), columns, out=y.view(c, -1))
            return F.leaky_relu_(y.add_(bias.view(-1, 1, 1)), op.NEGATIVE_SLOPE)

        return work

    def im2col(self, x: Tensor, offset: Tensor, mask: Tensor, columns: Tensor) -> None:
        """columns (9 C, H * W) of one image, as the plugin launches its kernel."""
        from cuda.bindings import driver

        precision: Precision = "fp32" if x.dtype == torch.float32 else "fp16"
        if precision not in self.functions:
            arch = nvrtc.architecture(nvrtc.capability(*torch.cuda.get_device_capability(x.device)))
            compiled = nvrtc.compile_source(self.SOURCE, self.kernel_source(precision), arch, {"int32_t": "int"})
            status, function = driver.cuModuleGetFunction(cuda_driver.load(compiled.ptx, self.SOURCE), b"im2col")
            cuda_driver.check(status, f"find im2col in {self.SOURCE}")
            self.functions[precision] = function
        _, c, h, w = x.shape
        ones = (1,) * 6  # padding, stride and dilation
        sizes = (h, w, op.KERNEL, op.KERNEL, *ones, c // op.OFFSET_GROUPS, 1, c, op.OFFSET_GROUPS, h, w)
        values = (c * h * w, *(t.data_ptr() for t in (x, offset, mask)), *sizes, columns.data_ptr())
        integer, pointer = ctypes.c_int, ctypes.c_void_p
        types = (integer, *(pointer,) * 3, *(integer,) * len(sizes), pointer)
        blocks = min(-(-values[0] // self.THREADS), self.MOST_BLOCKS)
        stream = torch.cuda.current_stream().cuda_stream
        launched = driver.cuLaunchKernel(
            self.functions[precision], blocks, 1, 1, self.THREADS, 1, 1, 0, stream, (values, types), 0
        )
        cuda_driver.check(launched[0], f"launch im2col for {c} x {h} x {w}")
