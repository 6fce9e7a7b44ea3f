"""TensorRT's C++ plugin, driven as TensorRT drives it, by v3/harness.cpp, which needs TensorRT's public headers alone.

What it computes is compared with the specification where there is a GPU. Everything before the kernel's launch is
tested without, and that a launch without a GPU is an error and no crash.
"""

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref, c_float, c_int32, c_uint32, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins import launch, op
from plugins.nvrtc import SADNET_CHANNELS
from plugins.reference import modulated_deform_conv2d
from tests.plugins.v3.driver import (
    ABSENT,
    ALL_FP16,
    ALL_FP32,
    BUILD,
    CHANNELS_LAST,
    CHAR_FIELD,
    CHW2,
    COMBINATIONS,
    FAILED_EXECUTION,
    FINDS,
    FINDS_NOTHING,
    FLOAT32_FIELD,
    FP16,
    FP32,
    INT8,
    INT32_FIELD,
    INVALID_ARGUMENT,
    LINEAR,
    RUNTIME,
    THROWS,
    Combination,
    Dims,
    Field,
    Fields,
    Plugin,
    Shape,
    attributes,
    attributes_in,
    describe,
    describe_dynamic,
    dims,
    field,
    load,
    shapes_of,
)

MULTIARCH = f"{platform.machine()}-linux-gnu"
SOURCE = Path(__file__).resolve().parents[2] / "plugins" / "tensorrt_v3"

# ---- building


