"""The CUDA kernels of training (kernels/training.cuh): their source under g++, and on a GPU, against the specification
in double precision."""

import ctypes
import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from plugins import cuda_sampling, launch, reference, torch_op, training_op
from tests.plugins.cpu_shim.build import NEEDS_COMPILER
from tests.plugins.test_training_op import computed, rounded, tensors

HOST = """  // the GPU's words
#include <cmath>
#include <algorithm>
#define __device__
#define __forceinline__ inline
using std::min; using std::max;
struct Index { unsigned x; };
static Index blockIdx, blockDim{1}, threadIdx{0};
static float wide(float v) { return v; }
static void narrow(float v, float* to) { *to = v; }
template <int V>
static void add(float* to, const float (&values)[V]) {
  for (int v = 0; v < V; ++v) to[v] += values[v];
}
#include "training.cuh"
using training::T;
extern "C" void sample(const T* x, const T* offset_mask, T* columns, int h, int w, unsigned threads) {
  for (blockIdx.x = 0; blockIdx.x < threads + 2; ++blockIdx.x)
    training::sample(x, offset_mask, h, w, threads, columns);
}
extern "C" void sample_backward(const T* x, const T* offset_mask, const T* grad_columns, float* grad_x,
                                T* grad_offset_mask, int h, int w, unsigned threads) {
  for (blockIdx.x = 0; blockIdx.x < threads + 2; ++blockIdx.x)
    training::sample_backward(x, offset_mask, grad_columns, h, w, threads, grad_x, grad_offset_mask);
}
"""


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], ctypes.CDLL]:
    """on_host(groups, width): the kernels in fp32, one thread after another."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "host.cpp").write_text(HOST)

    def build(groups: int, width: int) -> ctypes.CDLL:
        library = folder / f"{groups}_{width}.so"
        macros = ["-DSADNET_TYPE=float", f"-DSADNET_GROUPS={groups}", f"-DSADNET_WIDTH={width}"]
        flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", f"-I{launch.KERNELS}"]
        subprocess.run(["g++", *flags, *macros, str(folder / "host.cpp"), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))

    return build


@NEEDS_COMPILER
@pytest.mark.parametrize(("groups", "width"), [(8, 4), (8, 8), (8, 16), (8, 32), (2, 3), (3, 2), (1, 1)])
@pytest.mark.parametrize(("n", "h", "w"), [(2, 7, 9), (1, 1, 5), (3, 2, 1)])
def test_the_source_agrees_with_the_cpu_kernel(
    on_host: Callable[[int, int], ctypes.CDLL], groups: int, width: int, n: int, h: int, w: int
) -> None:
    library, threads = on_host(groups, width), n * h * w * groups * 9
    x, offset_mask = (t.float().requires_grad_() for t in tensors(n, h, w, groups, width, 1)[:2])
    columns = training_op.sample(x, offset_mask, groups)
    grad = torch.randn(columns.shape, generator=torch.Generator().manual_seed(2))
    expected = (columns, *torch.autograd.grad(columns, (x, offset_mask), grad))
    last = [t.detach().permute(0, 2, 3, 1).contiguous() for t in (x, offset_mask)]
    found = [torch.full_like(columns.detach(), 7), torch.zeros_like(last[0]), torch.full_like(last[1], 7)]

    def call(name: str, *arguments: Tensor) -> None:
        library[name](*(ctypes.c_void_p(t.data_ptr()) for t in arguments), h, w, ctypes.c_uint(threads))

    call("sample", *last, found[0])
    call("sample_backward", *last, grad, found[1], found[2])
    for ours, theirs in zip((found[0], *(t.permute(0, 3, 1, 2) for t in found[1:])), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max()))


def test_a_process_that_forbids_atomic_additions_gets_no_gradients_made_by_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_sampling, "usable_for", lambda x, offset_groups: True)
    with FakeTensorMode():
        x = torch.empty(1, 32, 8, 8, device="cuda")
    assert training_op.usable_for(x, offset_groups=8)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not training_op.usable_for(x, offset_groups=8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", cuda_sampling.TYPES)
@pytest.mark.parametrize(
    ("n", "h", "w", "groups", "width"),
    [(2, 24, 27, 8, 4), (2, 17, 20, 8, 8), (2, 9, 12, 8, 16), (3, 5, 8, 8, 32), (1, 1, 1, 8, 4), (2, 9, 5, 3, 5)],
)
def test_errs_on_a_gpu_at_most_twice_as_much_as_torchvision(
    dtype: torch.dtype, n: int, h: int, w: int, groups: int, width: int
) -> None:
    """torchvision's works in fp32 on inputs rounded to the type. Without the activation, whose derivative jumps."""
    inputs = rounded(tensors(n, h, w, groups, width, groups * width), dtype)
    expected = computed(reference.modulated_deform_conv2d, inputs, groups, torch.float64, 1.0)
    on_gpu = [t.cuda() for t in inputs]
    assert training_op.usable_for(*(t.to(dtype) for t in on_gpu), offset_groups=groups)
    ours = computed_on_gpu(training_op.modulated_deform_conv2d, on_gpu, groups, dtype)
    torchvisions = computed_on_gpu(torch_op.torchvision_form, on_gpu, groups, dtype)
    for name, exact, a, b in zip(
        ("y", "x", "offset_mask", "weight", "bias"), expected, ours, torchvisions, strict=True
    ):
        off, its = (float((t - exact).abs().max()) for t in (a, b))
        least = torch.finfo(dtype).eps * float(exact.abs().max())
        print(f"{dtype} {groups}x{width} {name}: {off:.2e}, torchvision {its:.2e}, a unit {least:.2e}")
        assert off <= max(2 * its, 2 * least), name


def computed_on_gpu(form: Callable[..., Tensor], inputs: list[Tensor], groups: int, dtype: torch.dtype) -> list[Tensor]:
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    y = form(*leaves, groups, 1.0)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype).cuda()
    return [t.detach().cpu().double() for t in (y, *torch.autograd.grad(y, leaves, grad))]
