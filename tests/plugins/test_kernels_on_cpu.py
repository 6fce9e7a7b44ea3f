"""The CUDA kernels' own source, compiled by g++ under a small shim and run on the CPU, against the specification."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins import launch, op
from plugins.launch import Kernel, Layer, Precision
from tests.plugins.cpu_shim.build import NEEDS_COMPILER, Compiled, build
from tests.plugins.cpu_shim.cases import DTYPES, Arrays, Case, check, specification

Compile = Callable[[Kernel], Compiled]
pytestmark = NEEDS_COMPILER

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
FORMS = (("plain", "fp32"), ("plain", "fp16"), ("linear", "fp32"), ("linear", "fp16"), ("fused", "fp16"))
SADNET = tuple(
    (layer, index)
    for layer in (Layer(32, 32), Layer(64, 64), Layer(128, 128), Layer(256, 256))
    for index in range(len(launch.tiles(layer)))
)
"""Every way in which the fused kernel divides SADNet's layers."""
OTHERS = (
    Layer(8, 8, 1, negative_slope=1.0),  # one slot of a chunk, an odd pitch
    Layer(8, 16, 8, offset_pitch=217),
    Layer(16, 8, 8),  # 2 channels a group
    Layer(24, 40, 3, negative_slope=0.0),
    Layer(24, 24, 8),  # 3 channels a group
    Layer(24, 8, 24),  # 1 channel a group
    Layer(24, 64, 2, offset_pitch=56),  # 12 channels a group
    Layer(40, 72, 40, offset_pitch=1080),
    Layer(40, 24, 8),  # 5 channels a group
    Layer(48, 16, 8),  # 6 channels a group
    Layer(64, 200, 4),  # outputs in two blocks, the second not full
    Layer(64, 160, 8),  # the second block of outputs a quarter full
    Layer(72, 40, 3, offset_pitch=88),  # groups across chunks
    Layer(96, 32, 1, offset_pitch=29),
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Each kernel is compiled once."""
    known: dict[tuple[object, ...], Compiled] = {}

    def get(kernel: Kernel) -> Compiled:
        key = (kernel.source, kernel.macros)
        if key not in known:
            known[key] = build(kernel, tmp_path_factory.mktemp("kernel"))
        return replace(known[key], kernel=kernel)

    return get


def fused(layer: Layer, index: int = 0) -> Kernel:
    return launch.kernels(layer, "fp16", "hwc8")[index]


def linear(source: str, layer: Layer, precision: Precision) -> Kernel:
    return launch.teacher(layer, precision) if source == "plain" else launch.kernels(layer, precision, "linear")[0]


def run(kernel: Compiled, case: Case) -> None:
    found = kernel(case.arrays(), case.layer.offset_groups, case.layer.pitch, case.seed)
    check(found, case, rounds_samples=kernel.kernel.source == "fused.cu")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("source", ["plain", "linear"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 3),
    channels_a_group=st.integers(1, 6),
    o=st.sampled_from([1, 2, 5, 31, 32, 33, 65]),
    groups=st.sampled_from([1, 2, 3, 8]),
    h=st.sampled_from([1, 2, 3, 6, 9, 17]),
    w=st.sampled_from([1, 2, 3, 7, 33, 40]),
    reach=st.sampled_from([0.0, 0.7, 4.0, 50.0]),
    special=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_linear_kernels_are_the_specification(
    compiled: Compile,
    source: str,
    precision: Precision,
    n: int,
    channels_a_group: int,
    o: int,
    groups: int,
    h: int,
    w: int,
    reach: float,
    special: bool,
    seed: int,
) -> None:
    layer = Layer(channels_a_group * groups, o, groups)
    run(compiled(linear(source, layer, precision)), Case(layer, n, h, w, reach, special, precision, seed))


@pytest.mark.parametrize("slope", [1.0, 0.0, -0.5])
@pytest.mark.parametrize("source", ["plain", "linear"])
def test_linear_kernels_take_any_slope(compiled: Compile, source: str, slope: float) -> None:
    layer = Layer(6, 7, 3, slope)
    run(compiled(linear(source, layer, "fp32")), Case(layer, 1, 5, 6, precision="fp32"))


@pytest.mark.parametrize(
    ("n", "h", "w", "special"),
    [(1, 1, 1, False), (1, 16, 1, True), (2, 1, 17, True), (3, 7, 2, True), (1, 5, 19, False), (1, 11, 18, True)],
)
@pytest.mark.parametrize(("layer", "index"), SADNET, ids=lambda v: str(getattr(v, "channels", v)))
def test_fused_kernel_is_the_specification(
    compiled: Compile, layer: Layer, index: int, n: int, h: int, w: int, special: bool
) -> None:
    run(compiled(fused(layer, index)), Case(layer, n, h, w, special=special))


@pytest.mark.parametrize(("layer", "index"), [(layer, i) for layer, i in SADNET if layer.channels <= 64])
def test_fused_kernel_takes_many_tiles(compiled: Compile, layer: Layer, index: int) -> None:
    run(compiled(fused(layer, index)), Case(layer, 1, 35, 37, special=True))


@pytest.mark.parametrize("layer", OTHERS, ids=lambda v: f"{v.channels}-{v.outputs}-{v.offset_groups}")
def test_fused_kernel_takes_other_layers(compiled: Compile, layer: Layer) -> None:
    kernel = compiled(fused(layer))
    for case in (Case(layer, 1, 9, 37), Case(layer, 2, 3, 5, special=True), Case(layer, 3, 1, 2), Case(layer, 1, 3, 1)):
        run(kernel, case)


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 3e4, -3e4])
@pytest.mark.parametrize(("source", "precision"), FORMS)
def test_a_place_that_is_nowhere_gives_zero(
    compiled: Compile, source: str, precision: Precision, offset: float
) -> None:
    layer = Layer(32, 32)
    case = Case(layer, 1, 5, 6, precision=precision)
    arrays = case.arrays()
    moves = arrays[1].copy()
    moves[:, : op.offset_channels(8)] = offset
    kernel = fused(layer) if source == "fused" else linear(source, layer, precision)
    found = compiled(kernel)((arrays[0], moves, *arrays[2:]), 8, layer.pitch)
    bias = arrays[3].astype(np.float64)
    right = np.where(bias >= 0, bias, bias * op.NEGATIVE_SLOPE)[None, :, None, None]
    assert np.abs(found - right).max() <= (1e-6 if precision == "fp32" else 1e-3)


@pytest.mark.parametrize(("source", "precision"), FORMS)
def test_kernels_keep_their_coordinates_in_float(compiled: Compile, source: str, precision: Precision) -> None:
    """In a wide image: a coordinate beyond 1024 in half would be off by up to half a pixel."""
    layer = Layer(8, 8, 1)
    arrays = Case(layer, 1, 2, 2048).arrays()
    right, _ = specification(arrays, layer)
    kernel = fused(layer) if source == "fused" else linear(source, layer, precision)
    x, moves, weight, bias = arrays
    dtype = DTYPES[precision]
    typed: Arrays = (x.astype(dtype), moves.astype(dtype), weight.astype(dtype), bias.astype(dtype))
    found = compiled(kernel)(typed, 1, layer.pitch)
    rms = np.sqrt(np.mean((found - right)[..., 1024:] ** 2))
    halved = arrays[1].astype(np.float64)
    column = np.arange(2048.0)
    for tap in range(9):  # what sampling at coordinates in half would see
        at = column + tap % 3 - 1 + halved[0, 2 * tap + 1]
        halved[0, 2 * tap + 1] += at.astype(np.float16) - at
    coarse = specification((arrays[0], halved, *arrays[2:]), layer)[0]
    of_half = np.sqrt(np.mean((coarse - right)[..., 1024:] ** 2))
    print(f"{source} {precision}, columns from 1024 on: RMS error {rms:.2e}, with coordinates in half {of_half:.2e}")
    assert 100 * rms < of_half
