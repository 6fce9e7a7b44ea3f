"""The op as PyTorch's dispatcher, exporter and compiler see it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plugins import op, reference, torch_op
from plugins.torch_op import torchvision_form

Operands = tuple[Tensor, Tensor, Tensor, Tensor]
Make = Callable[..., Operands]
modulated_deform_conv2d: Callable[..., Tensor] = torch_op.modulated_deform_conv2d
specification: Callable[..., Tensor] = reference.modulated_deform_conv2d
NODE = torch.ops.sadnet.modulated_deform_conv2d


class Layer(nn.Module):
    """The op behind the convolution that makes its offsets and mask, as in the network."""

    def __init__(self, channels: int = 8, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.offsets = nn.Conv2d(channels, op.offset_mask_channels(groups), 3, padding=1)
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / 8)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, 3 * self.offsets(x), self.weight, self.bias, self.groups)


def gradients(f: Callable[..., Tensor], tensors: Any, *attributes: Any) -> tuple[Tensor, ...]:
    """y and the gradients of a sum over y that weighs every element differently."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = f(*leaves, *attributes)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return y, *torch.autograd.grad((y * weights).sum(), leaves)


def test_the_node_passes_pytorchs_own_checks(operands: Make) -> None:
    tensors = [t.requires_grad_() for t in operands(2, 4, 2, 3, 4, 5, dtype=torch.float32)]
    torch.library.opcheck(NODE, (*tensors, 2, 0.2))


def test_the_nodes_gradients_agree_with_finite_differences(operands: Make) -> None:
    tensors = [t.requires_grad_() for t in operands(1, 4, 2, 3, 3, 4)]
    assert torch.autograd.gradcheck(lambda *t: NODE(*t, 2, 0.2), tensors)