def configure(
    build: Path, *options: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"not built: {tool} absent")
    command = ["cmake", "-S", str(SOURCE), "-B", str(build), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def one_line(text: str) -> str:
    """CMake breaks a message into lines."""
    return " ".join(text.split())


def test_without_headers_one_line_names_the_package(tmp_path: Path) -> None:
    system = [
        folder / part for folder in map(Path, ("/usr/include", "/usr/local/include")) for part in (".", MULTIARCH)
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TENSORRT_ROOT"}
    result = configure(tmp_path, f"-DCMAKE_IGNORE_PATH={';'.join(map(str, system))}", environment=environment)
    assert result.returncode != 0
    assert "expected TensorRT's headers, found no NvInferRuntime.h: apt install libnvinfer-headers-dev, or set " in (
        one_line(result.stderr)
    )
    assert result.stderr.count("CMake Error") == 1


def test_without_nvcc_one_line_says_so(tmp_path: Path) -> None:
    headers = tmp_path / "tensorrt" / "include" / "NvInferRuntime.h"
    headers.parent.mkdir(parents=True)
    headers.touch()
    options = [f"-DTENSORRT_ROOT={tmp_path / 'tensorrt'}", "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND"]
    result = configure(tmp_path / "build", *options)
    assert result.returncode != 0
    assert "expected nvcc, found none: install the CUDA toolkit" in one_line(result.stderr)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libsadnet_plugin.so and libv3_harness.so, for one GPU; SADNET_V3_BUILD names one from elsewhere."""
    if "SADNET_V3_BUILD" in os.environ:
        return Path(os.environ["SADNET_V3_BUILD"]).resolve()
    folder = tmp_path_factory.mktemp("tensorrt_v3")
    architecture = "native" if torch.cuda.is_available() else "86"
    result = configure(folder, "-DHARNESS=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}")
    for missing, message in (("headers", "expected TensorRT's headers"), ("nvcc", "expected nvcc")):
        if message in one_line(result.stderr):
            pytest.skip(f"not built: {missing} absent")
    assert result.returncode == 0, result.stderr
    made = subprocess.run(["cmake", "--build", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning" not in made.stderr
    return folder


@pytest.fixture(scope="module")
def library(build: Path) -> Path:
    return build / "libsadnet_plugin.so"


@pytest.fixture(scope="module")
def harness(build: Path, library: Path) -> Any:
    return load(build / "libv3_harness.so", library)


Create = Callable[..., Plugin | None]


@pytest.fixture
def create(harness: Any) -> Iterator[Create]:
    """create(fields=attributes(), phase=BUILD, layer="dcn"): a Plugin, or None where the creator gives none."""

    def make(fields: Sequence[Field] | None = None, phase: int = BUILD, layer: str = "dcn") -> Plugin | None:
        given = attributes() if fields is None else fields
        collection = Fields(len(given), (Field * len(given))(*given))
        handle = harness.v3_create(layer.encode(), byref(collection), phase)
        return Plugin(harness, handle) if handle else None

    harness.v3_set_finder(FINDS)
    harness.v3_log()
    yield make
    harness.v3_set_finder(FINDS)


@pytest.fixture
def plugin(create: Create) -> Plugin:
    """With the op's default attributes."""
    made = create([])
    assert made is not None
    return made


@pytest.fixture
def make(create: Create) -> Callable[..., Plugin]:
    """make(groups=8, slope=0.2): a Plugin."""

    def made(groups: int = op.OFFSET_GROUPS, slope: float = op.NEGATIVE_SLOPE) -> Plugin:
        result = create(attributes(groups, slope))
        assert result is not None
        return result

    return made


# ---- the library


def symbols(library: Path, which: str) -> list[tuple[str, str]]:
    """(kind, name) of its dynamic symbols, without their versions."""
    lines = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    return [(kind, name.split("@")[0]) for *_, kind, name in map(str.split, lines.splitlines())]


def test_exports_what_tensorrt_looks_for_and_nothing_else(library: Path) -> None:
    assert symbols(library, "--defined-only") == [("T", "getCreators"), ("T", "setLoggerFinder")]


def test_needs_the_c_and_cpp_libraries_alone(library: Path) -> None:
    lines = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    unversioned = {name for _, name in map(str.split, lines.stdout.splitlines()) if "@" not in name}
    assert unversioned <= {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    versions = set(re.findall(r"@([A-Z]+)", lines.stdout))
    assert versions <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}
    dynamic = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {re.split(r"\.so|-", name)[0] for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic)}
    assert needed <= {"libc", "libm", "libdl", "libpthread", "librt", "libgcc_s", "libstdc++", "ld"}


def test_it_is_the_op_of_op_py(harness: Any, plugin: Plugin) -> None:
    handles: dict[str, tuple[Any, ...]] = {"v3_creator_": (), "v3_": (plugin.handle,)}
    for prefix, handle in handles.items():
        found = [getattr(harness, prefix + part)(*handle).decode() for part in ("namespace", "name", "version")]
        assert found == [op.DOMAIN, op.NAME, str(op.VERSION)]
    names = harness.v3_field_names().contents
    for groups, slope in (attributes_in(names.fields[: names.nbFields]), plugin.attributes()):
        assert (groups, slope) == (op.OFFSET_GROUPS, c_float(op.NEGATIVE_SLOPE).value)
    assert harness.v3_metadata(plugin.handle) == b"offset_groups=8 negative_slope=0.200000"


def test_has_the_three_capabilities(harness: Any, plugin: Plugin) -> None:
    found = [harness.v3_capability(plugin.handle, kind).decode() for kind in (0, 1, 2, 3)]
    assert found == ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME", ""]
    assert harness.v3_outputs(plugin.handle) == 1
    assert harness.v3_workspace(plugin.handle, None, 4, None, 1) == 0


REGISTRY = """
import ctypes, json, sys
import numpy as np
import tensorrt_lean as trt

registry, (path, *ways) = trt.get_plugin_registry(), sys.argv[1:]
results = []

def look() -> None:
    creator = registry.get_creator("ModulatedDeformConv2d", "1", "sadnet")
    if creator is None:
        results.append(None)
        return
    groups = trt.PluginField("offset_groups", np.array([4], np.int32), trt.PluginFieldType.INT32)
    node = trt.PluginField("aot", np.array([1], np.int32), trt.PluginFieldType.INT32)
    made = creator.create_plugin("dcn", trt.PluginFieldCollection([groups, node]), trt.TensorRTPhase.BUILD)
    results.append([creator.name, creator.plugin_version, creator.plugin_namespace, made is not None])

look()
if "open" in ways:
    library = ctypes.CDLL(path)
    look()
if "load" in ways:
    handle = registry.load_library(path)
    assert handle is not None
    look()
    registry.deregister_library(handle)
    look()
print(json.dumps(results))
"""


@pytest.mark.parametrize("ways", [["load"], ["open"], ["open", "load"]], ids=" and ".join)
def test_the_real_registry_takes_it(library: Path, ways: list[str]) -> None:
    """TensorRT's own, of its lean runtime: by its loader, and opened by a program as Triton does."""
    if find_spec("tensorrt_lean") is None:
        pytest.skip("tensorrt-lean is not installed")
    command = [sys.executable, "-c", REGISTRY, str(library), *ways]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    there = [op.NAME, str(op.VERSION), op.DOMAIN, True]
    found = {"load": [None, there, None], "open": [None, there], "open load": [None, there, there, None]}
    assert json.loads(result.stdout) == found[" ".join(ways)]


# ---- making one


@pytest.mark.parametrize("phase", [BUILD, RUNTIME])
def test_attributes_go_through_an_engine(create: Create, phase: int) -> None:
    first = create(attributes(4, 0.5), phase)
    assert first is not None
    groups, slope = first.attributes()
    again = create(attributes(groups, slope), RUNTIME)
    assert again is not None
    assert again.attributes() == (4, 0.5)


def test_other_fields_of_an_onnx_node_are_passed_over(create: Create) -> None:
    others = [
        field("plugin_namespace", ctypes.create_string_buffer(b"sadnet"), CHAR_FIELD, 6),
        field("plugin_version", ctypes.create_string_buffer(b"1"), CHAR_FIELD, 1),
        field("aot", c_int32(1), INT32_FIELD),
        field("unheard_of", None, INT32_FIELD, 0),
    ]
    made = create([*others, *attributes(2, 1.0)])
    assert made is not None
    assert made.attributes() == (2, 1.0)
    assert made.log() == ""


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (field("offset_groups", c_int32(0), INT32_FIELD), "expected offset_groups of 1 or more, found 0"),
        (field("offset_groups", c_int32(-8), INT32_FIELD), "expected offset_groups of 1 or more, found -8"),
        (field("offset_groups", c_float(8), FLOAT32_FIELD), "offset_groups as one int32, found 1 of type 1"),
        (field("offset_groups", (c_int32 * 2)(8, 8), INT32_FIELD, 2), "as one int32, found 2 of type 5"),
        (field("offset_groups", None, INT32_FIELD), "found 1 of type 5 at a null pointer"),
        (field("negative_slope", c_int32(1), INT32_FIELD), "negative_slope as one float32, found 1 of type 5"),
        (field("negative_slope", c_float(float("nan")), FLOAT32_FIELD), "expected a finite negative_slope, found nan"),
        (field("negative_slope", c_float(float("inf")), FLOAT32_FIELD), "expected a finite negative_slope, found inf"),
    ],
)
def test_attributes_that_no_layer_has_are_refused(create: Create, harness: Any, bad: Field, message: str) -> None:
    assert create([bad], layer="up3") is None
    log = harness.v3_log().decode()
    assert log.startswith("error: sadnet::ModulatedDeformConv2d: createPlugin: layer up3: expected")
    assert message in log


