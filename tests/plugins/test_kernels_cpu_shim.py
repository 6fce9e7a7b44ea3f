"""The shim that kernels run under on a CPU multiplies as the ISA says, and reports what a GPU would not forgive."""

import numpy as np
import pytest

from plugins.launch import Kernel
from tests.plugins.cpu_shim.build import NEEDS_COMPILER, Array, Compiled, KernelError, build

pytestmark = NEEDS_COMPILER

THREADS = 64
HABITS = {  # good ones and bad ones, by name: what a kernel of 2 warps does
    "add": "y[t] = __fadd_rd(x[t], 12582912.f) - 12582912.f;",
    "saturate": "y[t] = __saturatef(x[t]);",
    "multiply": """
      // PTX ISA, m16n8k16: registers of lane 4 * g + m; each warp has its own two products
      const int g = t % 32 / 4, m = t % 4, warp = t / 32;
      const float* a = x + warp * 512;
      const float* b = weight + warp * 256;
      float sum[4] = {};
      for (int i = 0; i < 2; ++i, a += 256, b += 128) {
        const float *top = a + 16 * g + 2 * m, *bottom = top + 16 * 8, *left = b + 8 * 2 * m + g;
        mma_m16n8k16(sum, two(top, 1), two(bottom, 1), two(top + 8, 1), two(bottom + 8, 1), two(left, 8),
                     two(left + 8 * 8, 8));
      }
      float* to = y + warp * 128 + 8 * g + 2 * m;
      to[0] = sum[0], to[1] = sum[1], to[64] = sum[2], to[65] = sum[3];""",
    "order": "__shared__ int order; if (t == 0) order = 0; __syncthreads(); y[t] = order++;",
    "exchange": "__shared__ float s[64]; s[t] = t; __syncthreads(); y[t] = s[63 - t];",
    "exchange without a barrier": "__shared__ float s[64]; s[t] = t; y[t] = s[63 - t];",
    "read before written": "__shared__ float s[64]; if (t == 5) s[t] = 0; y[t] = s[t];",
    "copy": """__shared__ __align__(16) float s[256]; copy16(s + 4 * t, x + 4 * t); copies_commit(); copies_wait<0>();
      y[t] = s[4 * t];""",
    "copy not waited for": "__shared__ __align__(16) float s[256]; copy16(s + 4 * t, x + 4 * t); y[t] = s[4 * t];",
    "barrier that half misses": "if (t < 32) __syncthreads(); y[t] = 0;",
    "barrier of some": "float sum[4]; if (t < 40) __syncthreads(); else mma_m16n8k16(sum, 0, 0, 0, 0, 0, 0);",
    "product of half a warp": "float sum[4]; if (t % 2) mma_m16n8k16(sum, 0, 0, 0, 0, 0, 0);",
    "load beyond": "load4(x + w + (t == 7 ? 0 : -1));",
    "load before": "load2((const u16*)x - 1);",
    "load across": "load8(x + 1);",
    "copy to no shared memory": "copy16(y, x);",
    "store across": "__shared__ __align__(16) float s[8]; *(float4*)(s + t % 2) = float4(); y[t] = s[0];",
    "index beyond": "__shared__ float s[64]; s[t + 1] = 0; y[t] = s[0];",
    "store beyond": "y[t + 1] = 0;",
}
SOURCE = (
    """
#include <ptx.cuh>
static u32 two(const float* from, int step) {
  return __half_as_ushort(__float2half_rn(from[0])) | (u32)__half_as_ushort(__float2half_rn(from[step])) << 16;
}
extern "C" __global__ void modulated_deform_conv2d(const float* x, const float*, const float* weight, const float*, int,
                                                   int, int, int w, int, int habit, float* y) {
  const int t = threadIdx.x;
"""
    + "\n".join(f"  if (habit == {i}) {{ {code} }}" for i, code in enumerate(HABITS.values()))
    + "\n}\n"
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    kernel = Kernel("probe.cu", (("SADNET_TYPE", "float"),), THREADS, 2**20, 1, 1, 1)
    return build(kernel, tmp_path_factory.mktemp("probe"), {"probe.cu": SOURCE})


def run(probe: Compiled, habit: str, x: Array | None = None, weight: Array | None = None, seed: int = 0) -> Array:
    """y, as many as x, of one block with the habit."""
    x = np.arange(256, dtype=np.float32) if x is None else x.astype(np.float32)
    weight = np.zeros(1, np.float32) if weight is None else weight.astype(np.float32)
    inputs = (x.reshape(1, 1, 1, -1), np.zeros(1, np.float32), weight.reshape(1, -1, 1, 1), np.zeros(1, np.float32))
    return probe(inputs, list(HABITS).index(habit), seed=seed).ravel()[: min(x.size, THREADS)]


def test_products_are_those_of_the_matrices(probe: Compiled) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 16, 16)).astype(np.float16), rng.standard_normal((4, 16, 8)).astype(np.float16)
    inputs = (a.reshape(1, 1, 1, -1), np.zeros(1), b.reshape(1, -1, 1, 1), np.zeros(1))
    x, moves, weight, bias = (i.astype(np.float32) for i in inputs)
    for seed in range(5):
        found = probe((x, moves, weight, bias), list(HABITS).index("multiply"), seed=seed).ravel()[:256]
        products = a.astype(np.float64) @ b.astype(np.float64)
        right = np.stack((products[0] + products[1], products[2] + products[3]))
        assert np.abs(found.reshape(2, 16, 8) - right).max() <= 1e-5


