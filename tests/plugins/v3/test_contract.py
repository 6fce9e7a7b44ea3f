"""What the plugin tells TensorRT: its name, attributes, types, shapes, formats and tactics."""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int32
from typing import Any

import pytest

from plugins import launch, op
from plugins.nvrtc import SADNET_CHANNELS
from tests.plugins.v3.driver import (
    ALL_FP16,
    ALL_FP32,
    BUILD,
    CHANNELS_LAST,
    CHAR_FIELD,
    FP16,
    FP32,
    INT32_FIELD,
    INVALID_ARGUMENT,
    RUNTIME,
    Create,
    Plugin,
    attributes,
    attributes_in,
    field,
    shapes_of,
)


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


@pytest.mark.parametrize("kind", [FP32, FP16])
def test_y_has_the_type_of_the_inputs(plugin: Plugin, kind: int) -> None:
    assert plugin.output_types([kind] * 4) == (0, kind)


def test_y_has_the_size_of_x_and_the_channels_of_weight(plugin: Plugin) -> None:
    shapes = shapes_of(2, 32, 48, 8, 5, 7)
    assert plugin.output_shape(shapes[:4]) == (0, list(shapes[4]))


def test_sizes_that_are_not_known_yet_go_through(plugin: Plugin) -> None:
    batch, height, width = -2, -3, -4  # labels, by which the harness knows dimensions again
    shapes = shapes_of(batch, 32, 32, 8, height, width)
    assert plugin.output_shape(shapes[:4]) == (0, [batch, 32, height, width])


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