def test_null_fields_are_refused(create: Create, harness: Any) -> None:
    assert harness.v3_create(None, None, BUILD) is None
    assert harness.v3_create(b"", byref(Fields(2, None)), BUILD) is None
    lines = harness.v3_log().decode().splitlines()
    assert lines == ["error: sadnet::ModulatedDeformConv2d: createPlugin: expected fields, found a null pointer"] * 2


@pytest.mark.parametrize("copy", ["clone", "attach"])
def test_a_copy_is_independent_of_its_original(harness: Any, create: Create, copy: str) -> None:
    original = create(attributes(4, 0.25))
    assert original is not None
    kept = original.serialized()
    shapes = shapes_of(1, 8, 8, 4, 2, 2)
    assert original.set_tactic(7) == 0
    copied = Plugin(harness, getattr(harness, f"v3_{copy}")(original.handle))
    assert not {field.data for field in kept} & {field.data for field in copied.serialized()}
    del original
    assert copied.attributes() == (4, 0.25)
    assert copied.enqueue(shapes, ALL_FP32, [64] * 5) == INVALID_ARGUMENT
    assert "expected a tactic up to 0, found 7" in copied.log()


# ---- shapes and types


@pytest.mark.parametrize("kind", [FP32, FP16])
def test_y_has_the_type_of_the_inputs(plugin: Plugin, kind: int) -> None:
    assert plugin.output_types([kind] * 4) == (0, kind)


