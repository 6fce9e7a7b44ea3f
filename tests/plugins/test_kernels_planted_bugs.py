"""Bugs planted in the kernels' source, one at a time: the checks of test_kernels_on_cpu.py find every one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugins import launch
from plugins.launch import Kernel, Layer, Tile
from tests.plugins.cpu_shim.build import NEEDS_COMPILER, Compiled, KernelError, build
from tests.plugins.cpu_shim.cases import Case, check

pytestmark = NEEDS_COMPILER


@dataclass(frozen=True)
class Target:
    """A kernel, and the files that bugs are planted in."""

    layer: Layer
    kernel: Kernel
    files: tuple[str, ...]

    def check(self, kernel: Compiled) -> None:
        """Runs all cases. Raises KernelError or AssertionError where one is wrong."""
        for case, seed in self.cases():
            found = kernel(case.arrays(), self.layer.offset_groups, self.layer.pitch, seed)
            check(found, case, rounds_samples=self.kernel.source == "fused.cu")

    def cases(self) -> Iterator[tuple[Case, int]]:
        """Cases, and seeds of the threads' order: a race shows in most orders, not in all."""
        precision: launch.Precision = "fp16" if self.kernel.source == "fused.cu" else "fp32"
        usual = Case(self.layer, 2, 7, 19, precision=precision)
        yield usual, 0
        yield Case(self.layer, 1, 5, 17, special=True, precision=precision), 0
        yield Case(self.layer, 1, 1, 2, precision=precision), 0
        for seed in range(1, 6):
            yield usual, seed


def fused(layer: Layer, tile: Tile) -> Target:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "tiles", lambda _: (tile,))
        (kernel,) = launch.kernels(layer, "fp16", "hwc8")
    return Target(layer, kernel, ("fused.cuh", "sampling.cuh"))


KEPT = fused(Layer(32, 32), Tile(warps=4, outputs=32, k_groups=1, stages=0, tiles=2, min_blocks=1))
STREAMED = fused(Layer(64, 64), Tile(warps=4, outputs=64, k_groups=1, stages=3, tiles=1, min_blocks=1))
SPLIT = fused(Layer(64, 32), Tile(warps=4, outputs=32, k_groups=2, stages=3, tiles=1, min_blocks=1))
PARTS = fused(Layer(40, 24, 8), Tile(warps=2, outputs=32, k_groups=1, stages=3, tiles=1, min_blocks=1))
PART = fused(Layer(24, 40, 3), Tile(warps=2, outputs=64, k_groups=1, stages=3, tiles=1, min_blocks=1))
LINEAR = Target(Layer(20, 40, 2), launch.kernels(Layer(20, 40, 2), "fp32", "linear")[0], ("linear.cu",))
TARGETS = {"kept": KEPT, "streamed": STREAMED, "split": SPLIT, "parts": PARTS, "part": PART, "linear": LINEAR}
"""Fused kernels whose weights stay, stream, and stream for two k groups; of one chunk and a part, and of a part of one
at an odd pitch; the linear one."""


@dataclass(frozen=True)
class Bug:
    """A snippet that the target's files have exactly once, and what stands there instead."""

    name: str
    target: Target
    snippet: str
    broken: str


