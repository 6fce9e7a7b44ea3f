"""The op as training runs it: sampling by a kernel of ours, then a matrix product over the taps. Differentiable once.

On CPU tensors `plugins.cpu_sampling` samples, on CUDA tensors `plugins.cuda_sampling`; where neither can, `usable_for`
says so.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins import cpu_sampling, cuda_sampling, op
from plugins.cuda_driver import ALIGNMENT


def modulated_deform_conv2d(
    x: Tensor,
    offset_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset_groups: int = op.OFFSET_GROUPS,
    negative_slope: float = op.NEGATIVE_SLOPE,
) -> Tensor:
    """`plugins.op` on tensors of a type that the kernels take, or of autocast's; y is channels_last.

    Coordinates and interpolation in fp32, samples rounded to the tensors' type for the sum over taps, as in
    `plugins.reference`. Raises ValueError for shapes that do not fit.
    """
    n, o, h, w = op.output_shape(x.shape, offset_mask.shape, weight.shape, bias.shape, offset_groups)
    columns = sample(x, offset_mask.to(x.dtype), offset_groups)
    # the kernel's order of a pixel's samples: offset group, tap, channel of the group
    rows = weight.reshape(o, offset_groups, x.shape[1] // offset_groups, op.TAPS).transpose(2, 3).flatten(1)
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
        # atomic additions make the gradients: a process that forbids that gets torchvision's word on it, as it expects
        return not torch.are_deterministic_algorithms_enabled() and cuda_sampling.usable_for(x, offset_groups)
    return x.device.type == "cpu" and cpu_sampling.usable_for(x)


# Ops of PyTorch's, so that what traces or only sizes up a network sees shapes instead of memory that is not there.
@torch.library.custom_op("sadnet::sample", mutates_args=())
def _sample(x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    x, offset_mask = (_last(t) for t in (x, offset_mask))
    n, c, h, w = x.shape
    columns = x.new_empty(n * h * w, c * op.TAPS)
    _run("sadnet_sample", groups, x, offset_mask, columns)
    return columns


@_sample.register_fake
def _(x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n * h * w, c * op.TAPS)


@torch.library.custom_op("sadnet::sample_backward", mutates_args=())
def _sample_backward(x: Tensor, offset_mask: Tensor, grad: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    x, offset_mask, grad = _last(x), _last(offset_mask), _aligned(grad.contiguous())
    n, c, h, w = x.shape
    grad_offset_mask = torch.empty_like(offset_mask)
    if x.is_cuda:
        grad_x = torch.zeros_like(x, dtype=torch.float32)
        _run("sadnet_sample_backward", groups, x, offset_mask, grad, grad_x, grad_offset_mask)
        return grad_x.to(x.dtype), grad_offset_mask
    grad_x = torch.zeros(n, groups, h, w, c // groups, dtype=torch.float32)
    _run("sadnet_sample_backward", groups, x, offset_mask, grad, grad_x, grad_offset_mask)
    planes = grad_x.to(x.dtype).permute(0, 2, 3, 1, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return planes, grad_offset_mask


@_sample_backward.register_fake
def _(x: Tensor, offset_mask: Tensor, grad: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    order = torch.channels_last
    return torch.empty_like(x, memory_format=order), torch.empty_like(offset_mask, memory_format=order)


def _last(t: Tensor) -> Tensor:
    return _aligned(t.contiguous(memory_format=torch.channels_last))


def _aligned(t: Tensor) -> Tensor:
    """t at an address that vectors can be read from, in the same order."""
    return t if t.data_ptr() % ALIGNMENT == 0 else t.clone()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset_mask, ctx.groups = inputs
    ctx.save_for_backward(x, offset_mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_sample_backward(*ctx.saved_tensors, grad, ctx.groups), None


_sample.register_autograd(_backward, setup_context=_setup_context)


def _run(name: str, groups: int, x: Tensor, *tensors: Tensor) -> None:
    if x.numel():
        (cuda_sampling if x.is_cuda else cpu_sampling).run(name, groups, x, *tensors)
