"""The kernels on a GPU, launched by `plugins.cuda_driver`, against the specification in fp64 on the same inputs.

Every test runs on a CPU too, all but the launch itself, so that its own faults show where there is no GPU: inputs, the
kernel's compilation, the launch's arguments and grid, the specification and the bounds. `stand_in` is launched there.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plugins import cuda_driver, launch, nvrtc, op, reference
from plugins.launch import Kernel, Layer, Precision

ROOT = Path(__file__).resolve().parents[2]
Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
SIZES = {
    "cpu": [(3, 4, 5), (1, 1, 9)],
    "cuda": [(1, 67, 131), (3, 37, 50), (2, 1, 300), (2, 130, 1), (16, 1, 1)],
}
"""(N, H, W): odd ones, smaller than a tile, and of many tiles."""
ANOTHER_ORDER = {torch.float32: 1e-5, torch.float16: 0.0}
"""What adding thousands of terms in another order may change of a sum of about 1, beyond the contract."""


@dataclass(frozen=True)
class Run:
    """A layer and one kernel that computes it."""

    layer: Layer
    precision: Precision
    kernel: Kernel
    label: str


def runs(*layers: Layer) -> list[Run]:
    """Every kernel that computes the layers: plain and linear in both types, and each tile of the fused one."""
    found = []
    for layer in layers:
        name = f"{layer.channels}-{layer.outputs}-{layer.offset_groups}"
        for precision in DTYPES:
            kernels = (launch.teacher(layer, precision), *launch.kernels(layer, precision, "linear"))
            found += [Run(layer, precision, kernel, f"{name}-{precision}-{kernel.source}") for kernel in kernels]
        if layer.channels % 8 == 0 and layer.outputs % 8 == 0:
            tiles = launch.kernels(layer, "fp16", "hwc8")
            found += [Run(layer, "fp16", kernel, f"{name}-fp16-fused-tile{i}") for i, kernel in enumerate(tiles)]
    return found


SADNET = runs(*(Layer(channels, channels) for channels in nvrtc.SADNET_CHANNELS))
OTHERS = runs(Layer(24, 40, 3, 0.0), Layer(40, 24, 8), Layer(64, 200, 4, 1.0), Layer(5, 7, 5), Layer(16, 70, 8))
FIRST = [next(run for run in SADNET if run.kernel.source == source) for source in ("linear.cu", "fused.cu")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # or the specification in fp32 is not in fp32
    if request.param == "cpu":
        monkeypatch.setattr(cuda_driver, "launch", stand_in)
    return str(request.param)


def stand_in(
    kernel: Kernel, x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, y: Tensor, offset_groups: int
) -> None:
    """`cuda_driver.launch` up to the launch; y comes from the specification."""
    values, types = cuda_driver.pack(kernel, x, offset_mask, weight, bias, y, offset_groups)
    n, _, h, w = x.shape
    assert len(values) == len(types) == 4 + len(launch.SCALARS) + 1
    assert values[4:-1] == (n, x.shape[1], h, w, weight.shape[0], offset_groups)
    blocks, output_blocks, images = kernel.grid(n, h, w)
    assert blocks * kernel.tiles * kernel.width * kernel.height >= h * w
    assert 1 <= output_blocks < 2**16
    assert images == n < 2**16
    assert 32 <= kernel.threads <= 1024
    compile_once(kernel)
    layer = Layer(x.shape[1], weight.shape[0], offset_groups, slope_of(kernel))
    y.copy_(specification((x, offset_mask, weight, bias), layer, torch.float32))


@cache
def compile_once(kernel: Kernel) -> None:
    assert nvrtc.compile_kernel(kernel, 90).cubin


def slope_of(kernel: Kernel) -> float:
    return float(dict(kernel.macros)["SADNET_NEGATIVE_SLOPE"].rstrip("f"))


def inputs(
    run: Run, device: str, n: int, h: int, w: int, *, reach: float = 1.5, special: bool = False, seed: int = 0
) -> Tensors:
    """x, offset_mask, weight and bias of the kernel's type, in its order in memory; y is then about 1.

    reach: standard deviation of the offsets in pixels. special: a third of the offsets are instead far, infinite, NaN
    or whole, and some logits infinite or far.
    """
    layer, g = run.layer, torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device=device)

    def sprinkle(t: Tensor, share: float, values: list[float]) -> Tensor:
        chosen = torch.tensor(values, device=device)[torch.randint(len(values), t.shape, generator=g, device=device)]
        return torch.where(torch.rand(t.shape, generator=g, device=device) < share, chosen, t)

    offset = reach * normal(n, op.offset_channels(layer.offset_groups), h, w)
    logits = normal(n, op.mask_channels(layer.offset_groups), h, w)
    if special:
        infinite = [float("inf"), float("-inf"), float("nan")]
        offset = sprinkle(offset, 1 / 3, [*infinite, 6e4, -6e4, float(h), -float(w), 0.0, 1.0, -1.0, 0.5])
        logits = sprinkle(logits, 0.1, [*infinite[:2], 6e4, -12.0])
    c, o = layer.channels, layer.outputs
    tensors = (normal(n, c, h, w), torch.cat((offset, logits), 1), normal(o, c, 3, 3) / c**0.5, 0.3 * normal(o))
    x, offset_mask, weight, bias = (t.to(DTYPES[run.precision]) for t in tensors)
    return in_order(run, x), in_order(run, offset_mask), in_order(run, weight), bias


def in_order(run: Run, t: Tensor) -> Tensor:
    fused = run.kernel.source == "fused.cu"
    return t.contiguous(memory_format=torch.channels_last if fused else torch.contiguous_format)


def empty_y(run: Run, tensors: Tensors) -> Tensor:
    """NaN, so that an output that is not written shows."""
    x, _, weight, _ = tensors
    return in_order(run, x.new_full((len(x), len(weight), *x.shape[2:]), float("nan")))


def compute(run: Run, tensors: Tensors) -> Tensor:
    y = empty_y(run, tensors)
    cuda_driver.launch(run.kernel, *tensors, y, run.layer.offset_groups)
    return y


def specification(tensors: Tensors, layer: Layer, dtype: torch.dtype) -> Tensor:
    x, offset_mask, weight, bias = (t.to(dtype).contiguous() for t in tensors)
    return reference.modulated_deform_conv2d(x, offset_mask, weight, bias, layer.offset_groups, layer.negative_slope)


def check(found: Tensor, tensors: Tensors, layer: Layer, label: str = "") -> None:
    """`check_all` of one image."""
    check_all([(found, tensors)], layer, label)


def check_all(results: list[tuple[Tensor, Tensors]], layer: Layer, label: str = "") -> None:
    """The contract: max and RMS error at most twice the specification's in fp32, rounded once to the tensors' type.

    Both against the specification in fp64, over all results together: of the few outputs of a small image the largest
    error is chance. Where the specification's is 0, one rounding of the largest output is allowed.
    """
    ours, theirs, rights = [], [], []
    for found, tensors in results:
        right = specification(tensors, layer, torch.float64)
        assert found.shape == right.shape
        assert found.isfinite().all(), f"{label}: {(~found.isfinite()).sum()} of {found.numel()} are not finite"
        rounded = specification(tensors, layer, torch.float32).to(found.dtype)
        ours.append((found.double() - right).ravel())
        theirs.append((rounded.double() - right).ravel())
        rights.append(right.ravel())
    check_errors(torch.cat(ours), torch.cat(theirs), torch.cat(rights), found.dtype, label)


def check_errors(ours: Tensor, theirs: Tensor, right: Tensor, dtype: torch.dtype, label: str) -> None:
    one_rounding = torch.finfo(dtype).eps / 2 * float(right.abs().max())
    for name, measure in (("max", largest), ("RMS", rms)):
        error, of_specification = measure(ours), measure(theirs)
        print(f"{label} {tuple(right.shape)}: {name} error {error:.2e}, the specification's {of_specification:.2e}")
        allowed = max(2 * of_specification, ANOTHER_ORDER[dtype]) or one_rounding
        assert error <= allowed, f"{label}: expected a {name} error of at most {allowed:.2e}, found {error:.2e}"


def largest(error: Tensor) -> float:
    return float(error.abs().max())


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("run", SADNET + OTHERS, ids=lambda run: run.label)
def test_kernel_keeps_its_contract(device: str, run: Run, special: bool) -> None:
    images = [inputs(run, device, n, h, w, special=special) for n, h, w in SIZES[device]]
    check_all([(compute(run, tensors), tensors) for tensors in images], run.layer, run.label)


@pytest.mark.parametrize("wrong", [0.02, float("nan")])
def test_the_contract_is_broken_by_one_wrong_output(wrong: float) -> None:
    run = FIRST[1]
    tensors = inputs(run, "cpu", 1, 9, 7)
    y = specification(tensors, run.layer, torch.float32).half()
    check(y, tensors, run.layer)
    y[0, 3, 2, 1] += wrong
    with pytest.raises(AssertionError, match=r"error|finite"):
        check(y, tensors, run.layer)


@pytest.mark.parametrize("run", FIRST, ids=lambda run: run.label)
def test_two_4k_images(device: str, run: Run) -> None:
    """More than 2^32 bytes and 2^31 values of offset_mask; the specification strip by strip."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of GPU memory")
    n, h, w, strip, margin = {"cpu": (2, 24, 20, 8, 8), "cuda": (2, 2160, 3840, 144, 8)}[device]
    tensors = inputs(run, device, n, h, w, reach=1)
    x, offset_mask, weight, bias = tensors
    offset = offset_mask[:, : op.offset_channels(run.layer.offset_groups)]
    offset.clamp_(-margin + 2, margin - 2)  # a strip sees no more
    y = compute(run, tensors)
    for image in range(n):
        ours, theirs, right = [], [], []
        for top in range(0, h, strip):
            first, last = max(top - margin, 0), min(top + strip + margin, h)
            part = (x[image : image + 1, :, first:last], offset_mask[image : image + 1, :, first:last], weight, bias)
            inner = slice(top - first, top - first + strip)
            exact = specification(part, run.layer, torch.float64)[:, :, inner]
            ours.append(y[image : image + 1, :, top : top + strip].double() - exact)
            rounded = specification(part, run.layer, torch.float32)[:, :, inner].to(y.dtype)
            theirs.append(rounded.double() - exact)
            right.append(exact)
        check_errors(torch.cat(ours), torch.cat(theirs), torch.cat(right), y.dtype, f"{run.label}, image {image}")


