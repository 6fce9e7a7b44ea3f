"""SADNet: Chang, Li, Feng, Xu, Spatial-Adaptive Network for Single Image Denoising, ECCV 2020 (arXiv 2001.10291).

Read in the paper's order: the network (Fig. 2), the residual spatial-adaptive block with its offset transfer (Fig. 4),
the context block (Fig. 5). Parameters carry the names and shapes of the authors' released code, so that its
checkpoints load into the variant `official`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.padding import MULTIPLE
from plugins import op
from plugins.torch_op import modulated_deform_conv2d

SLOPE = op.NEGATIVE_SLOPE
WIDTHS = (32, 64, 128, 256)
OFFSET_WIDTH = 32


@dataclass(frozen=True)
class SADNetConfig:
    """What distinguishes one SADNet from another; stored in the model card and the ONNX file.

    variant        `paper`: dilations 1, 2, 4, 8 and a 1x1 last convolution, as the text says (4,233,955 parameters
                   in colour); `official`: dilations 1, 2, 3, 4 and a 3x3 one, as the released code does (4,234,723)
    channels       3 for RGB, 1 for gray
    rsab, offset_transfer, context
                   the ablations of Table 1: residual spatial-adaptive blocks (plain residual blocks without), offset
                   transfer between scales, context block
    """

    variant: Literal["paper", "official"] = "paper"
    channels: Literal[1, 3] = 3
    rsab: bool = True
    offset_transfer: bool = True
    context: bool = True

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "official"):
            raise ValueError(f"expected variant 'paper' or 'official', found {self.variant!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"expected 1 or 3 channels, found {self.channels!r}")
        if self.offset_transfer and not self.rsab:
            raise ValueError("expected offset_transfer = false where rsab = false: there are no offsets to transfer")

    @property
    def dilations(self) -> tuple[int, int, int, int]:
        """Of the context block's four convolutions."""
        return (1, 2, 4, 8) if self.variant == "paper" else (1, 2, 3, 4)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and TOML; `SADNetConfig(**d)` reads them back."""
        return asdict(self)


class SADNet(nn.Module):
    """Fig. 2: an encoder of four scales, and a decoder that samples where the image says.

    Takes and gives (N, channels, H, W), RGB or gray in [0, 1], H and W multiples of 8. A new network's output equals
    its input: the last convolution and the offset convolutions start at zero.
    """

    def __init__(self, config: SADNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SADNetConfig()
        w1, w2, w3, w4 = WIDTHS
        self.res1 = ResBlock(config.channels, w1)
        self.down1 = nn.Conv2d(w1, w2, 2, stride=2)
        self.res2 = ResBlock(w2, w2)
        self.down2 = nn.Conv2d(w2, w3, 2, stride=2)
        self.res3 = ResBlock(w3, w3)
        self.down3 = nn.Conv2d(w3, w4, 2, stride=2)
        self.res4 = ResBlock(w4, w4)
        self.context = ContextBlock(w4, config.dilations) if config.context else nn.Identity()

        for scale, width in ((4, w4), (3, w3), (2, w2), (1, w1)):
            if scale < 4:
                self.add_module(f"up{scale}", nn.ConvTranspose2d(2 * width, width, 2, stride=2))
                self.add_module(f"dconv{scale}_1", nn.Conv2d(2 * width, width, 1))
            if config.rsab:
                self.add_module(f"offset{scale}", OffsetBlock(width, transfer=config.offset_transfer and scale < 4))
            self.add_module(f"dres{scale}", RSABlock(width) if config.rsab else ResBlock(width, width))
        last = {"paper": 1, "official": 3}[config.variant]
        self.out = nn.Conv2d(w1, config.channels, last, padding=last // 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(self, x: Tensor) -> Tensor:
        """Denoise x (N, channels, H, W)."""
        return x + self.residual(x)

    def residual(self, x: Tensor) -> Tensor:
        """What is added to x; apart, so that a half-precision export adds it in fp32."""
        height, width = x.shape[-2:]
        if not torch.compiler.is_dynamo_compiling():  # a message that tells the shape would break its graph
            torch._check(
                height % MULTIPLE == 0, lambda: f"expected a height that is a multiple of 8, found {tuple(x.shape)}"
            )
            torch._check(
                width % MULTIPLE == 0, lambda: f"expected a width that is a multiple of 8, found {tuple(x.shape)}"
            )
        e1 = self.res1(x)
        e2 = self.res2(F.leaky_relu(self.down1(e1), SLOPE))
        e3 = self.res3(F.leaky_relu(self.down2(e2), SLOPE))
        e4 = self.context(self.res4(F.leaky_relu(self.down3(e3), SLOPE)))
        d, offset_features = self._adapt(4, e4, None)
        for scale, skip in ((3, e3), (2, e2), (1, e1)):
            up = self.get_submodule(f"up{scale}")(d)
            d = self.get_submodule(f"dconv{scale}_1")(torch.cat((up, skip), dim=1))
            d, offset_features = self._adapt(scale, d, offset_features)
        residual: Tensor = self.out(d)
        return residual

    def _adapt(self, scale: int, x: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor | None]:
        block = self.get_submodule(f"dres{scale}")
        if not self.config.rsab:
            return block(x), None
        features = self.get_submodule(f"offset{scale}")(x, coarser if self.config.offset_transfer else None)
        return block(x, features), features


class ResBlock(nn.Module):
    """Encoder block: two 3x3 convolutions and a skip, behind a 1x1 convolution where the width changes."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H, W)."""
        x = self.conv0(x)
        y: Tensor = self.conv2(F.leaky_relu(self.conv1(x), SLOPE))
        return x + y