@pytest.mark.parametrize("types", [[FP32, FP32, FP16, FP32], [INT8] * 4, [FP16, FP16, FP16, FP32]])
def test_mixed_types_are_refused(plugin: Plugin, types: list[int]) -> None:
    assert plugin.output_types(types) == (INVALID_ARGUMENT, -1)
    found = ", ".join(map(str, types))
    assert f"expected inputs that are all fp32 (0) or all fp16 (1), found the types {found}" in plugin.log()


def test_y_has_the_size_of_x_and_the_channels_of_weight(plugin: Plugin) -> None:
    shapes = shapes_of(2, 32, 48, 8, 5, 7)
    assert plugin.output_shape(shapes[:4]) == (0, list(shapes[4]))


def test_sizes_that_are_not_known_yet_go_through(plugin: Plugin) -> None:
    batch, height, width = -2, -3, -4  # labels, by which the harness knows dimensions again
    shapes = shapes_of(batch, 32, 32, 8, height, width)
    assert plugin.output_shape(shapes[:4]) == (0, [batch, 32, height, width])


def with_shape(index: int, shape: Shape) -> list[Shape]:
    shapes: list[Shape] = list(shapes_of(1, 32, 32, 8, 5, 7))
    shapes[index] = shape
    return shapes


BAD_SHAPES = [
    (with_shape(0, (1, 32, 5)), "expected x with 4 dimensions, found shape (1, 32, 5)"),
    (with_shape(3, (1, 32)), "expected bias with 1 dimensions, found shape (1, 32)"),
    (with_shape(0, (1, 36, 5, 7)), "expected offset_groups that divide the 36 channels of x, found 8"),
    (
        with_shape(1, (1, 215, 5, 7)),
        "expected offset_mask of shape (1, 216, 5, 7) for x of (1, 32, 5, 7), found (1, 215, 5, 7)",
    ),
    (with_shape(1, (2, 216, 5, 7)), "found (2, 216, 5, 7)"),
    (with_shape(1, (1, 216, 5, 8)), "found (1, 216, 5, 8)"),
    (
        with_shape(2, (32, 16, 3, 3)),
        "expected weight of shape (32, 32, 3, 3) for x of (1, 32, 5, 7), found (32, 16, 3, 3)",
    ),
    (with_shape(2, (32, 32, 1, 3)), "expected weight of shape (32, 32, 3, 3)"),
    (with_shape(3, (31,)), "expected bias of shape (32) for x of (1, 32, 5, 7), found (31)"),
]


@pytest.mark.parametrize(("shapes", "message"), BAD_SHAPES)
def test_shapes_that_do_not_fit_are_refused_everywhere(plugin: Plugin, shapes: list[Shape], message: str) -> None:
    calls: dict[str, Callable[[], int]] = {
        "getOutputShapes": lambda: plugin.output_shape(shapes[:4])[0],
        "configurePlugin": lambda: plugin.configure(shapes, ALL_FP16),
        "onShapeChange": lambda: plugin.shape_change(shapes, ALL_FP16),
        "enqueue": lambda: plugin.enqueue(shapes, ALL_FP16, [64] * 5),
    }
    for method, call in calls.items():
        assert call() == INVALID_ARGUMENT
        log = plugin.log()
        assert log.startswith(f"error: sadnet::ModulatedDeformConv2d: {method}: expected ")
        assert message in log
        assert log.count("\n") == 1


