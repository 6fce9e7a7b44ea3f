"""The op as training runs it on a CPU, against the specification in double precision, and what runs in its place."""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plugins import cpu_sampling, op, reference, training_op
from plugins.torch_op import modulated_deform_conv2d

NEEDS_KERNEL = pytest.mark.skipif(not cpu_sampling.usable(), reason="no g++ here: apt-get install g++")
Form = Callable[..., Tensor]


def tensors(n: int, h: int, w: int, groups: int, width: int, outputs: int) -> list[Tensor]:
    """x, offset_mask, weight and bias in double precision. Offsets of some pixels, each a quarter of one or more away
    from a whole number, where the derivative jumps."""
    generator = torch.Generator().manual_seed(n + 7 * h + 31 * w + groups + width)
    c = groups * width
    shapes = ((n, c, h, w), (n, op.offset_mask_channels(groups), h, w), (outputs, c, 3, 3), (outputs,))
    x, offset_mask, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    offset = offset_mask[:, : op.offset_channels(groups)]
    offset.mul_(3).floor_().add_(0.25 + torch.rand(offset.shape, generator=generator, dtype=torch.float64) / 2)
    return [x, offset_mask, weight / math.sqrt(9 * c), bias]


def computed(form: Form, inputs: list[Tensor], groups: int, dtype: torch.dtype, slope: float) -> list[Tensor]:
    """y and the gradients of a weighted sum of it, in double precision, computed in `dtype`."""
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    y = form(*leaves, groups, slope)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(y, leaves, grad)
    return [t.detach().double() for t in (y, *gradients)]


def rounded(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What is left of the inputs in `dtype`: the specification is asked for the same numbers."""
    return [t.to(dtype).double() for t in inputs]


@NEEDS_KERNEL
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    groups=st.sampled_from([1, 2, 3, 8]),
    width=st.sampled_from([1, 3, 4, 8, 12, 16, 32]),
    threads=st.integers(1, 3),
)
@example(n=1, h=1, w=1, groups=8, width=4, threads=2)
@example(n=2, h=9, w=5, groups=3, width=16, threads=3)
def test_agrees_with_the_specification(n: int, h: int, w: int, groups: int, width: int, threads: int) -> None:
    inputs = rounded(tensors(n, h, w, groups, width, outputs=5), torch.float32)
    expected = computed(reference.modulated_deform_conv2d, inputs, groups, torch.float64, 0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = computed(training_op.modulated_deform_conv2d, inputs, groups, torch.float32, 0.2)
    finally:
        torch.set_num_threads(before)
    for name, a, b in zip(("y", "x", "offset_mask", "weight", "bias"), expected, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max())), name


@NEEDS_KERNEL
@pytest.mark.parametrize(("channels", "side"), [(32, 24), (64, 17), (128, 9), (256, 5)])
def test_bfloat16_errs_at_most_twice_as_much_as_pytorch_does(channels: int, side: int) -> None:
    """On the layers of SADNet without their activation, whose derivative jumps; both against double precision."""
    inputs = rounded(tensors(2, side, side + 3, 8, channels // 8, channels), torch.bfloat16)
    expected = computed(reference.modulated_deform_conv2d, inputs, 8, torch.float64, 1.0)
    ours = computed(training_op.modulated_deform_conv2d, inputs, 8, torch.bfloat16, 1.0)
    pytorchs = computed(reference.modulated_deform_conv2d, inputs, 8, torch.bfloat16, 1.0)
    for name, exact, a, b in zip(("y", "x", "offset_mask", "weight", "bias"), expected, ours, pytorchs, strict=True):
        ours_off, pytorch_off = ((t - exact).abs() for t in (a, b))
        print(f"{channels} channels, {name}: max {ours_off.max():.2e}, mean {ours_off.mean():.2e}", end="; ")
        print(f"grid_sample: max {pytorch_off.max():.2e}, mean {pytorch_off.mean():.2e}")
        assert ours_off.mean() <= 2 * pytorch_off.mean(), name
        assert ours_off.max() <= 2 * pytorch_off.max(), name


@NEEDS_KERNEL
def test_threads_change_no_bit() -> None:
    inputs = tensors(2, 11, 13, 8, 4, 8)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x, offset_mask = (t.float().requires_grad_() for t in inputs[:2])
        columns = training_op.sample(x, offset_mask, 8)
        results.append((columns, *torch.autograd.grad(columns.square().sum(), (x, offset_mask))))
    torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


@NEEDS_KERNEL
def test_order_in_memory_does_not_matter() -> None:
    x, offset_mask, weight, bias = (t.float() for t in tensors(2, 6, 7, 8, 4, 16))
    expected = training_op.modulated_deform_conv2d(x, offset_mask, weight, bias)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    wider = torch.zeros(2, 40, 6, 9)
    wider[:, 4:36, :, 1:8] = x
    for form in (x.contiguous(memory_format=torch.channels_last), wider[:, 4:36, :, 1:8]):
        assert torch.equal(training_op.modulated_deform_conv2d(form, offset_mask, weight, bias), expected)


@NEEDS_KERNEL
@pytest.mark.parametrize("place", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9])
def test_places_that_are_no_places_are_outside(place: float) -> None:
    x, offset_mask, weight, bias = (t.float() for t in tensors(1, 5, 6, 8, 4, 8))
    offset_mask[:, : op.offset_channels(8)] = place
    offset_mask.requires_grad_()
    y = training_op.modulated_deform_conv2d(x, offset_mask, weight, bias, negative_slope=1.0)
    assert torch.equal(y, bias[None, :, None, None].expand_as(y))
    y.sum().backward()
    assert offset_mask.grad is not None
    assert not offset_mask.grad.any()


@NEEDS_KERNEL
def test_borders_fade_to_zero() -> None:
    """A place between the border and one pixel beyond it counts in part, one beyond that not at all."""
    x, weight, bias = torch.ones(1, 8, 1, 1), torch.zeros(1, 8, 3, 3), torch.zeros(1)
    weight[:, :, 1, 1] = 1 / 8
    for offset, expected in ((0.25, 0.75), (-0.5, 0.5), (1.0, 0.0), (-1.0, 0.0), (1.5, 0.0)):
        for axis in (0, 1):
            offset_mask = torch.zeros(1, 216, 1, 1)
            offset_mask[:, axis : op.offset_channels(8) : 2] = offset
            offset_mask[:, op.offset_channels(8) :] = 40  # the mask is 1
            assert training_op.modulated_deform_conv2d(x, offset_mask, weight, bias).item() == pytest.approx(expected)


@NEEDS_KERNEL
def test_training_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.float() for t in tensors(1, 4, 5, 8, 4, 8)]
    monkeypatch.setattr(reference, "modulated_deform_conv2d", lambda *_: pytest.fail("the slow form ran"))
    x, offset_mask, weight, bias = (t.requires_grad_() for t in inputs)
    modulated_deform_conv2d(x, offset_mask, weight, bias)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty place for compiled kernels; a folder that is the whole PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setattr(cpu_sampling, "BUILD", tmp_path / "build")
    monkeypatch.setenv("PATH", str(programs))
    cpu_sampling._library.cache_clear()
    yield programs
    cpu_sampling._library.cache_clear()


def warned_once() -> str:
    """The one warning of two uses, which compute what the specification does."""
    x, offset_mask, weight, bias = (t.float().requires_grad_() for t in tensors(1, 4, 5, 8, 4, 8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            y = modulated_deform_conv2d(x, offset_mask, weight, bias)
    assert torch.equal(y, reference.modulated_deform_conv2d(x, offset_mask, weight, bias))
    assert len(caught) == 1
    return str(caught[0].message)


def test_without_a_compiler_the_specification_runs(fresh: Path) -> None:
    text = warned_once()
    assert "found no g++" in text
    assert "apt-get install g++" in text


def test_a_compiler_that_fails_leaves_nothing(fresh: Path) -> None:
    script = fresh / "g++"
    script.write_text("#!/bin/sh\necho 'g++: error: unrecognized option' >&2\nexit 1\n")
    script.chmod(0o755)
    assert "g++: error: unrecognized option" in warned_once()
    assert not list(cpu_sampling.BUILD.rglob("*"))


def test_a_compiler_that_speaks_another_code(fresh: Path) -> None:
    script = fresh / "g++"
    script.write_bytes(b"#!/bin/sh\necho 'erreur: compil\xe9' >&2\nexit 1\n")
    script.chmod(0o755)
    assert "erreur" in warned_once()


def test_another_cpu_on_the_same_disk_compiles_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for instructions that it lacks would end the process."""

    def key(features: str) -> str:
        cpuinfo = SimpleNamespace(read_text=lambda: f"processor : 0\nflags : {features}\n")
        monkeypatch.setattr(cpu_sampling, "Path", lambda name: cpuinfo)
        return cpu_sampling._key()

    assert key("sse2 avx2") == key("sse2 avx2")
    assert key("sse2 avx2") != key("sse2 avx2 avx512f")


@NEEDS_KERNEL
def test_a_damaged_library_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_sampling, "BUILD", tmp_path)
    cpu_sampling._library.cache_clear()
    path = tmp_path / f"{cpu_sampling._key()}.so"
    path.write_bytes(b"")
    try:
        assert cpu_sampling.usable()
        assert path.stat().st_size > 1000
    finally:
        cpu_sampling._library.cache_clear()