@pytest.mark.parametrize("run", [run for run in SADNET if run.precision == "fp16"], ids=lambda run: run.label)
def test_half_kernels_keep_their_place_in_a_wide_image(device: str, run: Run) -> None:
    """10 times nearer than sampling at coordinates in half, which are off by up to half a pixel from column 1024 on."""
    tensors = inputs(run, device, 1, {"cpu": 1, "cuda": 8}[device], 2048, reach=1)
    right = specification(tensors, run.layer, torch.float64)
    x, offset_mask, weight, bias = tensors
    in_half = offset_mask.double().contiguous()
    column = torch.arange(2048, dtype=torch.float64, device=device)
    for k in range(run.layer.offset_groups * op.TAPS):
        at = column + k % op.TAPS % op.KERNEL - 1 + in_half[:, 2 * k + 1]
        in_half[:, 2 * k + 1] += at.half() - at
    coarse = specification((x, in_half, weight, bias), run.layer, torch.float64)
    ours, halved = (rms((y.double() - right)[..., 1024:]) for y in (compute(run, tensors), coarse))
    print(f"{run.label}: RMS error {ours:.2e}, of coordinates in half {halved:.2e}, {halved / ours:.0f} times as much")
    assert 10 * ours < halved


@pytest.mark.parametrize("run", FIRST, ids=lambda run: run.label)
def test_a_cuda_graph_replays_the_launch_on_new_inputs(device: str, run: Run) -> None:
    tensors, later = (inputs(run, device, 2, 13, 21, seed=seed) for seed in (0, 1))
    y = empty_y(run, tensors)
    again = replay(lambda: cuda_driver.launch(run.kernel, *tensors, y, run.layer.offset_groups), device)
    for t, values in zip((*tensors, y), (*later, empty_y(run, later)), strict=True):
        t.copy_(values)
    again()
    check(y, later, run.layer, run.label)