def test_a_wrong_y_is_refused(plugin: Plugin) -> None:
    assert plugin.shape_change(with_shape(4, (1, 32, 5, 6)), ALL_FP32) == INVALID_ARGUMENT
    assert "expected y of shape (1, 32, 5, 7) for x of (1, 32, 5, 7), found (1, 32, 5, 6)" in plugin.log()


def test_when_it_runs_all_sizes_are_known(plugin: Plugin) -> None:
    shapes = shapes_of(1, 32, 32, 8, -1, 7)
    assert plugin.configure(shapes, CHANNELS_LAST) == 0
    assert plugin.shape_change(shapes, CHANNELS_LAST) == INVALID_ARGUMENT
    assert "expected sizes that are known, found x of (1, 32, ?, 7)" in plugin.log()


def test_what_the_kernels_cannot_count_is_refused(plugin: Plugin) -> None:
    for n, h, w in ((65536, 1, 1), (1, 65536, 65536), (1, 1, 2**31)):
        assert plugin.shape_change(shapes_of(n, 8, 8, 8, h, w), ALL_FP16) == INVALID_ARGUMENT
        assert "expected at most 65535 images of 2147483647 pixels, and a weight of 2147483647 values" in plugin.log()
    assert plugin.shape_change(shapes_of(1, 2**14, 2**14, 8, 1, 1), ALL_FP32) == INVALID_ARGUMENT
    assert plugin.shape_change(shapes_of(1, 2**13, 2**13, 8, 1, 1), ALL_FP32) == 0
    assert plugin.shape_change(shapes_of(65535, 32, 32, 8, 8191, 8192), CHANNELS_LAST) == 0
    assert plugin.shape_change(shapes_of(1, 32, 32, 8, 8192, 8192), CHANNELS_LAST) == INVALID_ARGUMENT
    assert plugin.shape_change(shapes_of(1, 32, 32, 8, 8192, 8192), ALL_FP16) == 0


# ---- formats and tactics


@pytest.mark.parametrize("channels", SADNET_CHANNELS)
def test_sadnets_layers_have_three_formats(plugin: Plugin, channels: int) -> None:
    expected = {ALL_FP32, ALL_FP16, CHANNELS_LAST}
    assert plugin.combinations(shapes_of(1, channels, channels, 8, 40, 60)) == expected
    dynamic, largest = (shapes_of(-1, channels, channels, 8, *size) for size in ((-1, -1), (1088, 1920)))
    assert plugin.combinations(dynamic, largest) == expected
    assert plugin.log() == ""


@pytest.mark.parametrize(
    ("channels", "outputs", "groups"), [(32, 64, 8), (32, 32, 4), (24, 40, 3), (40, 40, 8), (-1, 32, 8), (7, 5, 1)]
)
def test_other_layers_are_linear(make: Callable[..., Plugin], channels: int, outputs: int, groups: int) -> None:
    made = make(groups)
    assert made.combinations(shapes_of(1, channels, outputs, groups, 40, 60)) == {ALL_FP32, ALL_FP16}
    assert made.log() == ""


def test_an_image_beyond_the_fused_kernels_reach_is_linear(plugin: Plugin) -> None:
    dynamic, largest = (shapes_of(1, 32, 32, 8, *size) for size in ((-1, -1), (8192, 8192)))
    assert plugin.combinations(dynamic, largest) == {ALL_FP32, ALL_FP16}


@pytest.mark.parametrize("channels", SADNET_CHANNELS)
def test_a_tactic_for_every_tile(plugin: Plugin, channels: int) -> None:
    shapes = shapes_of(1, channels, channels, 8, -1, -1)
    assert plugin.configure(shapes, CHANNELS_LAST) == 0
    tiles = launch.tiles(launch.Layer(channels, channels))
    assert plugin.tactics() == list(range(1, len(tiles) + 1))
    for linear in (ALL_FP32, ALL_FP16):
        assert plugin.configure(shapes, linear) == 0
        assert plugin.tactics() == []