class RSABlock(nn.Module):
    """Fig. 4 and the text, which eq. 6 prints the other way round: deformable convolution, activation, 3x3, skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dcnpack = ModulatedDeformConv(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, offset_features: Tensor) -> Tensor:
        """x (N, width, H, W), offset_features (N, 32, H, W), to the shape of x."""
        y: Tensor = self.conv1(self.dcnpack(x, offset_features))
        return x + y


class ModulatedDeformConv(nn.Module):
    """The op of `plugins.op` and the 3x3 convolution that turns offset features into its offsets and mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.operator = modulated_deform_conv2d  # a benchmark puts a peer's in its place
        self.weight = nn.Parameter(torch.empty(width, width, op.KERNEL, op.KERNEL))
        self.bias = nn.Parameter(torch.zeros(width))
        self.conv_offset_mask = nn.Conv2d(OFFSET_WIDTH, op.offset_mask_channels(op.OFFSET_GROUPS), 3, padding=1)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Conv2d does
        nn.init.zeros_(self.conv_offset_mask.weight)  # sampling starts on the regular grid
        nn.init.zeros_(_bias(self.conv_offset_mask))

    def forward(self, x: Tensor, offset_features: Tensor) -> Tensor:
        """x (N, width, H, W), offset_features (N, 32, H, W), to the shape of x."""
        return self.operator(x, self.conv_offset_mask(offset_features), self.weight, self.bias)


class OffsetBlock(nn.Module):
    """Eq. 7, Fig. 4: features that the offsets are made of; the coarser scale's are doubled with the image's size.

    As in the released code it is the features that are transferred, not the offsets.
    """

    def __init__(self, width: int, *, transfer: bool) -> None:
        super().__init__()
        self.offset_conv1 = nn.Conv2d(width, OFFSET_WIDTH, 3, padding=1)
        if transfer:
            self.offset_conv2 = nn.Conv2d(2 * OFFSET_WIDTH, OFFSET_WIDTH, 3, padding=1)
        self.offset_conv3 = nn.Conv2d(OFFSET_WIDTH, OFFSET_WIDTH, 3, padding=1)

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        """x (N, width, H, W) and coarser (N, 32, H/2, W/2) or None, to (N, 32, H, W)."""
        y = F.leaky_relu(self.offset_conv1(x), SLOPE)
        if coarser is not None:
            finer = F.interpolate(2 * coarser, scale_factor=2, mode="bilinear", align_corners=False)
            y = F.leaky_relu(self.offset_conv2(torch.cat((y, finer), dim=1)), SLOPE)
        return F.leaky_relu(self.offset_conv3(y), SLOPE)


class ContextBlock(nn.Module):
    """Fig. 5: four dilated convolutions side by side at a quarter of the width, fused, and a skip."""

    def __init__(self, width: int, dilations: tuple[int, int, int, int]) -> None:
        super().__init__()
        quarter = width // 4
        self.conv0 = nn.Conv2d(width, quarter, 1)
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(quarter, quarter, 3, padding=d, dilation=d) for d in dilations
        )
        self.fusion = nn.Conv2d(4 * quarter, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same."""
        y = self.conv0(x)
        branches = (self.conv1, self.conv2, self.conv3, self.conv4)
        fused: Tensor = self.fusion(torch.cat([F.leaky_relu(branch(y), SLOPE) for branch in branches], dim=1))
        return x + fused


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