@NEEDS_KERNEL
def test_the_ops_pass_pytorchs_own_checks() -> None:
    x, offset_mask = (t.float() for t in tensors(2, 3, 4, 2, 3, 5)[:2])
    torch.library.opcheck(training_op._sample, (x.requires_grad_(), offset_mask.requires_grad_(), 2))


@NEEDS_KERNEL
def test_other_devices_and_empty_batches() -> None:
    x, offset_mask, weight, bias = (t.float() for t in tensors(1, 4, 5, 8, 4, 8))
    assert not training_op.usable_for(x, offset_mask.to("meta"), weight, bias, offset_groups=8)
    x, offset_mask = (t[:0].requires_grad_() for t in (x, offset_mask))
    y = training_op.modulated_deform_conv2d(x, offset_mask, weight, bias)
    assert y.shape == (0, 8, 4, 5)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


@NEEDS_KERNEL
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pytorchs_default_type_does_not_matter(dtype: torch.dtype) -> None:
    x, offset_mask, weight, bias = (t.float().requires_grad_() for t in tensors(1, 4, 5, 8, 4, 8))
    expected = torch.autograd.grad(training_op.modulated_deform_conv2d(x, offset_mask, weight, bias).sum(), x)[0]
    torch.set_default_dtype(dtype)
    try:
        found = torch.autograd.grad(training_op.modulated_deform_conv2d(x, offset_mask, weight, bias).sum(), x)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_a_folder_that_cannot_be_made(fresh: Path) -> None:
    cpu_sampling.BUILD.write_text("a file is in its place")
    (fresh / "g++").write_text("#!/bin/sh\n")
    (fresh / "g++").chmod(0o755)
    assert "build is not a folder" in warned_once()