def test_a_combination_that_was_not_offered_is_refused(plugin: Plugin) -> None:
    shapes = shapes_of(1, 32, 32, 8, 4, 4)
    bias_in_fp32 = (*CHANNELS_LAST[:3], (FP32, LINEAR), CHANNELS_LAST[4])
    for call in (plugin.configure, plugin.shape_change):
        assert call(shapes, bias_in_fp32) == INVALID_ARGUMENT
        assert (
            "found x fp16 HWC8, offset_mask fp16 HWC8, weight fp16 HWC8, bias fp32 LINEAR, y fp16 HWC8" in plugin.log()
        )
        assert call(shapes, ((INT8, CHW2),) * 5) == INVALID_ARGUMENT
        assert "found x type 2 format 1" in plugin.log()
    assert plugin.configure(shapes_of(1, 32, 64, 8, 4, 4), CHANNELS_LAST) == INVALID_ARGUMENT


def test_tactics_are_checked(plugin: Plugin) -> None:
    shapes, memory = shapes_of(1, 32, 32, 8, 4, 4), [64] * 5
    assert plugin.set_tactic(-1) == INVALID_ARGUMENT
    assert "expected a tactic of 0 or more, found -1" in plugin.log()
    tiles = len(launch.tiles(launch.Layer(32, 32)))
    assert plugin.set_tactic(tiles + 1) == 0  # the layer is not known yet
    assert plugin.enqueue(shapes, CHANNELS_LAST, memory) == INVALID_ARGUMENT
    assert f"expected a tactic up to {tiles}, found {tiles + 1}: build the engine anew" in plugin.log()


# ---- null pointers, wrong counts, loggers


def test_null_pointers_are_errors(harness: Any, plugin: Plugin) -> None:
    shapes = shapes_of(1, 32, 32, 8, 4, 4)
    handle, static, dynamic = plugin.handle, describe(shapes, ALL_FP32), describe_dynamic(shapes, ALL_FP32)
    array, null, room = (Dims * 4)(*map(dims, shapes[:4])), None, c_int32()
    memory = (c_void_p * 4)(*[64] * 4)
    calls: list[Callable[[], int]] = [
        lambda: harness.v3_output_types(handle, null, 4, byref(room), 1),
        lambda: harness.v3_output_types(handle, (c_int32 * 4)(), 4, null, 1),
        lambda: harness.v3_output_shapes(handle, null, 4, byref(Dims()), 1),
        lambda: harness.v3_output_shapes(handle, array, 4, null, 1),
        lambda: harness.v3_configure(handle, null, 4, byref(dynamic[4]), 1),
        lambda: harness.v3_configure(handle, dynamic, 4, null, 1),
        lambda: harness.v3_shape_change(handle, null, 4, byref(static[4]), 1),
        lambda: harness.v3_shape_change(handle, static, 4, null, 1),
        lambda: harness.v3_enqueue(handle, null, byref(static[4]), memory, memory, null),
        lambda: harness.v3_enqueue(handle, static, null, memory, memory, null),
        lambda: harness.v3_enqueue(handle, static, byref(static[4]), null, memory, null),
        lambda: harness.v3_enqueue(handle, static, byref(static[4]), memory, null, null),
        lambda: harness.v3_enqueue(handle, static, byref(static[4]), (c_void_p * 4)(64, 64, 0, 64), memory, null),
        lambda: harness.v3_enqueue(handle, static, byref(static[4]), memory, (c_void_p * 1)(0), null),
    ]
    for call in calls:
        assert call() == INVALID_ARGUMENT
        assert re.fullmatch(
            r"error: sadnet::ModulatedDeformConv2d: \w+: expected .*, found a null pointer\n", plugin.log()
        )
    assert not harness.v3_supports(handle, 0, null, 4, 1)
    assert plugin.log().endswith(
        "supportsFormatCombination: expected descriptions of the tensors, found a null pointer\n"
    )
    assert plugin.configure(shapes_of(1, 32, 32, 8, 4, 4), CHANNELS_LAST) == 0
    assert harness.v3_tactics(handle, null, harness.v3_tactic_count(handle)) == INVALID_ARGUMENT
    assert plugin.log().endswith("getValidTactics: expected room for the tactics, found a null pointer\n")


