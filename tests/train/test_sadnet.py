"""The network: the authors' names and shapes, the paper's counts, and what each flag does."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from common.errors import ModelError
from train.sadnet import ContextBlock, SADNet, SADNetConfig
from train.weights import gray_of, load_state

Shapes = dict[str, tuple[int, ...]]
ABLATIONS: list[dict[str, Any]] = [
    {},
    {"context": False},
    {"offset_transfer": False},
    {"rsab": False, "offset_transfer": False},
    {"rsab": False, "offset_transfer": False, "context": False},
]


def convolution(name: str, out: int, into: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}


def released_shapes() -> Shapes:
    """Names and shapes of the authors' released colour checkpoint, written down from their code."""
    shapes = convolution("res1.conv0", 32, 3, 1)
    for scale, width in ((1, 32), (2, 64), (3, 128), (4, 256)):
        for conv in ("conv1", "conv2"):
            shapes |= convolution(f"res{scale}.{conv}", width, width, 3)
        if scale < 4:
            shapes |= convolution(f"down{scale}", 2 * width, width, 2)
            shapes |= {f"up{scale}.weight": (2 * width, width, 2, 2), f"up{scale}.bias": (width,)}  # transposed
            shapes |= convolution(f"dconv{scale}_1", width, 2 * width, 1)
            shapes |= convolution(f"offset{scale}.offset_conv2", 32, 64, 3)
        shapes |= convolution(f"offset{scale}.offset_conv1", 32, width, 3)
        shapes |= convolution(f"offset{scale}.offset_conv3", 32, 32, 3)
        shapes |= convolution(f"dres{scale}.dcnpack", width, width, 3)
        shapes |= convolution(f"dres{scale}.dcnpack.conv_offset_mask", 216, 32, 3)
        shapes |= convolution(f"dres{scale}.conv1", width, width, 3)
    shapes |= convolution("context.conv0", 64, 256, 1) | convolution("context.fusion", 256, 256, 1)
    for branch in (1, 2, 3, 4):
        shapes |= convolution(f"context.conv{branch}", 64, 64, 3)
    return shapes | convolution("out", 3, 32, 3)


def parameters(**config: Any) -> int:
    return sum(p.numel() for p in SADNet(SADNetConfig(**config)).parameters())


def randomised(**config: Any) -> SADNet:
    """A network whose offsets and last convolution are not the zeros that they start from."""
    torch.manual_seed(0)
    network = SADNet(SADNetConfig(**config)).eval()
    for name, parameter in network.named_parameters():
        if "conv_offset_mask" in name or name.startswith("out."):
            torch.nn.init.normal_(parameter, 0, 0.05)
    return network


