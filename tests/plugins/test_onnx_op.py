"""The ONNX node with its function body, under ONNX Runtime, against the specification."""

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

Arrays = list[NDArray[np.floating]]


def one_node_model(element: int, groups: int, slope: float) -> onnx.ModelProto:
    return model_of_node(element, {"offset_groups": groups, "negative_slope": slope} | op.PLUGIN_ATTRIBUTES)


def model_of_node(element: int, attributes: dict[str, Any]) -> onnx.ModelProto:
    node = helper.make_node(op.NAME, list(onnx_op.INPUTS), ["y"], domain=op.DOMAIN, **attributes)
    ranks = {"x": 4, "offset_mask": 4, "weight": 4, "bias": 1}
    inputs = [helper.make_tensor_value_info(n, element, [None] * r) for n, r in ranks.items()]
    output = helper.make_tensor_value_info("y", element, [None] * 4)
    graph = helper.make_graph([node], "one_node", inputs, [output])
    opsets = [helper.make_opsetid("", onnx_op.OPSET), helper.make_opsetid(op.DOMAIN, op.VERSION)]
    return helper.make_model(graph, functions=[onnx_op.deform_conv_body()], opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, arrays: Arrays) -> NDArray[np.floating]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.floating] = session.run(None, dict(zip(onnx_op.INPUTS, arrays, strict=True)))[0]
    return result


def random_inputs(seed: int, n: int, c: int, o: int, groups: int, h: int, w: int, reach: float) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = ((n, c, h, w), (n, op.offset_mask_channels(groups), h, w), (o, c, 3, 3), (o,))
    arrays: Arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    arrays[1] *= np.float32(reach)
    return arrays


def specification(arrays: Arrays, groups: int, slope: float) -> NDArray[np.floating]:
    x, offset_mask, weight, bias = (torch.from_numpy(a.astype(np.float64)) for a in arrays)
    result: NDArray[np.floating] = modulated_deform_conv2d(x, offset_mask, weight, bias, groups, slope).numpy()
    return result


@settings(max_examples=25, deadline=None)
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
)
def test_body_under_onnx_runtime_equals_the_specification(
    n: int, channels_a_group: int, o: int, groups: int, h: int, w: int, slope: float, reach: float, seed: int
) -> None:
    arrays = random_inputs(seed, n, channels_a_group * groups, o, groups, h, w, reach)
    expected = specification(arrays, groups, slope)
    found = run(one_node_model(onnx.TensorProto.FLOAT, groups, slope), arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, reach))


def test_half_precision_node_runs_and_stays_close() -> None:
    arrays = [a.astype(np.float16) for a in random_inputs(0, 2, 16, 8, 8, 13, 21, reach=2)]
    found = run(one_node_model(onnx.TensorProto.FLOAT16, 8, 0.2), arrays)
    assert found.dtype == np.float16
    expected = specification(arrays, 8, 0.2)
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()


def test_attributes_that_a_node_leaves_out_are_stated_with_the_ops_defaults() -> None:
    (bare,) = model_of_node(onnx.TensorProto.FLOAT, {"negative_slope": 1.0}).graph.node
    onnx_op.state_attributes(bare)
    (stated,) = one_node_model(onnx.TensorProto.FLOAT, op.OFFSET_GROUPS, 1.0).graph.node
    assert bare == stated


def test_node_carries_what_tensorrt_needs_to_find_the_plugin() -> None:
    node = one_node_model(onnx.TensorProto.FLOAT, 8, 0.2).graph.node[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["plugin_namespace"] == b"sadnet"
    assert attributes["plugin_version"] == b"1"
    assert attributes["aot"] == 1
    assert (node.domain, node.op_type) == ("sadnet", "ModulatedDeformConv2d")


def test_schema_defaults_are_the_ops() -> None:
    attributes = onnx_op.schema().attributes
    assert helper.get_attribute_value(attributes["offset_groups"].default_value) == op.OFFSET_GROUPS
    assert helper.get_attribute_value(attributes["negative_slope"].default_value) == pytest.approx(op.NEGATIVE_SLOPE)
