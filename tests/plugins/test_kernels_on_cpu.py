"""The CUDA kernels' own source, compiled by g++ under a small shim and run on the CPU, against the specification."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plugins import op
from plugins.nvrtc import KERNELS, defines
from plugins.reference import modulated_deform_conv2d

Array = NDArray[Any]
Kernel = Callable[[list[Array], int], Array]
DTYPES = {"fp32": np.float32, "fp16": np.float16}
MARGIN = 512
"""Samples of NaN before and after every input, and of a mark around the output: a stray read or write shows."""
MARK = 7.5

LAUNCH = """
#include "plain.cu"
extern "C" void launch(int blocks, int threads, const T* x, const T* offset_mask, const T* weight, const T* bias, int n,
                       int c, int h, int w, int o, int groups, T* y) {
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < (unsigned)blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < (unsigned)threads; ++threadIdx.x)
      modulated_deform_conv2d(x, offset_mask, weight, bias, n, c, h, w, o, groups, y);
}
"""


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kernel(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:  # CI has one; a user's machine need not
        pytest.skip("no C++ compiler here: apt-get install g++")
    folder = tmp_path_factory.mktemp(precision)
    source, library = folder / "launch.cpp", folder / "launch.so"
    source.write_text(LAUNCH)
    includes = [f"-I{Path(__file__).parent / 'cpu_shim'}", f"-I{KERNELS}"]
    macros = [f"-D{name}={value}" for name, value in defines(precision).items()]
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-shared", "-fPIC", *includes, *macros, str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    launch = ctypes.CDLL(str(library)).launch

    def run(inputs: list[Array], groups: int) -> Array:
        (n, c, h, w), o = inputs[0].shape, len(inputs[3])
        fenced = [np.pad(a.ravel(), MARGIN, constant_values=np.nan) for a in inputs]
        size = n * o * h * w
        out = np.full(size + 2 * MARGIN, MARK, inputs[0].dtype)
        out[MARGIN:-MARGIN] = np.nan
        pointers = [ctypes.c_void_p(a.ctypes.data + MARGIN * a.itemsize) for a in (*fenced, out)]
        launch(-(-size // 128), 128, *pointers[:4], n, c, h, w, o, groups, pointers[4])
        assert (out[:MARGIN] == MARK).all()
        assert (out[-MARGIN:] == MARK).all()
        return out[MARGIN:-MARGIN].reshape(n, o, h, w)

    return run


def inputs(seed: int, n: int, c: int, o: int, groups: int, h: int, w: int, reach: float, dtype: type) -> list[Array]:
    rng = np.random.default_rng(seed)
    shapes = ((n, c, h, w), (n, op.offset_mask_channels(groups), h, w), (o, c, 3, 3), (o,))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    arrays[1] *= reach
    arrays[2] /= 3 * c**0.5
    return [a.astype(dtype) for a in arrays]


def expected(arrays: list[Array], groups: int) -> Array:
    x, offset_mask, weight, bias = (torch.from_numpy(a.astype(np.float64)) for a in arrays)
    result: Array = modulated_deform_conv2d(x, offset_mask, weight, bias, groups).numpy()
    return result


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3),
    channels_a_group=st.integers(1, 3),
    o=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 8]),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    reach=st.sampled_from([0.0, 0.7, 4.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_plain_kernel_is_the_specification(
    kernel: Kernel,
    precision: str,
    n: int,
    channels_a_group: int,
    o: int,
    groups: int,
    h: int,
    w: int,
    reach: float,
    seed: int,
) -> None:
    arrays = inputs(seed, n, channels_a_group * groups, o, groups, h, w, reach, DTYPES[precision])
    found, right = kernel(arrays, groups).astype(np.float64), expected(arrays, groups)
    tolerance = 1e-4 if precision == "fp32" else 2.0**-11 * np.abs(right).max() + 1e-4  # one rounding of the output
    assert np.abs(found - right).max() <= tolerance


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 3e4, -3e4])
def test_a_place_that_is_nowhere_gives_zero(kernel: Kernel, precision: str, offset: float) -> None:
    arrays = inputs(0, 1, 8, 4, 8, 5, 6, reach=1, dtype=DTYPES[precision])
    arrays[1][:, : op.offset_channels(8)] = offset
    bias = arrays[3].astype(np.float64)
    right = np.where(bias >= 0, bias, bias * op.NEGATIVE_SLOPE)[None, :, None, None]
    assert np.abs(kernel(arrays, 8) - right).max() <= (1e-6 if precision == "fp32" else 2e-3)


def test_half_kernel_keeps_its_coordinates_in_float(kernel: Kernel, precision: str) -> None:
    """In a wide image: a coordinate beyond 1024 in half would be off by up to half a pixel."""
    arrays = inputs(1, 1, 2, 2, 1, 2, 2048, reach=1, dtype=np.float16)
    right = expected(arrays, 1)
    found = kernel([a.astype(DTYPES[precision]) for a in arrays], 1)
    rms = np.sqrt(np.mean((found - right)[..., 1024:] ** 2))
    halved = [a.astype(np.float64) for a in arrays]
    column = np.arange(2048.0)
    for tap in range(9):  # what sampling at coordinates in half would see
        at = column + tap % 3 - 1 + halved[1][0, 2 * tap + 1]
        halved[1][0, 2 * tap + 1] += at.astype(np.float16) - at
    coarse = np.sqrt(np.mean((expected(halved, 1) - right)[..., 1024:] ** 2))
    assert 10 * rms < coarse
