"""The op's benchmark, all but the GPU: what it counts, what it runs, and that its JSON line is the table's."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import InputError, OutputError
from plugins import benchmark, contenders, cuda_driver, launch, nvrtc, op, reference
from plugins.benchmark import Case, Machine, Rates, Shape
from plugins.contenders import Contender, NvidiaPlugin, Tensors

ROOT = Path(__file__).resolve().parents[2]
# What the plugin's source is made of: device functions, the kernel, then host code that NVRTC cannot compile.
NVIDIA = """#include "common/checkMacrosPlugin.h"
template <typename T>
__device__ T twice(T v) { return v + v; }

template <typename T>
__global__ void modulatedDeformableIm2colGpuKernel(int32_t const n, T const* dataIm, T* dataCol) {
  int32_t const i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) dataCol[i] = twice(dataIm[i]);
}

template <typename T>
cudaError_t trtModulatedDeformableIm2col(T const* dataIm, cudaStream_t stream) { return cudaPeekAtLastError(); }
"""


def seconds(work: benchmark.Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


MACHINE = Machine("cpu", seconds, cache_bytes=2**14, about={"gpu": "none"}, copy_bytes=2**16, matrix_side=32)


def no_launch(
    kernel: launch.Kernel, x: Tensor, offset_mask: Tensor, weight: Tensor, bias: Tensor, y: Tensor, groups: int
) -> None:
    """`cuda_driver.launch` up to the launch."""
    cuda_driver.pack(kernel, x, offset_mask, weight, bias, y, groups)
    y.copy_(reference.modulated_deform_conv2d(x, offset_mask, weight, bias, groups))


def no_im2col(self: NvidiaPlugin, x: Tensor, offset: Tensor, mask: Tensor, columns: Tensor) -> None:
    samples = reference.sample_taps(x, offset, op.OFFSET_GROUPS) * mask.reshape(
        op.OFFSET_GROUPS, 1, op.TAPS, *x.shape[2:]
    )
    columns.copy_(samples.reshape(columns.shape))


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Path:
    (tmp_path / NvidiaPlugin.SOURCE).write_text(NVIDIA)
    return tmp_path


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "cuda_machine", lambda: MACHINE)
    monkeypatch.setattr(cuda_driver, "launch", no_launch)
    monkeypatch.setattr(NvidiaPlugin, "im2col", no_im2col)


def run(capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[str, dict[str, Any]]:
    defaults: dict[str, Any] = {
        "size": ["40x24"],
        "nvidia_plugin": None,
        "repeat": 2,
        "json_": None,
        "overwrite": False,
    }
    benchmark.main(**(defaults | options))
    *table, line = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return "\n".join(table), found


def test_a_layer_moves_its_tensors_once_and_multiplies_every_sample_by_every_output() -> None:
    shape = Shape(channels=64, height=10, width=20)
    samples = 200 * (64 + 216 + 64) + 64 * 64 * 9 + 64  # x, offset_mask, y, weight, bias
    assert shape.bytes_moved(2) == 2 * samples
    assert shape.flop == 2 * 200 * 9 * 64 * 64


def test_an_image_is_padded_and_halved_for_each_layer() -> None:
    found = [(s.channels, s.height, s.width) for s in benchmark.shapes(1921, 1080)]
    assert found == [(32, 1080, 1928), (64, 540, 964), (128, 270, 482), (256, 135, 241)]


def test_the_least_time_is_that_of_what_takes_longer() -> None:
    shape = Shape(32, 8, 8)
    moved, flop = shape.bytes_moved(2), shape.flop
    assert Rates(moved / 3, {"fp16": flop / 2}).seconds(shape, "fp16") == pytest.approx(3)
    assert Rates(moved / 3, {"fp16": flop / 4}).seconds(shape, "fp16") == pytest.approx(4)


def test_contenders_run_in_turn_on_one_set_after_another() -> None:
    order: list[str] = []

    def on(name: str) -> benchmark.Work:
        return lambda: order.append(name)

    works = [[on(f"{contender}{i}") for i in range(3)] for contender in "ab"]

    def clock(work: benchmark.Work) -> float:
        work()
        return float(len(order))

    taken = benchmark.in_turn(works, clock, repeat=3)
    assert order == ["a1", "b1", "a2", "b2", "a0", "b0", "a1", "b1", "a2", "b2"]
    assert taken == [[5, 7, 9], [6, 8, 10]]  # without the two rounds that warm up


@pytest.mark.parametrize("layout", benchmark.ORDERS)
@pytest.mark.parametrize("precision", benchmark.DTYPES)
def test_every_contender_computes_the_op(
    on_cpu: None, plugin_folder: Path, precision: launch.Precision, layout: launch.Layout
) -> None:
    case = Case(Shape(32, 6, 9), "smooth", precision, layout)
    x, offset_mask, weight, bias = tensors = benchmark.input_sets(case, MACHINE)[0]
    right = reference.modulated_deform_conv2d(*(t.float() for t in tensors))  # type: ignore[arg-type]
    found = contenders.contenders(32, 54, precision, layout, NvidiaPlugin(plugin_folder))
    names = {"linear": {"ours", "torchvision", "nvidia"}, "hwc8": {"ours", "torchvision"}}[layout]
    assert {c.by for c in found} == names - ({"ours"} if (precision, layout) == ("fp32", "hwc8") else set())
    for contender in found:
        y = contender.prepare((x, offset_mask, weight, bias))()
        assert y.dtype == benchmark.DTYPES[precision]
        assert y.is_contiguous(memory_format=benchmark.ORDERS[layout])
        assert (y - right).abs().max() < (1e-4 if precision == "fp32" else 0.02) * right.abs().max()


def test_input_sets_are_more_than_caches_hold_and_differ() -> None:
    case = Case(Shape(32, 16, 24), "smooth", "fp16", "hwc8")
    sets = benchmark.input_sets(case, MACHINE)
    each = sum(t.numel() * t.element_size() for t in sets[0])
    assert len(sets) * (each + 2 * 32 * 16 * 24) >= 4 * MACHINE.cache_bytes
    assert len({float(x.float().sum()) for x, *_ in sets}) == len(sets)
    assert len(benchmark.input_sets(case, Machine("cpu", seconds, 1, {}))) == 1


def test_smooth_offsets_change_little_from_pixel_to_pixel() -> None:
    steps = {}
    for kind in benchmark.OFFSETS:
        case = Case(Shape(32, 64, 64), kind, "fp32", "linear")
        offset = benchmark.input_sets(case, MACHINE)[0][1][:, : op.offset_channels(op.OFFSET_GROUPS)]
        assert 1 < float(offset.std()) < 4
        steps[kind] = float((offset[..., 1:] - offset[..., :-1]).std())
    assert steps["smooth"] < 0.3 < 3 < steps["noisy"]


def test_the_program_times_every_contender_at_every_layer(
    on_cpu: None, plugin_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "results" / "op.json"
    table, found = run(capsys, nvidia_plugin=plugin_folder, json_=target)
    assert json.loads(target.read_text()) == found
    assert found["gpu"] == "none"
    assert found["copy_gb_s"] > 0
    assert found["product_fp16_tflop_s"] >= 0
    rows = found["rows"]
    tiles = {c: len(launch.tiles(launch.Layer(c, c))) for c in nvrtc.SADNET_CHANNELS}
    assert len(rows) == sum(2 * (tiles[c] + 8) for c in tiles)  # 2 linear.cu, 4 of torchvision, 2 of NVIDIA
    for row in rows:
        assert 0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"]
        assert row["of_least"] == pytest.approx(row["least_ms"] / row["median_ms"], rel=0.02, abs=1e-4)
    stars = [(row["channels"], row["offsets"], row["precision"]) for row in rows if row["best"]]
    assert sorted(stars) == sorted((c, o, p) for c in tiles for o in benchmark.OFFSETS for p in benchmark.DTYPES)
    assert all(row["by"] == "ours" for row in rows if row["best"])
    assert "torchvision / ours" in table
    assert table.count("*") == len(stars)


def test_totals_are_of_the_fastest_at_each_layer() -> None:
    def row(by: str, channels: int, **median: float) -> benchmark.Row:
        return {"by": by, "channels": channels, "size": "8x8", "offsets": "noisy", "precision": "fp16"} | median

    rows = [row("ours", 32, median_ms=2.0), row("ours", 32, median_ms=1.0), row("ours", 64, median_ms=4.0)]
    assert benchmark.fastest(rows, "ours") == 5
    assert benchmark.fastest([*rows, row("torchvision", 32, median_ms=3.0)], "torchvision") is None
    assert benchmark.fastest([*rows, row("nvidia", 64)], "nvidia") is None


def test_what_needs_more_memory_than_there_is_gets_a_note_and_stops_no_other() -> None:
    def greedy(tensors: Tensors) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def modest(tensors: Tensors) -> Any:
        return lambda: tensors[0]

    found = [Contender("torchvision", "greedy", greedy), Contender("ours", "modest", modest)]
    rows = benchmark.time_contenders(found, Case(Shape(32, 2, 3), "noisy", "fp16", "linear"), MACHINE, 2)
    assert rows[0]["note"] == "out of memory"
    assert rows[1]["median_ms"] > 0
    rows = [row | {"size": "8x8", "least_ms": 1.0, "of_least": 0.5, "best": False} for row in rows]
    assert benchmark.details(rows).row_count == 2
    assert benchmark.totals(rows).row_count == 1


def test_nvidias_kernel_is_cut_from_its_source_and_compiles_in_both_types(plugin_folder: Path) -> None:
    plugin = NvidiaPlugin(plugin_folder)
    for precision in benchmark.DTYPES:
        compiled = nvrtc.compile_source("plugin.cu", plugin.kernel_source(precision), 80, {"int32_t": "int"})
        assert [usage.kernel for usage in compiled.usages] == ["im2col"]


def test_nvidias_kernel_is_left_out_where_its_32_bit_index_ends() -> None:
    plugin = NvidiaPlugin.__new__(NvidiaPlugin)
    for pixels, there in ((1920 * 1080, True), (3840 * 2160, False)):
        found = contenders.contenders(32, pixels, "fp16", "linear", plugin)
        assert ("nvidia" in {c.by for c in found}) == there


@pytest.mark.parametrize("text", [None, "", "template <typename T>\n__device__ T f();"])
def test_another_source_than_nvidias_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / NvidiaPlugin.SOURCE).write_text(text)
    with pytest.raises(InputError, match=f"expected a folder that holds {NvidiaPlugin.SOURCE}"):
        NvidiaPlugin(tmp_path)


def test_a_plugin_that_computes_something_else_is_refused(
    on_cpu: None, plugin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NvidiaPlugin(plugin_folder).verify("cpu")
    for value in (0.0, math.nan):
        monkeypatch.setattr(NvidiaPlugin, "im2col", lambda *arguments, value=value: arguments[-1].fill_(value))
        with pytest.raises(InputError, match="to compute the op"):
            NvidiaPlugin(plugin_folder).verify("cpu")


def test_existing_results_are_kept(on_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "op.json"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        run(capsys, json_=target)
    assert target.read_text() == "mine"


@pytest.mark.parametrize(("option", "value"), [("size", ["480"]), ("size", ["0x8"]), ("repeat", 0)])
def test_options_that_make_no_sense_are_refused(
    on_cpu: None, capsys: pytest.CaptureFixture[str], option: str, value: Any
) -> None:
    with pytest.raises(InputError, match=f"--{option}: expected"):
        run(capsys, **{option: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_line() -> None:
    command = [sys.executable, "plugins/benchmark.py", "--size", "480x320", "64x48"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: expected a CUDA GPU")
    assert result.stderr.count("\n") == 1


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    target = tmp_path / "op.json"
    command = [
        sys.executable,
        "plugins/benchmark.py",
        "--size",
        "64x48",
        "200x120",
        "--repeat",
        "3",
        "--json",
        str(target),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(target.read_text())
    assert found["gpu"]
    assert found["driver"]
    assert all(row["median_ms"] > 0 for row in found["rows"])
    assert {row["size"] for row in found["rows"]} == {"64x48", "200x120"}
