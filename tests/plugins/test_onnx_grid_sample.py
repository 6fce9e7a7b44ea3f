"""The op by GridSample, as TensorRT-RTX gets it, under ONNX Runtime, against the specification."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from plugins import onnx_op, op
from plugins.reference import modulated_deform_conv2d

Array = NDArray[np.floating]


def run(functions: list[onnx.FunctionProto], inputs: Mapping[str, NDArray[Any]], groups: int, slope: float) -> Array:
    """One node of the first function; the type of y is that of x."""
    element = helper.np_dtype_to_tensor_dtype(inputs["x"].dtype)
    attributes: dict[str, Any] = {"offset_groups": groups, "negative_slope": slope}
    node = helper.make_node(functions[0].name, list(functions[0].input), ["y"], domain=op.DOMAIN, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
        for name, a in inputs.items()
    ]
    graph = helper.make_graph([node], "one_node", values, [helper.make_tensor_value_info("y", element, [None] * 4)])
    opsets = [helper.make_opsetid("", onnx_op.OPSET), helper.make_opsetid(op.DOMAIN, op.VERSION)]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, inputs)[0]
    return result


def operands(seed: int, n: int, c: int, o: int, groups: int, h: int, w: int, reach: float) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = ((n, c, h, w), (n, op.offset_mask_channels(groups), h, w), (o, c, 3, 3), (o,))
    made: dict[str, Array] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip(onnx_op.INPUTS, shapes, strict=True)
    }
    made["offset_mask"] *= np.float32(reach)
    return made


def specification(inputs: dict[str, Array], groups: int, slope: float) -> Array:
    x, offset_mask, weight, bias = (torch.from_numpy(inputs[name].astype(np.float64)) for name in onnx_op.INPUTS)
    result: Array = modulated_deform_conv2d(x, offset_mask, weight, bias, groups, slope).numpy()
    return result


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 3),
    channels_a_group=st.integers(1, 3),
    o=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 4, 8]),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    slope=st.sampled_from([0.0, 0.2, 1.0]),
    reach=st.sampled_from([0.0, 0.7, 4.0, 50.0]),  # at 50 most samples lie outside the image
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_rows_equal_the_specification(
    n: int,
    channels_a_group: int,
    o: int,
    groups: int,
    h: int,
    w: int,
    slope: float,
    reach: float,
    seed: int,
    data: st.DataObject,
) -> None:
    inputs = operands(seed, n, channels_a_group * groups, o, groups, h, w, reach)
    expected = specification(inputs, groups, slope)
    first = data.draw(st.integers(0, h - 1))
    end = data.draw(st.integers(first + 1, h))
    rows = inputs | {"offset_mask": inputs["offset_mask"][:, :, first:end], "first_row": np.array([first])}
    found = run([onnx_op.grid_sample_body()], rows, groups, slope)
    np.testing.assert_allclose(found, expected[:, :, first:end], rtol=1e-4, atol=1e-4 * max(1.0, reach))


@pytest.mark.parametrize("place", [np.nan, np.inf, -np.inf, 3e38, -1e10])
def test_places_that_are_nowhere_are_outside_of_the_image(place: float) -> None:
    inputs = operands(0, 2, 4, 3, 2, 4, 5, 1.0)
    inputs["offset_mask"][0, 1, 2] = 1000  # a coordinate of one tap, along a row
    expected = specification(inputs, 2, 0.2)
    inputs["offset_mask"][0, 1, 2] = place
    found = run([onnx_op.grid_sample_body()], {**inputs, "first_row": np.array([0])}, 2, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strips", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_strips_equal_the_whole(strips: int, rows: int) -> None:
    groups, height, width, features = 2, strips * rows, 7, 5
    inputs = operands(strips, 2, 4, 3, groups, height, width, 1.0)
    rng = np.random.default_rng(1)
    extra: dict[str, Array] = {
        "features": rng.standard_normal((2, features, height, width)).astype(np.float32),
        "offset_weight": rng.standard_normal((op.offset_mask_channels(groups), features, 3, 3)).astype(np.float32),
        "offset_bias": rng.standard_normal(op.offset_mask_channels(groups)).astype(np.float32),
    }
    maps, weight, bias = (torch.from_numpy(a) for a in extra.values())
    convolved = torch.nn.functional.conv2d(maps, weight, bias, padding=1)
    expected = specification(inputs | {"offset_mask": convolved.numpy()}, groups, 0.2)
    given_inputs = {name: inputs[name] for name in ("x", "weight", "bias")} | extra
    found = run([onnx_op.strips_body(strips), onnx_op.grid_sample_body()], given_inputs, groups, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)  # of values up to 60


def test_half_precision_places_samples_right_in_a_wide_image() -> None:
    """A grid in half precision is off by up to half a pixel there; noise has nothing in common with its neighbours."""
    inputs = {name: a.astype(np.float16) for name, a in operands(0, 1, 16, 8, 8, 5, 1920, 2.0).items()}
    found = run([onnx_op.grid_sample_body()], inputs | {"first_row": np.array([0])}, 8, 0.2)
    assert found.dtype == np.float16
    expected = specification(inputs, 8, 0.2)
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()


def test_the_test_above_sees_a_grid_in_half_precision() -> None:
    inputs = {name: a.astype(np.float16) for name, a in operands(0, 1, 16, 8, 8, 5, 1920, 2.0).items()}
    body = onnx_op.grid_sample_body()
    grid = next(node for node in body.node if node.op_type == "GridSample").input
    for kind, source, target in ((10, grid[1], "half_grid"), (1, "half_grid", "float_grid")):
        body.node.append(helper.make_node("Cast", [source], [target], to=kind))
    grid[1] = "float_grid"
    found = run([_sorted(body)], inputs | {"first_row": np.array([0])}, 8, 0.2)
    expected = specification(inputs, 8, 0.2)
    assert np.abs(found - expected).max() > 0.1 * np.abs(expected).max()


def _sorted(body: onnx.FunctionProto) -> onnx.FunctionProto:
    """Its nodes in an order in which every value is made before it is used."""
    known, waiting, done = set(body.input), list(body.node), []
    while waiting:
        node = next(node for node in waiting if known.issuperset(node.input))
        waiting.remove(node)
        known.update(node.output)
        done.append(node)
    result = onnx.FunctionProto()
    result.CopyFrom(body)
    del result.node[:]
    result.node.extend(done)
    return result
