"""The op in PyTorch: differentiable in training, one opaque node for torch.export and torch.compile otherwise.

In training `plugins.training_op` computes it where it can. The node runs the same on CPU tensors, and on CUDA tensors
our kernels in fp32 and fp16. What remains is `plugins.reference`'s on a CPU, and torchvision's on a GPU, which is
always fed fp32: its half-precision kernel computes sampling coordinates in half.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torchvision.ops import deform_conv2d

from plugins import cuda_driver, launch, op, reference, training_op


def modulated_deform_conv2d(
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset_groups: int = op.OFFSET_GROUPS,
    negative_slope: float = op.NEGATIVE_SLOPE,
) -> Tensor:
    """`plugins.op` on the tensors' device; shapes, units and the layout of `offset_mask` are described there.

    Where a gradient is wanted the op is spelled out for autograd, which keeps the samples; the node that is exported
    computes them again in its backward pass. y has the type of x, in which all is computed unless autocast has another.
    Raises ValueError for shapes that do not fit.
    """
    tensors = (x, offset_mask, weight, bias)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    spelled = x.numel() and weight.numel() and not torch.compiler.is_compiling()
    if spelled and (recorded or any(_tangent(t) for t in tensors)):
        kind = x.device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            tensors = (x, offset_mask.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype))
        usable = training_op.usable_for(*tensors, offset_groups=offset_groups)
        form = training_op.modulated_deform_conv2d if usable else _differentiable
        return form(*tensors, offset_groups, negative_slope)
    y: Tensor = _node(*tensors, offset_groups, negative_slope)
    return y


def _tangent(t: Tensor) -> bool:
    """Whether t has a derivative in forward mode, which the node would drop without a word."""
    return forward_ad.unpack_dual(t).tangent is not None


def _differentiable(
    x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, offset_groups: int, negative_slope: float
) -> Tensor:
    if not x.is_cuda:
        return reference.modulated_deform_conv2d(x, offset_mask, weight, bias, offset_groups, negative_slope)
    return torchvision_form(x, offset_mask, weight, bias, offset_groups, negative_slope)


def torchvision_form(
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset_groups: int = op.OFFSET_GROUPS,
    negative_slope: float = op.NEGATIVE_SLOPE,
) -> Tensor:
    """The op by `torchvision.ops.deform_conv2d`, in fp32 (fp64 for fp64 inputs); any device, differentiable."""
    op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        offset, logits = offset_mask.to(wide).split_with_sizes(
            (op.offset_channels(offset_groups), op.mask_channels(offset_groups)), dim=1
        )
        offset = reference.within_reach(offset)
        y = deform_conv2d(x.to(wide), offset, weight.to(wide), bias.to(wide), padding=1, mask=logits.sigmoid())
        return F.leaky_relu(y, negative_slope).to(x.dtype)


@torch.library.custom_op(op.TORCH_NAME, mutates_args=())
def _node(
    x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, offset_groups: int, negative_slope: float
) -> Tensor:
    shape = op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    if 0 in shape:
        return x.new_empty(shape)
    if x.is_cuda and x.dtype in PRECISIONS and cuda_driver.usable(x.device):
        return kernel_form(x, offset_mask, weight, bias, offset_groups, negative_slope)
    usable = not x.is_cuda and training_op.usable_for(x, offset_mask, weight, bias, offset_groups=offset_groups)
    form = training_op.modulated_deform_conv2d if usable else _differentiable
    y = _in_type_of_x(form, x, offset_mask, weight, bias, offset_groups, negative_slope)
    return y.contiguous(memory_format=_order(x, weight))


@_node.register_fake
def _(
    x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, offset_groups: int, negative_slope: float
) -> Tensor:
    shape = op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_order(x, weight))


PRECISIONS: dict[torch.dtype, launch.Precision] = {torch.float32: "fp32", torch.float16: "fp16"}
"""The types that our kernels compute in."""

_chosen: dict[Any, launch.Kernel] = {}


def kernel_form(
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset_groups: int = op.OFFSET_GROUPS,
    negative_slope: float = op.NEGATIVE_SLOPE,
) -> Tensor:
    """The op by our kernels, on CUDA tensors of fp32 or fp16; not differentiable.

    y is channels_last where the channels-last kernel computes it: fp16, channels and outputs multiples of 8. Tensors in
    another order are brought into it first. The first call times the kernels that can do the layer and keeps the
    fastest for images of about that size, up to the next power of two of pixels; while a CUDA graph is captured it
    takes the likeliest. Raises as `plugins.cuda_driver.launch` does.
    """
    shape = op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    layout = _layout(x, weight)
    order = torch.channels_last if layout == "hwc8" else torch.contiguous_format
    planes = [_aligned(t.to(x.dtype).contiguous(memory_format=order)) for t in (x, offset_mask, weight)]
    tensors = (planes[0], planes[1], planes[2], _aligned(bias.to(x.dtype).contiguous()))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)
    layer = launch.Layer(x.shape[1], weight.shape[0], offset_groups, negative_slope)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    key = (layer, layout, x.dtype, x.device, pixels.bit_length())
    if key not in _chosen:
        kernels = launch.kernels(layer, PRECISIONS[x.dtype], layout)
        if len(kernels) > 1 and torch.cuda.is_current_stream_capturing():
            cuda_driver.launch(kernels[0], *tensors, y, offset_groups)
            return y
        _chosen[key] = cuda_driver.fastest(kernels, *tensors, y, offset_groups) if len(kernels) > 1 else kernels[0]
    cuda_driver.launch(_chosen[key], *tensors, y, offset_groups)
    return y


def _order(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Of the node's y in memory, whoever computes it: the compiler wants to know it before."""
    channels_last = x.device.type == "cuda" and _layout(x, weight) == "hwc8"
    return torch.channels_last if channels_last else torch.contiguous_format


def _layout(x: Tensor, weight: Tensor) -> launch.Layout:
    fits = x.dtype == torch.float16 and x.shape[1] % 8 == 0 and weight.shape[0] % 8 == 0
    return "hwc8" if fits else "linear"


def _aligned(t: Tensor) -> Tensor:
    return t if t.data_ptr() % cuda_driver.ALIGNMENT == 0 else t.clone(memory_format=torch.preserve_format)


def _in_type_of_x(
    form: Callable[..., Tensor],
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset_groups: int,
    negative_slope: float,
) -> Tensor:
    """`form` in the type of x, which is what the node's fake kernel promises, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        others = offset_mask.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype)
        return form(x, *others, offset_groups, negative_slope)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, offset_groups, negative_slope = inputs
    ctx.save_for_backward(*tensors)
    ctx.attributes = (offset_groups, negative_slope)


@once_differentiable  # or a second derivative would be silently 0
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Not an op of its own: below the dispatcher, where an op's kernel runs, autograd records nothing.
    if not grad.numel():  # of no images, pixels or outputs
        return *(torch.zeros_like(t) for t in ctx.saved_tensors), None, None
    leaves = tuple(t.detach().requires_grad_() for t in ctx.saved_tensors)
    with torch.enable_grad():
        y = _in_type_of_x(_differentiable, *leaves, *ctx.attributes)
    return *torch.autograd.grad(y, leaves, grad), None, None


_node.register_autograd(_backward, setup_context=_setup_context)