def test_wrong_counts_are_errors(harness: Any, plugin: Plugin) -> None:
    shapes = shapes_of(1, 32, 32, 8, 4, 4)
    handle, static, dynamic = plugin.handle, describe(shapes, ALL_FP32), describe_dynamic(shapes, ALL_FP32)
    array, room = (Dims * 4)(*map(dims, shapes[:4])), c_int32()
    calls: list[Callable[[], int]] = [
        lambda: harness.v3_output_types(handle, (c_int32 * 4)(), 3, byref(room), 1),
        lambda: harness.v3_output_shapes(handle, array, 3, byref(Dims()), 1),
        lambda: harness.v3_configure(handle, dynamic, 3, byref(dynamic[4]), 1),
        lambda: harness.v3_shape_change(handle, static, 3, byref(static[4]), 1),
    ]
    for call in calls:
        assert call() == INVALID_ARGUMENT
        assert plugin.log().endswith("expected 4 inputs and 1 output, found 3 and 1\n")
    for position in (-1, 5):
        assert not harness.v3_supports(handle, position, dynamic, 4, 1)
        assert plugin.log().endswith(f"expected a position from 0 to 4, found {position}\n")
    assert not harness.v3_supports(handle, 0, dynamic, 5, 1)
    assert plugin.log().endswith("expected 4 inputs and 1 output, found 5 and 1\n")
    assert plugin.configure(shapes, CHANNELS_LAST) == 0
    assert harness.v3_tactics(handle, (c_int32 * 1)(), 1) == INVALID_ARGUMENT
    assert plugin.log().endswith("tactics, found 1\n")


@pytest.mark.parametrize("finder", [FINDS_NOTHING, THROWS, ABSENT])
def test_without_a_logger_lines_go_to_standard_error(
    harness: Any, plugin: Plugin, finder: int, capfd: pytest.CaptureFixture[str]
) -> None:
    harness.v3_set_finder(finder)
    assert plugin.set_tactic(-1) == INVALID_ARGUMENT
    assert plugin.log() == ""
    line = "sadnet::ModulatedDeformConv2d: setTactic: expected a tactic of 0 or more, found -1\n"
    assert capfd.readouterr().err == line


# ---- running


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.sampled_from(SADNET_CHANNELS),
    n=st.integers(1, 65535),
    h=st.integers(1, 20000),
    w=st.integers(1, 20000),
)
def test_the_grid_is_that_of_launch_py(harness: Any, channels: int, n: int, h: int, w: int) -> None:
    layer = launch.Layer(channels, channels)
    for tile, kernel in zip(launch.tiles(layer), launch.kernels(layer, "fp16", "hwc8"), strict=True):
        grid = (c_uint32 * 3)()
        harness.v3_grid(n, h, w, channels, kernel.width, kernel.height, kernel.tiles, tile.outputs, grid)
        assert tuple(grid) == kernel.grid(n, h, w)


def test_memory_that_is_not_aligned_is_refused(plugin: Plugin) -> None:
    shapes = shapes_of(1, 32, 32, 8, 4, 4)
    for combination, address, bytes_ in ((CHANNELS_LAST, 72, 16), (ALL_FP16, 65, 2), (ALL_FP32, 66, 4)):
        assert plugin.enqueue(shapes, combination, [64, 64, 64, 64, address]) == INVALID_ARGUMENT
        assert f"expected y at a multiple of {bytes_} bytes, found it elsewhere" in plugin.log()


@pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)
def test_no_pixels_are_no_work(plugin: Plugin, combination: Combination) -> None:
    for n, h, w in ((0, 4, 4), (1, 0, 4), (1, 4, 0)):
        shapes = shapes_of(n, 32, 32, 8, h, w)
        assert plugin.shape_change(shapes, combination) == 0
        assert plugin.enqueue(shapes, combination, [0] * 5) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
