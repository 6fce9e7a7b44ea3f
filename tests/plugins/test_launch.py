"""Which kernel runs a layer, and that its launch covers every sample of y once."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from plugins import launch
from plugins.launch import Layer

ROOT = Path(__file__).resolve().parent.parent.parent
SADNET = [Layer(c, c) for c in (32, 64, 128, 256)]


@pytest.mark.parametrize("channels", [32, 64, 128, 256])
def test_tiles_stand_in_the_order_that_was_measured(channels: int) -> None:
    """Sums over both sizes; the first is what runs where nothing can be timed."""
    rows = json.loads((ROOT / "docs" / "results" / "op.json").read_text())["rows"]
    tiles = launch.tiles(Layer(channels, channels, 8))
    took = [
        sum(
            row["median_ms"]
            for row in rows
            if row["channels"] == channels and row["kernel"] == f"fused.cu {tile.label}"
        )
        for tile in tiles
    ]
    assert 0 not in took
    assert took == sorted(took)


@pytest.mark.parametrize("layer", SADNET, ids=lambda layer: str(layer.channels))
def test_each_layer_of_sadnet_has_several_tiles(layer: Layer) -> None:
    tiles = launch.tiles(layer)
    assert len(tiles) >= 2
    assert len(set(tiles)) == len(tiles)
    kernels = launch.kernels(layer, "fp16", "hwc8")
    assert len(set(kernels)) == len(tiles)
    for tile, kernel in zip(tiles, kernels, strict=True):
        assert kernel.threads == 32 * tile.warps * tile.k_groups <= 1024
        assert kernel.output_blocks * tile.outputs == layer.outputs


@given(
    layer=st.sampled_from([*SADNET, Layer(24, 40, 3), Layer(8, 8, 1), Layer(512, 264, 8), Layer(32, 64, 8)]),
    precision=st.sampled_from(["fp32", "fp16"]),
    layout=st.sampled_from(["linear", "hwc8"]),
    n=st.integers(1, 4),
    h=st.integers(1, 3000),
    w=st.integers(1, 5000),
)
def test_a_grid_covers_all_of_y_and_no_tile_more(
    layer: Layer, precision: launch.Precision, layout: launch.Layout, n: int, h: int, w: int
) -> None:
    if layout == "hwc8" and precision == "fp32":
        return
    for kernel in (*launch.kernels(layer, precision, layout), launch.teacher(layer, precision)):
        x, y, z = kernel.grid(n, h, w)
        tiles = -(-w // kernel.width) * -(-h // kernel.height)
        assert 0 <= x * kernel.tiles - tiles < kernel.tiles
        assert kernel.output_blocks == y
        assert z == n
        macros = dict(kernel.macros)
        if kernel.source != "plain.cu":
            outputs = macros["SADNET_TILE"].split(",")[1] if kernel.source == "fused.cu" else macros["SADNET_OUTPUTS"]
            assert 0 <= y * int(outputs) - layer.outputs < int(outputs)


@pytest.mark.parametrize("other", [Layer(32, 32, 4), Layer(32, 32, 32), Layer(32, 64, 8)])
def test_sadnets_tiles_are_for_its_layers_alone(other: Layer) -> None:
    """Fewer channels a group take more registers."""
    assert not set(launch.tiles(other)) & set(launch.tiles(Layer(32, 32, 8)))


def test_a_tile_has_no_more_outputs_than_its_layer_needs() -> None:
    assert [launch.tiles(Layer(64, outputs, 4))[0].outputs for outputs in (32, 40, 200)] == [32, 64, 128]


@pytest.mark.parametrize("slope", [float("inf"), float("nan")])
def test_a_slope_that_no_source_can_hold_is_refused(slope: float) -> None:
    with pytest.raises(InputError, match="expected a finite negative_slope"):
        Layer(8, 8, 1, slope)


def test_a_pitch_below_the_channels_is_refused() -> None:
    with pytest.raises(InputError, match="expected an offset_pitch of at least 27, found 26"):
        Layer(8, 8, 1, offset_pitch=26)


@pytest.mark.parametrize(
    ("channels", "outputs", "precision"), [(12, 8, "fp16"), (8, 12, "fp16"), (32, 32, "fp32")], ids=str
)
def test_what_no_channels_last_kernel_computes_is_refused(
    channels: int, outputs: int, precision: launch.Precision
) -> None:
    with pytest.raises(InputError, match=rf"multiples of 8.* found {precision} with {channels} channels and {outputs}"):
        launch.kernels(Layer(channels, outputs, 4), precision, "hwc8")


@pytest.mark.parametrize("groups", [0, 3, -1])
def test_groups_that_do_not_divide_the_channels_are_refused(groups: int) -> None:
    with pytest.raises(InputError, match=f"found {groups} groups for 32 channels"):
        Layer(32, 32, groups)


def test_padding_of_offset_mask_is_compiled_in() -> None:
    tight, padded = Layer(8, 8, 1), Layer(8, 8, 1, offset_pitch=32)
    assert (tight.pitch, padded.pitch) == (27, 32)
    (kernel,) = launch.kernels(padded, "fp16", "hwc8")
    assert dict(kernel.macros)["SADNET_OFFSET_PITCH"] == "32"
