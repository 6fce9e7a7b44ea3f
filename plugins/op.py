"""The op `sadnet::ModulatedDeformConv2d`, version 1: its one definition, which every framework's form derives from.

A 3x3 convolution, stride 1, whose nine taps sample the input at learned places with learned weights (Zhu et al.,
Deformable ConvNets v2, CVPR 2019, eq. 1), with the mask's sigmoid before it and a LeakyReLU after it:

    y(p) = leaky_relu(bias + sum over taps k of weight_k * sigmoid(logit_k(p)) * x(p + tap_k + offset_k(p)))

where x(.) is bilinear interpolation in pixels with zeros outside the image.

    x            (N, C, H, W)      features
    offset_mask  (N, 27*G, H, W)   raw output of the offset/mask convolution: for offset group g and tap k the y
                                   displacement at channel 18*g + 2*k, the x displacement at 18*g + 2*k + 1 (pixels),
                                   the mask's logit at 18*G + 9*g + k
    weight       (O, C, 3, 3)      taps in row order, as in torch.nn.Conv2d
    bias         (O)
    y            (N, O, H, W)

Offset group g moves the channels [g*C/G, (g+1)*C/G). Sampling coordinates and accumulation are at least fp32 whatever
the tensors' type: in half precision a coordinate above 1024 is off by up to half a pixel.

x is finite. Offsets may be anything: a place that is far away, infinite or no number is outside the image. (There a
fast kernel may take a border pixel times 0, which is 0 only of a finite one.)
"""

from collections.abc import Sequence
from typing import Any

DOMAIN = "sadnet"
NAME = "ModulatedDeformConv2d"
VERSION = 1
TORCH_NAME = "sadnet::modulated_deform_conv2d"

KERNEL = 3
TAPS = KERNEL * KERNEL

OFFSET_GROUPS = 8
"""Default of the attribute `offset_groups`."""
NEGATIVE_SLOPE = 0.2
"""Default of the attribute `negative_slope`; 1.0 means no activation."""

PLUGIN_ATTRIBUTES: dict[str, int | float | str] = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION), "aot": 1}
"""What TensorRT's ONNX parser wants on a node that becomes a plugin, beside the op's own attributes."""


def offset_channels(offset_groups: int) -> int:
    """Channels of `offset_mask` that hold displacements; the mask's logits follow."""
    return 2 * TAPS * offset_groups


def mask_channels(offset_groups: int) -> int:
    """Channels of `offset_mask` that hold the mask's logits."""
    return TAPS * offset_groups


def offset_mask_channels(offset_groups: int) -> int:
    """Channels of `offset_mask` in all."""
    return offset_channels(offset_groups) + mask_channels(offset_groups)


def output_shape(
    x: Sequence[Any], offset_mask: Sequence[Any], weight: Sequence[Any], bias: Sequence[Any], offset_groups: int
) -> tuple[Any, Any, Any, Any]:
    """Shape of y for the inputs' shapes (ints, or symbolic sizes of a tracer).

    Raises ValueError, saying what was expected and what was found, where the shapes do not fit each other.
    """
    for name, shape, rank in (("x", x, 4), ("offset_mask", offset_mask, 4), ("weight", weight, 4), ("bias", bias, 1)):
        if len(shape) != rank:
            raise ValueError(f"{NAME}: expected {name} with {rank} dimensions, found shape {tuple(shape)}")
    n, c, h, w = x
    o = weight[0]
    if offset_groups < 1 or c < 1 or c % offset_groups:
        raise ValueError(f"{NAME}: expected offset_groups that divide the {c} channels of x, found {offset_groups}")
    expected = (
        ("offset_mask", offset_mask, (n, offset_mask_channels(offset_groups), h, w)),
        ("weight", weight, (o, c, KERNEL, KERNEL)),
        ("bias", bias, (o,)),
    )
    for name, found, shape in expected:
        if any(a != b for a, b in zip(found, shape, strict=True)):
            raise ValueError(f"{NAME}: expected {name} of shape {shape} for x of {tuple(x)}, found {tuple(found)}")
    return n, o, h, w