@pytest.mark.parametrize("channels", SADNET_CHANNELS)
@pytest.mark.parametrize("combination", COMBINATIONS.values(), ids=COMBINATIONS)
def test_without_a_gpu_a_launch_is_an_error(plugin: Plugin, channels: int, combination: Combination) -> None:
    shapes = shapes_of(1, channels, channels, 8, 20, 30)
    assert plugin.configure(shapes, combination) == 0
    assert plugin.shape_change(shapes, combination) == 0
    for tactic in plugin.tactics() or [0]:
        assert plugin.set_tactic(tactic) == 0
        assert plugin.enqueue(shapes, combination, [64] * 5) == FAILED_EXECUTION
        assert "enqueue: the kernel's launch failed: cudaError" in plugin.log()


Operands = Callable[..., tuple[torch.Tensor, ...]]
LAYERS = [(c, c, 8) for c in SADNET_CHANNELS] + [(24, 40, 3), (7, 5, 1), (64, 96, 4)]
Case = tuple[tuple[int, int, int], tuple[int, int, int], float]
"""Channels, outputs and offset groups; batch, height and width; negative slope."""


def compute(made: Plugin, operands: Operands, case: Case, device: str) -> None:
    """Enqueue every format that TensorRT may choose and every tactic of it; compare with the specification in fp64.

    fp16: an error of at most twice that of the specification run in fp16, which rounds the samples too. On a CPU the
    launch must fail, and what the specification gives in the tensors' type stands in for it.
    """
    (channels, outputs, groups), (n, h, w), slope = case
    shapes = shapes_of(n, channels, outputs, groups, h, w)
    for combination in sorted(made.combinations(shapes)):
        dtype = torch.float16 if combination[0][0] == FP16 else torch.float32
        layout = torch.channels_last if combination == CHANNELS_LAST else torch.contiguous_format
        x, offset_mask, weight, bias = (t.to(dtype) for t in operands(n, channels, groups, outputs, h, w))
        right = modulated_deform_conv2d(x.double(), offset_mask.double(), weight.double(), bias.double(), groups, slope)
        rounded = modulated_deform_conv2d(x, offset_mask, weight, bias, groups, slope)
        bound = 1e-5 * right.abs().max().item() + 2 * (rounded - right).abs().max().item()
        inputs = [t.to(device, memory_format=layout) for t in (x, offset_mask, weight)] + [bias.to(device)]
        assert made.configure(shapes, combination) == 0
        for tactic in made.tactics() or [0]:
            y = torch.full(shapes[4], torch.nan, dtype=dtype, device=device).to(memory_format=layout)
            assert made.shape_change(shapes, combination) == 0
            assert made.set_tactic(tactic) == 0
            pointers = [t.data_ptr() for t in (*inputs, y)]
            if device == "cuda":
                stream = torch.cuda.current_stream().cuda_stream
                assert made.enqueue(shapes, combination, pointers, stream) == 0, made.log()
                torch.cuda.synchronize()
            else:
                assert made.enqueue(shapes, combination, pointers) == FAILED_EXECUTION
                y.copy_(rounded)
            error = (y.cpu().double() - right).abs().max().item()
            print(f"{combination[0]} tactic {tactic}: max error {error:.2e}, bound {bound:.2e}")
            assert error <= bound


@pytest.mark.gpu
@pytest.mark.parametrize("slope", [op.NEGATIVE_SLOPE, 1.0])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 37, 53), (1, 64, 96)], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_computes_the_specification(
    make: Callable[..., Plugin],
    operands: Operands,
    layer: tuple[int, int, int],
    size: tuple[int, int, int],
    slope: float,
) -> None:
    compute(make(layer[2], slope), operands, (layer, size, slope), "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
@pytest.mark.parametrize("layer", [LAYERS[0], *LAYERS[4:]], ids=str)
def test_that_test_without_its_gpu(
    make: Callable[..., Plugin], operands: Operands, layer: tuple[int, int, int]
) -> None:
    """So that its own faults show: all of it but the launch."""
    compute(make(layer[2], 0.5), operands, (layer, (2, 9, 7), 0.5), "cpu")