def replay(work: Callable[[], None], device: str) -> Callable[[], object]:
    """What does `work` again: a CUDA graph of it."""
    work()  # kernels are loaded by their first launch, which no graph may hold
    if device == "cpu":
        return work
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@pytest.mark.parametrize("run", FIRST, ids=lambda run: run.label)
def test_the_launch_waits_for_its_own_stream(device: str, run: Run) -> None:
    """The inputs are made, late, on a stream that is not the default one."""
    late, tensors = (inputs(run, device, 1, 33, 65, seed=seed) for seed in (1, 0))
    compute(run, tensors)  # compiles, which would take longer than the inputs
    stream = torch.cuda.Stream() if device == "cuda" else None
    if stream:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
        if stream:
            torch.cuda._sleep(10**8)  # cycles: about a twentieth of a second
        for t, values in zip(tensors, late, strict=True):
            t.copy_(values)
        y = compute(run, tensors)
    if stream:
        stream.synchronize()
    check(y, late, run.layer, run.label)


@pytest.mark.parametrize("run", FIRST, ids=lambda run: run.label)
def test_a_thread_may_begin_with_a_launch(device: str, run: Run) -> None:
    """No CUDA context is a new thread's before it has done something with CUDA."""
    tensors = inputs(run, device, 1, 9, 17)
    y = empty_y(run, tensors)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(cuda_driver.launch, run.kernel, *tensors, y, run.layer.offset_groups).result()
    check(y, tensors, run.layer, run.label)


def launch_all(device: str) -> None:
    """Every kernel on small images whose tiles are not full: what compute-sanitizer watches."""
    for run in SADNET + OTHERS:
        for n, h, w in ((1, 19, 35), (2, 1, 3)):
            compute(run, inputs(run, device, n, h, w, special=True))
    if device == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(device: str, tool: str) -> None:
    if device == "cpu":
        launch_all("cpu")
        return
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer here: it comes with the CUDA toolkit")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    # calls that PyTorch may fail in on its way are no fault of a kernel; what our own calls answer is looked at anyway
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []
    command += [sys.executable, "-c", "from tests.plugins import test_gpu_kernels as t; t.launch_all('cuda')"]
    # without PyTorch's pool of memory every tensor is an allocation of its own, whose bounds are watched
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "ERROR SUMMARY: 0 errors" in result.stdout or "0 hazards displayed" in result.stdout