BUGS = (
    # the threads' order
    Bug("weights are not waited for", STREAMED, "copies_wait<1>();", ""),
    Bug("weights are waited for a step late", STREAMED, "copies_wait<1>();", "copies_wait<2>();"),
    Bug("no barrier between steps", STREAMED, "__syncthreads();  // this step's weights", "// this step's weights"),
    Bug(
        "weights are ordered before the barrier",
        STREAMED,
        """\
        copies_wait<1>();
        __syncthreads();  // this step's weights are there for all, and all have read those of the step before
        if (step + 2 < steps) weights.copy(free, group_thread);
        copies_commit();""",
        """\
        if (step + 2 < steps) weights.copy(free, group_thread);
        copies_commit();
        copies_wait<2>();
        __syncthreads();""",
    ),
    Bug("weights that stay are not waited for", KEPT, "copies_wait<0>();", ""),
    Bug(
        "no barrier before weights that stay are read",
        KEPT,
        "copies_wait<0>();\n  __syncthreads();",
        "copies_wait<0>();",
    ),
    Bug("sums overwrite weights that are read", SPLIT, "__syncthreads();  // the weights, or", "// the weights, or"),
    Bug(
        "sums are read before they are written",
        SPLIT,
        "    __syncthreads();\n    if (k_group == 0)",
        "    if (k_group == 0)",
    ),
    Bug("a k group takes the other's weights", SPLIT, "shared + k_group * T::stages * stage_halves", "shared"),
    Bug("the stage to fill is not moved on", STREAMED, "free = now;", ""),
    # where to sample
    Bug("the last row is one too far", STREAMED, "max(h - 2, 0)", "max(h - 1, 0)"),
    Bug("the last column is one too near", STREAMED, "max(w - 2, 0)", "max(w - 3, 0)"),
    Bug(
        "one row has a second one",
        STREAMED,
        "image.has_second_row = h > 1 ? 1.f : -1e30f",
        "image.has_second_row = 1.f",
    ),
    Bug("coordinates are rounded to the nearest", STREAMED, "__fadd_rd(offset, FLOOR)", "(offset + FLOOR)"),
    Bug(
        "coordinates in half",
        STREAMED,
        "neighbours(offset.y, tap_x,",
        "neighbours(__half2float(__float2half_rn(tap_x + offset.y)) - tap_x, tap_x,",
    ),
    Bug("a far place weighs something", STREAMED, "__saturatef(1.f - fabsf(past))", "(1.f - fabsf(past))"),
    Bug("corners are swapped", STREAMED, "load(to.corner[1], at + image.right)", "load(to.corner[1], at + image.down)"),
    Bug("the mask of another group", STREAMED, "+ 2 * TAPS * group;", "+ TAPS * group;"),
    Bug("the tap's column", STREAMED, "kx = tap - 3 * ky;", "kx = tap - 2 * ky;"),
    Bug("an odd pitch is read as an even one", PART, "if constexpr (L::pitch % 2 == 0)", "if constexpr (true)"),
    # which number goes where
    Bug("outputs in another order", STREAMED, "(r & 1);", "(~r & 1);"),
    Bug(
        "pixels of an operand swapped",
        STREAMED,
        "a[0][2], a[1][2], a[0][3], a[1][3]",
        "a[1][2], a[0][2], a[1][3], a[0][3]",
    ),
    Bug("samples of a slot swapped", KEPT, "swapped = sample_at<L>(0, lane) == 1", "swapped = false"),
    Bug("weights stay at the chunk", PARTS, "channel += CHUNK;\n  }", "}"),
    Bug("no zeros for channels that the layer has not", PART, "*(uint4*)to = make_uint4(0, 0, 0, 0);", ";"),
    Bug("samples of channels that the layer has not", PART, "operand[k / 4][k % 4] = 0;", ";"),
    # what is stored
    Bug("columns beyond the image are stored", STREAMED, "column + 8 * p >= w || ", ""),
    Bug("rows beyond the image are stored", STREAMED, "k_group == 0 && row < h", "k_group == 0"),
    Bug(
        "outputs that the layer has not are stored", PART, "(L::outputs % T::outputs && output >= L::outputs)", "false"
    ),
    Bug("every k group stores", SPLIT, "k_group == 0 && row < h", "row < h"),
    # linear.cu
    Bug("columns are overwritten", LINEAR, "__syncthreads();  // the step before has been multiplied", ""),
    Bug("columns are read before they are written", LINEAR, "    }\n    __syncthreads();\n", "    }\n"),
    Bug("weights of the next group", LINEAR, "k < channels * TAPS && first_output + out < o", "first_output + out < o"),
    Bug("the last row is one too far in linear", LINEAR, "(float)(size - 2)", "(float)(size - 1)"),
    Bug("pixels beyond the row are stored", LINEAR, "if (i < pixels) to[i]", "to[i]"),
    Bug("outputs beyond the layer are stored", LINEAR, "if (out < o)", ""),
)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_without_a_bug_nothing_is_found(target: Target, tmp_path: Path) -> None:
    target.check(build(target.kernel, tmp_path))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    sources = {file: (launch.KERNELS / file).read_text() for file in bug.target.files}
    found = sum(source.count(bug.snippet) for source in sources.values())
    assert found == 1, f"expected this once in {bug.target.files}, found it {found} times: {bug.snippet!r}"
    broken = {file: source.replace(bug.snippet, bug.broken) for file, source in sources.items()}
    kernel = build(bug.target.kernel, tmp_path, broken)
    with pytest.raises((KernelError, AssertionError)):
        bug.target.check(kernel)
