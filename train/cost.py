"""What a network costs: parameters and multiply-adds, counted on the network itself as an image goes through it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plugins import op
from train.sadnet import ModulatedDeformConv, SADNet, SADNetConfig

OPERATIONS_A_SAMPLE = 5
"""Multiply-adds of a sample of the deformable convolution: four corners, and the mask."""


@dataclass(frozen=True)
class Cost:
    """Of one image. Multiply-adds are those of the weights, one for each use of a weight; biases, activations, skips
    and upsampling are left out, as is usual."""

    parameters: int
    macs: int
    """All of them, the deformable convolutions' included."""
    deformable_macs: int
    """The part of `macs` that the weights of the deformable convolutions take."""
    sampling_macs: int
    """What their bilinear sampling and their masks take beside `macs`."""


def cost(config: SADNetConfig, width: int, height: int) -> Cost:
    """The cost of a network for an image whose sides are multiples of 8; no memory is touched, no weight made up."""
    with torch.device("meta"):
        network = SADNet(config).eval()
        image = torch.empty(1, config.channels, height, width)
    macs = deformable = sampling = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, deformable, sampling
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d | ModulatedDeformConv)
        # a transposed convolution uses each weight once for each pixel of its input
        pixels = (inputs[0] if isinstance(module, nn.ConvTranspose2d) else output)[0, 0].numel()
        macs += module.weight.numel() * pixels
        if isinstance(module, ModulatedDeformConv):
            deformable += module.weight.numel() * pixels
            sampling += OPERATIONS_A_SAMPLE * inputs[0].shape[1] * op.KERNEL**2 * pixels

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | ModulatedDeformConv):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(image)
    return Cost(sum(p.numel() for p in network.parameters()), macs, deformable, sampling)