@pytest.mark.parametrize("size", [(5, 6), (1, 4), (3, 1)])
def test_every_form_has_the_references_values_and_gradients(operands: Make, size: tuple[int, int]) -> None:
    tensors = operands(2, 4, 2, 3, *size)
    expected = gradients(specification, tensors, 2, 0.2)
    for form in (NODE, modulated_deform_conv2d, torchvision_form):
        for ours, theirs in zip(gradients(form, tensors, 2, 0.2), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_without_gradients_the_values_are_the_same(operands: Make) -> None:
    tensors = operands(2, 4, 2, 3, 5, 6, dtype=torch.float32)
    with torch.no_grad():
        y = modulated_deform_conv2d(*tensors, 2, 0.2)
    assert torch.allclose(y, specification(*tensors, 2, 0.2), rtol=0, atol=1e-6)


def test_inputs_of_other_memory_formats_do(operands: Make) -> None:
    x, *others = operands(2, 4, 2, 3, 5, 6)
    expected = gradients(NODE, (x, *others), 2, 0.2)
    turned = (x.contiguous(memory_format=torch.channels_last), *others)
    for ours, theirs in zip(gradients(NODE, turned, 2, 0.2), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_the_node_names_a_shape_that_does_not_fit(operands: Make) -> None:
    x, offset_mask, weight, bias = operands(1, 4, 2, 3, 4, 4)
    with pytest.raises(ValueError, match="expected bias"):
        NODE(x, offset_mask, weight, bias[:2], 2, 0.2)
    with torch.no_grad(), pytest.raises(ValueError, match="expected offset_mask"):
        modulated_deform_conv2d(x, offset_mask[:, 1:], weight, bias, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cpu_autocast_gives_a_result_and_gradients_near_those_of_fp32(operands: Make, dtype: torch.dtype) -> None:
    x, offset_mask, weight, bias = operands(2, 8, 2, 8, 6, 7, dtype=torch.float32)
    mixed = (x.to(dtype), offset_mask.to(torch.bfloat16), weight, bias)  # what the layers before the op hand to it
    exact = gradients(specification, [t.float() for t in mixed], 2, 0.2)
    for form in (modulated_deform_conv2d, NODE):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(form, mixed, 2, 0.2)
        for ours, theirs in zip(found, exact, strict=True):
            assert (ours.float() - theirs).norm() < 0.06 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_nodes_type_is_that_of_x_as_its_fake_kernel_says(operands: Make, dtype: torch.dtype) -> None:
    x, *others = operands(1, 4, 2, 4, 4, 4, dtype=torch.float32)
    with torch.no_grad():
        assert NODE(x.to(dtype), *others, 2, 0.2).dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert NODE(x.to(dtype), *others, 2, 0.2).dtype == dtype


def test_export_keeps_one_node_for_any_height_and_width() -> None:
    torch.manual_seed(0)
    layer = Layer()
    sizes = {2: torch.export.Dim("height", min=2, max=999), 3: torch.export.Dim("width", min=2, max=999)}
    program = torch.export.export(layer, (torch.randn(2, 8, 6, 7),), dynamic_shapes=(sizes,))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(NODE.default) == 1
    assert not [target for target in targets if "grid_sampl" in str(target)]
    x = torch.randn(2, 8, 11, 5)
    assert torch.allclose(program.module()(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "bound"), [("aot_eager", 1e-5), pytest.param("inductor", 1e-4, marks=pytest.mark.slow)]
)
def test_a_compiled_layer_agrees_with_eager(backend: str, bound: float) -> None:
    torch.manual_seed(0)
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(2, 8, 5, 6)

    def results(f: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        return [y, *torch.autograd.grad(y.square().mean(), [leaf, *layer.parameters()])]

    for ours, theirs in zip(results(compiled), results(layer), strict=True):
        assert (ours - theirs).abs().max() < bound
    with torch.no_grad():
        assert (compiled(x) - layer(x)).abs().max() < bound


def test_the_node_refuses_a_second_derivative(operands: Make) -> None:
    tensors = [t.requires_grad_() for t in operands(1, 4, 2, 3, 4, 5)]
    (first,) = torch.autograd.grad(NODE(*tensors, 2, 0.2).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


@pytest.mark.parametrize("empty", [{"n": 0}, {"h": 0}, {"o": 0}])
def test_no_outputs_are_no_work(operands: Make, empty: dict[str, int]) -> None:
    sizes = {"n": 2, "o": 3, "h": 4} | empty
    x, offset_mask, weight, bias = operands(2, 4, 2, 3, 4, 5)
    y = NODE(
        x[: sizes["n"], :, : sizes["h"]],
        offset_mask[: sizes["n"], :, : sizes["h"]],
        weight[: sizes["o"]],
        bias[: sizes["o"]],
        2,
        0.2,
    )
    assert y.shape == (sizes["n"], sizes["o"], sizes["h"], 5)


@pytest.mark.gpu
class TestOnCuda:
    """The same on CUDA: our kernels where no gradient is wanted, torchvision's where one is."""

    @pytest.mark.parametrize("reach", [1, 1000])
    def test_values_and_gradients_agree_with_the_reference_on_the_cpu(self, operands: Make, reach: int) -> None:
        tensors = operands(2, 16, 8, 5, 13, 17, reach=reach)
        expected = gradients(specification, tensors, 8, 0.2)
        for form in (NODE, modulated_deform_conv2d):
            for ours, theirs in zip(gradients(form, [t.cuda() for t in tensors], 8, 0.2), expected, strict=True):
                assert torch.allclose(ours.cpu(), theirs, rtol=0, atol=1e-9)

    def test_the_node_passes_pytorchs_own_checks(self, operands: Make) -> None:
        tensors = [t.cuda().requires_grad_() for t in operands(2, 4, 2, 3, 4, 5, dtype=torch.float32)]
        torch.library.opcheck(NODE, (*tensors, 2, 0.2))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_keeps_its_place_in_a_wide_image(self, operands: Make, dtype: torch.dtype) -> None:
        tensors = operands(1, 8, 8, 8, 3, 2048, dtype=dtype)
        truth = specification(*(t.double() for t in tensors))
        with torch.no_grad():
            y = modulated_deform_conv2d(*(t.cuda() for t in tensors))
        assert y.dtype == dtype
        assert (y.cpu().double() - truth).abs().mean() < 4 * torch.finfo(dtype).eps * truth.abs().mean()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_gives_gradients_near_those_of_fp32(self, operands: Make, dtype: torch.dtype) -> None:
        tensors = [t.cuda() for t in operands(2, 8, 2, 8, 6, 7, dtype=torch.float32)]
        exact = gradients(modulated_deform_conv2d, tensors, 2, 0.2)
        with torch.autocast("cuda", dtype=dtype):
            found = gradients(modulated_deform_conv2d, tensors, 2, 0.2)
        for ours, theirs in zip(found, exact, strict=True):
            assert (ours.float() - theirs).norm() < 0.06 * theirs.norm()

    def test_a_compiled_layer_agrees_with_eager(self) -> None:
        torch.manual_seed(0)
        layer = Layer().cuda()
        compiled = torch.compile(layer, fullgraph=True)
        x = torch.randn(2, 8, 5, 6, device="cuda")
        parameters = list(layer.parameters())
        ours, theirs = ([f(x), *torch.autograd.grad(f(x).square().mean(), parameters)] for f in (compiled, layer))
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() < 1e-2  # convolutions may run in TF32


@pytest.mark.parametrize("sizes", [(0, 4, 2, 3, 4, 5), (2, 4, 2, 0, 4, 5), (2, 4, 2, 3, 0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [NODE, modulated_deform_conv2d])
def test_gradients_of_no_images_outputs_or_pixels(
    operands: Make, sizes: tuple[int, ...], dtype: torch.dtype, form: Callable[..., Tensor]
) -> None:
    tensors = [t.requires_grad_() for t in operands(*sizes, dtype=dtype)]
    form(*tensors, 2, 0.2).sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in tensors)


@pytest.mark.parametrize("x", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("others", [torch.float64, torch.float32, torch.bfloat16])
def test_all_is_computed_in_the_type_of_x(operands: Make, x: torch.dtype, others: torch.dtype) -> None:
    first, *rest = operands(1, 4, 2, 3, 4, 5)
    mixed = [first.to(x), *(t.to(others) for t in rest)]
    same = modulated_deform_conv2d(*(t.to(x) for t in mixed), 2, 0.2)
    assert torch.equal(modulated_deform_conv2d(*mixed, 2, 0.2), same)
    y = modulated_deform_conv2d(*(t.requires_grad_() for t in mixed), 2, 0.2)
    assert torch.equal(y, same)
    y.sum().backward()
    assert [t.grad.dtype for t in mixed if t.grad is not None] == [x, others, others, others]


def test_a_derivative_in_forward_mode_is_never_dropped(operands: Make) -> None:
    x, *rest = operands(1, 4, 2, 3, 4, 5)
    for context in (torch.enable_grad, torch.no_grad):
        with context(), pytest.raises(NotImplementedError, match="forward AD"):
            torch.func.jvp(lambda x: modulated_deform_conv2d(x, *rest, 2, 0.2), (x,), (x,))


def test_shapes_on_the_meta_device(operands: Make) -> None:
    tensors = [t.to("meta").requires_grad_() for t in operands(2, 4, 2, 3, 4, 5)]
    assert modulated_deform_conv2d(*tensors, 2, 0.2).shape == (2, 3, 4, 5)
