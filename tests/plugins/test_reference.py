"""The specification against its own text, torchvision, a plain convolution, and finite differences."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from plugins import op, reference, torch_op

Operands = tuple[Tensor, Tensor, Tensor, Tensor]
Make = Callable[..., Operands]
Array = NDArray[np.float64]
modulated_deform_conv2d: Callable[..., Tensor] = reference.modulated_deform_conv2d
torchvision_form: Callable[..., Tensor] = torch_op.torchvision_form


def bilinear(image: Array, y: float, x: float) -> float:
    """image (H, W) at a real place, zero outside."""
    top, left, total = math.floor(y), math.floor(x), 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
    return total


def as_documented(x: Array, offset_mask: Array, weight: Array, bias: Array, groups: int, slope: float) -> Array:
    """The docstring of plugins/op.py, one number at a time."""
    n_, c_, h_, w_ = x.shape
    y = np.empty((n_, weight.shape[0], h_, w_))
    for n, p, q in np.ndindex(n_, h_, w_):
        samples = np.empty((c_, 9))
        for c, k in np.ndindex(c_, 9):
            g = c // (c_ // groups)
            dy, dx = offset_mask[n, 18 * g + 2 * k, p, q], offset_mask[n, 18 * g + 2 * k + 1, p, q]
            logit = offset_mask[n, 18 * groups + 9 * g + k, p, q]
            value = bilinear(x[n, c], p + k // 3 - 1 + dy, q + k % 3 - 1 + dx)
            samples[c, k] = value / (1 + math.exp(-logit))
        total = bias + (weight.reshape(len(bias), c_, 9) * samples).sum((1, 2))
        y[n, :, p, q] = np.where(total > 0, total, slope * total)
    return y


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 2),
    share=st.integers(1, 2),
    groups=st.integers(1, 3),
    o=st.integers(1, 3),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
    slope=st.sampled_from([0.2, 1.0, 0.0]),
    seed=st.integers(0, 2**32),
)
def test_it_computes_what_the_docstring_says(
    operands: Make, n: int, share: int, groups: int, o: int, h: int, w: int, slope: float, seed: int
) -> None:
    tensors = operands(n, share * groups, groups, o, h, w, seed=seed)
    y = modulated_deform_conv2d(*tensors, groups, slope)
    x, offset_mask, weight, bias = (t.numpy() for t in tensors)
    expected = as_documented(x, offset_mask, weight, bias, groups, slope)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_gradients_agree_with_finite_differences(operands: Make, slope: float) -> None:
    tensors = [t.requires_grad_() for t in operands(2, 4, 2, 3, 3, 4)]
    assert torch.autograd.gradcheck(lambda *t: modulated_deform_conv2d(*t, 2, slope), tensors)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("reach", [1, 5, 1000])
def test_it_agrees_with_torchvision(operands: Make, dtype: torch.dtype, bound: float, reach: int) -> None:
    tensors = operands(2, 16, 8, 5, 13, 17, reach=reach, dtype=dtype)
    for slope in (0.2, 1.0):
        ours, theirs = (f(*tensors, 8, slope) for f in (modulated_deform_conv2d, torchvision_form))
        assert ours.dtype == dtype
        difference = (ours - theirs).abs()
        print(f"max {difference.max():.2e} mean {difference.mean():.2e}")
        assert difference.max() < bound


def test_samples_far_outside_the_image_are_zero(operands: Make) -> None:
    x, offset_mask, weight, bias = operands(1, 8, 8, 4, 6, 6)
    offset_mask[:, : op.offset_channels(8)] = torch.tensor([1e4, -1e4, 1e6]).repeat(48).view(1, -1, 1, 1)
    for f in (modulated_deform_conv2d, torchvision_form):
        y = f(x, offset_mask, weight, bias, 8, 1.0)
        assert torch.equal(y, bias.view(1, 4, 1, 1).expand_as(y))


@pytest.mark.parametrize("size", [(9, 7), (1, 5), (5, 1), (1, 1)])
def test_without_offsets_and_with_open_masks_it_is_a_convolution(operands: Make, size: tuple[int, int]) -> None:
    x, offset_mask, weight, bias = operands(2, 8, 8, 6, *size)
    offset_mask[:, : op.offset_channels(8)] = 0
    offset_mask[:, op.offset_channels(8) :] = 60  # a sigmoid of 1 - 1e-26
    y = modulated_deform_conv2d(x, offset_mask, weight, bias)
    assert torch.allclose(y, F.leaky_relu(F.conv2d(x, weight, bias, padding=1), 0.2), rtol=0, atol=1e-12)


def test_logits_far_below_zero_leave_the_bias(operands: Make) -> None:
    x, offset_mask, weight, bias = operands(1, 8, 8, 6, 4, 4)
    offset_mask[:, op.offset_channels(8) :] = -1e3
    y = modulated_deform_conv2d(x, offset_mask, weight, bias, negative_slope=1.0)
    assert torch.equal(y, bias.view(1, 6, 1, 1).expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [modulated_deform_conv2d, torchvision_form])
def test_coordinates_of_half_precision_tensors_are_not_in_half(
    operands: Make, form: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    wide = 2048
    tensors = operands(1, 1, 1, 1, 3, wide, dtype=dtype)
    exact = tuple(t.double() for t in tensors)
    truth = modulated_deform_conv2d(*exact, 1)

    x, offset_mask, weight, bias = exact
    place = (torch.arange(wide).view(1, 1, wide) + torch.arange(9).view(9, 1, 1) % 3 - 1).double()
    rounded = (place + offset_mask[:, 1:18:2]).to(dtype).double() - place
    careless = offset_mask.clone()
    careless[:, 1:18:2] = rounded
    error = (form(*tensors, 1).double() - truth).abs().mean()
    error_in_half = (modulated_deform_conv2d(x, careless, weight, bias, 1) - truth).abs().mean()
    print(f"mean error {error:.2e}, with coordinates in half {error_in_half:.2e}")
    assert error < 0.05 * error_in_half


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"offset_mask": (2, 215, 5, 6)}, "offset_mask"),
        ({"offset_mask": (2, 216, 6, 5)}, "offset_mask"),
        ({"offset_mask": (1, 216, 5, 6)}, "offset_mask"),
        ({"weight": (4, 16, 5, 5)}, "weight"),
        ({"weight": (4, 2, 3, 3)}, "weight"),
        ({"bias": (5,)}, "bias"),
        ({"bias": (4, 1)}, "bias"),
        ({"x": (16, 5, 6)}, "x"),
        ({"x": (2, 12, 5, 6)}, "offset_groups"),
    ],
)
def test_shapes_that_do_not_fit_are_named(fault: dict[str, tuple[int, ...]], named: str) -> None:
    shapes = {"x": (2, 16, 5, 6), "offset_mask": (2, 216, 5, 6), "weight": (4, 16, 3, 3), "bias": (4,)} | fault
    with pytest.raises(ValueError, match=rf"expected {named} .*found"):
        op.output_shape(shapes["x"], shapes["offset_mask"], shapes["weight"], shapes["bias"], 8)
    for form in (modulated_deform_conv2d, torchvision_form):
        with pytest.raises(ValueError, match=rf"expected {named} .*found"):
            form(*(torch.zeros(shape) for shape in shapes.values()))


@pytest.mark.parametrize(("channels", "offset_groups"), [(8, 0), (0, 8)])
def test_no_offset_groups_and_no_channels_are_refused(channels: int, offset_groups: int) -> None:
    shapes = (1, channels, 4, 4), (1, 27 * offset_groups, 4, 4), (8, channels, 3, 3), (8,)
    with pytest.raises(ValueError, match=f"offset_groups that divide the {channels} channels of x"):
        op.output_shape(*shapes, offset_groups)


@pytest.mark.parametrize("form", [modulated_deform_conv2d, torchvision_form])
@pytest.mark.parametrize("place", [math.nan, math.inf, -math.inf, 1e30, -3e9])
def test_places_that_are_nowhere_are_outside_of_the_image(
    operands: Make, form: Callable[..., Tensor], place: float
) -> None:
    x, offset_mask, weight, bias = operands(n=2, c=4, groups=2, o=3, h=4, w=5)
    far, nowhere = offset_mask.clone(), offset_mask.clone()
    far[0, 1, 2], nowhere[0, 1, 2] = 1000, place  # a coordinate of one tap, along a row
    expected = modulated_deform_conv2d(x, far, weight, bias, 2)
    torch.testing.assert_close(form(x, nowhere, weight, bias, 2), expected)