def test_rounding_down_and_saturation(probe: Compiled) -> None:
    tiny = 2.0**-30
    x = np.array([0, -tiny, tiny, 1 - 2**-20, -1, -1 - 2**-20, 2047.99, -2048.01, 4e5 + 0.5, np.nan] + [0.5] * 54)
    found = run(probe, "add", x)
    assert np.isnan(found[9])
    assert (found[:9] == np.floor(x[:9].astype(np.float32))).all()
    assert run(probe, "saturate", np.array([np.nan, -1, 0.25, 7, np.inf, -np.inf] + [0] * 58))[:6].tolist() == [
        *(0, 0, 0.25, 1, 1, 0)
    ]


def test_the_order_of_threads_comes_from_the_seed(probe: Compiled) -> None:
    orders = [run(probe, "order", seed=seed) for seed in range(8)]
    assert all(sorted(order) == list(range(THREADS)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 8
    assert (run(probe, "order", seed=3) == orders[3]).all()
    assert len({order[:32].mean() > order[32:].mean() for order in orders}) == 2  # either warp may be ahead


@pytest.mark.parametrize("seed", range(4))
def test_what_is_waited_for_is_there(probe: Compiled, seed: int) -> None:
    assert (run(probe, "exchange", seed=seed) == np.arange(THREADS)[::-1]).all()
    assert (run(probe, "copy", seed=seed) == 4 * np.arange(THREADS)).all()


def test_what_is_not_waited_for_is_nan(probe: Compiled) -> None:
    for seed in range(4):
        assert np.isnan(run(probe, "exchange without a barrier", seed=seed)).any()
        assert np.isnan(run(probe, "read before written", seed=seed)).sum() == THREADS - 1
    late = {bool(np.isnan(run(probe, "copy not waited for", seed=seed)).all()) for seed in range(16)}
    assert late == {True, False}  # a copy may also be there at once


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        ("barrier that half misses", r"is stuck: 32 threads at __syncthreads, 0 at mma, 32 returned"),
        ("barrier of some", r"is stuck: 40 threads at __syncthreads, 24 at mma, 0 returned"),
        ("product of half a warp", r"is stuck: 0 threads at __syncthreads, 32 at mma, 32 returned"),
        ("load beyond", r"block \(0, 0, 0\), thread 7: a load of 4 bytes outside of every input"),
        ("load before", r"a load of 2 bytes outside of every input"),
        ("load across", r"a load of 8 bytes that is not aligned"),
        ("copy to no shared memory", r"a copy to outside of shared memory"),
        ("store across", r"probe\.cu:\d+: an access that is not aligned"),
        ("index beyond", r"thread 63: .*probe\.cu:\d+: an index outside of its array"),
        ("store beyond", r"a store outside of y"),
    ],
)
def test_what_a_kernel_must_not_do_is_reported(probe: Compiled, habit: str, message: str) -> None:
    x = np.zeros(THREADS if habit in ("store beyond", "load beyond") else 256)
    with pytest.raises(KernelError, match=message):
        run(probe, habit, x)
    assert (run(probe, "exchange") == np.arange(THREADS)[::-1]).all()  # and the next launch is as good as the first