def spelled_out(p: dict[str, Tensor], image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """The whole network as the paper and the released code have it, without a line of ours; p: a state dict."""

    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **how)

    def bent(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    x, skips = conv("res1.conv0", image), []
    for scale in (1, 2, 3, 4):
        x = x + conv(f"res{scale}.conv2", bent(conv(f"res{scale}.conv1", x, padding=1)), padding=1)
        if scale < 4:
            skips.append(x)
            x = bent(conv(f"down{scale}", x, stride=2))
    reduced = conv("context.conv0", x)
    wide = [bent(conv(f"context.conv{i}", reduced, padding=d, dilation=d)) for i, d in enumerate(dilations, 1)]
    x = x + conv("context.fusion", torch.cat(wide, 1))
    coarser: Tensor | None = None
    for scale in (4, 3, 2, 1):
        if scale < 4:
            up = F.conv_transpose2d(x, p[f"up{scale}.weight"], p[f"up{scale}.bias"], stride=2)
            x = conv(f"dconv{scale}_1", torch.cat((up, skips[scale - 1]), 1))
        features = bent(conv(f"offset{scale}.offset_conv1", x, padding=1))
        if coarser is not None:
            finer = 2 * F.interpolate(coarser, size=x.shape[2:], mode="bilinear", align_corners=False)
            features = bent(conv(f"offset{scale}.offset_conv2", torch.cat((features, finer), 1), padding=1))
        coarser = bent(conv(f"offset{scale}.offset_conv3", features, padding=1))
        pack = f"dres{scale}.dcnpack"
        y_and_x, y_and_x_too, mask = conv(f"{pack}.conv_offset_mask", coarser, padding=1).chunk(3, 1)
        offset = torch.cat((y_and_x, y_and_x_too), 1)
        weight, bias = p[f"{pack}.weight"], p[f"{pack}.bias"]
        moved: Tensor = deform_conv2d(x, offset, weight, bias, padding=1, mask=mask.sigmoid())
        x = x + conv(f"dres{scale}.conv1", bent(moved), padding=1)
    return image + conv("out", x, padding=p["out.weight"].shape[-1] // 2)


@pytest.mark.parametrize("size", [(24, 16), (8, 8)])
def test_the_forward_pass_is_the_papers_and_the_released_codes(size: tuple[int, int]) -> None:
    for variant, dilations in (("official", (1, 2, 3, 4)), ("paper", (1, 2, 4, 8))):
        network = randomised(variant=variant).double()
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            y = network(x)
            assert (y - spelled_out(network.state_dict(), x, dilations)).abs().max() < 1e-10
            assert (y - x).abs().max() > 0.01


def test_the_variants_have_the_known_numbers_of_parameters() -> None:
    assert parameters(variant="paper") == 4_233_955
    assert parameters(variant="official") == 4_234_723


def test_the_official_variant_has_the_authors_names_and_shapes() -> None:
    found = {name: tuple(value.shape) for name, value in SADNet(SADNetConfig("official")).state_dict().items()}
    assert found == released_shapes()


def test_the_paper_variant_differs_in_its_last_convolution_and_its_dilations_alone() -> None:
    network = SADNet(SADNetConfig("paper"))
    expected = released_shapes() | convolution("out", 3, 32, 1)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    for config, dilations in ((SADNetConfig("paper"), [1, 2, 4, 8]), (SADNetConfig("official"), [1, 2, 3, 4])):
        block = SADNet(config).context
        assert isinstance(block, ContextBlock)
        assert [conv.dilation[0] for conv in (block.conv1, block.conv2, block.conv3, block.conv4)] == dilations


def test_a_state_dict_of_the_authors_loads_and_is_what_the_network_computes_with() -> None:
    network = SADNet(SADNetConfig("official"))
    state = {name: torch.full(shape, 0.001) for name, shape in released_shapes().items()}
    load_state(network, state, "official.pth")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not torch.equal(network(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("variant", ["paper", "official"])
@torch.inference_mode()
def test_the_gray_network_of_a_colour_one_computes_what_that_does_of_gray_pictures(variant: Any) -> None:
    colour = randomised(variant=variant)
    gray = SADNet(SADNetConfig(variant, channels=1)).eval()
    load_state(gray, gray_of(colour.state_dict()), "colour")
    x = torch.rand(2, 1, 16, 24)
    expected = colour(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    assert torch.allclose(gray(x), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(gray(x), x, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dres2.dcnpack.bias": None}, "dres2.dcnpack.bias with shape (64,), found none"),
        ({"extra.weight": (3,)}, "extra.weight with none, found shape (3,)"),
        ({"up1.weight": (32, 64, 2, 2)}, "up1.weight with shape (64, 32, 2, 2), found shape (32, 64, 2, 2)"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(
    change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    network = SADNet(SADNetConfig("official"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shapes = {name: shape for name, shape in (released_shapes() | change).items() if shape is not None}
    with pytest.raises(ModelError) as caught:
        load_state(network, {name: torch.zeros(shape) for name, shape in shapes.items()}, "x.pth")
    assert message in str(caught.value)
    assert "x.pth" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("variant", "channels"), list(itertools.product(["paper", "official"], [1, 3])))
def test_a_new_network_returns_its_input(variant: Any, channels: Any, ablation: dict[str, Any]) -> None:
    network = SADNet(SADNetConfig(variant, channels, **ablation))
    x = torch.rand(2, channels, 16, 8)
    assert torch.equal(network(x), x)


def test_ablations_take_out_their_parameters_and_no_others() -> None:
    released = released_shapes()

    def names(**config: Any) -> set[str]:
        return set(SADNet(SADNetConfig("official", **config)).state_dict())

    assert names(context=False) == {n for n in released if not n.startswith("context.")}
    assert names(offset_transfer=False) == {n for n in released if "offset_conv2" not in n}
    plain = {f"dres{scale}.conv2.{kind}" for scale in (1, 2, 3, 4) for kind in ("weight", "bias")}
    kept = {n for n in released if not n.startswith("offset") and "dcnpack" not in n}
    assert names(rsab=False, offset_transfer=False) == kept | plain


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_parameter_gets_a_gradient(ablation: dict[str, Any]) -> None:
    network = randomised(**ablation)
    network(torch.rand(1, 3, 16, 16)).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize(
    "values",
    [{"variant": "papers"}, {"channels": 2}, {"rsab": False}, {"rsab": False, "offset_transfer": True}],
)
def test_configurations_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SADNetConfig(**values)


def test_a_configuration_comes_back_from_its_plain_values() -> None:
    config = SADNetConfig("official", 1, offset_transfer=False, context=False)
    assert SADNetConfig(**config.as_dict()) == config


@pytest.mark.parametrize(("size", "side"), [((12, 16), "height"), ((16, 20), "width"), ((1, 8), "height")])
def test_sizes_that_are_no_multiple_of_8_are_named(size: tuple[int, int], side: str) -> None:
    with pytest.raises(RuntimeError, match=rf"expected a {side} that is a multiple of 8, found \(1, 3, "):
        SADNet()(torch.rand(1, 3, *size))


def test_shifts_by_8_pixels_commute_with_the_network_and_others_do_not() -> None:
    network, side, border = randomised(context=False), 128, 40
    scene = torch.rand(1, 3, side + 8, side + 8)

    def seen_after(shift: int) -> Tensor:
        with torch.no_grad():
            y: Tensor = network(scene[..., shift : shift + side, shift : shift + side])
        return y[..., 8 + border - shift : side - border - shift, 8 + border - shift : side - border - shift]

    assert (seen_after(8) - seen_after(0)).abs().max() < 2e-6
    assert (seen_after(4) - seen_after(0)).abs().max() > 5e-5


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network, x = randomised(), torch.rand(3, 3, 16, 24)
    with torch.no_grad():
        together = network(x)
        for i in range(3):
            assert (network(x[i : i + 1]) - together[i : i + 1]).abs().max() < 1e-5
