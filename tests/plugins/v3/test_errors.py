"""What the plugin refuses, with which code and line, and where its lines go."""

import re
from collections.abc import Callable
from ctypes import byref, c_float, c_int32, c_void_p
from typing import Any

import pytest

from plugins import launch
from tests.plugins.v3.driver import (
    ABSENT,
    ALL_FP16,
    ALL_FP32,
    BUILD,
    CHANNELS_LAST,
    CHW2,
    FINDS_NOTHING,
    FLOAT32_FIELD,
    FP16,
    FP32,
    INT8,
    INT32_FIELD,
    INVALID_ARGUMENT,
    LINEAR,
    THROWS,
    Create,
    Dims,
    Field,
    Fields,
    Plugin,
    Shape,
    describe,
    describe_dynamic,
    dims,
    field,
    shapes_of,
)


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


@pytest.mark.parametrize("types", [[FP32, FP32, FP16, FP32], [INT8] * 4, [FP16, FP16, FP16, FP32]])
def test_mixed_types_are_refused(plugin: Plugin, types: list[int]) -> None:
    assert plugin.output_types(types) == (INVALID_ARGUMENT, -1)
    found = ", ".join(map(str, types))
    assert f"expected inputs that are all fp32 (0) or all fp16 (1), found the types {found}" in plugin.log()


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
