"""The builder: types of what it has parsed, and what the library says of a network that it does not take."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from common import tensorrt_library
from common.errors import InputError, ModelError
from export import plan_build, plan_graph
from export.parity import ASSETS
from export.plan_build import Sizes, build
from export.plan_rtx import RtxTarget
from export.plan_types import Precision, is_op, retype
from plugins import onnx_op

BUNDLED = ASSETS / "blind_color.onnx"
SMALL = Sizes((64, 64), (64, 64), (64, 64))


def network(precision: Precision) -> onnx.ModelProto:
    model, _ = plan_graph.load_network(BUNDLED)
    retype(model, precision)
    plan_graph.set_size(model, 64, 64)
    return model


@pytest.mark.parametrize(
    ("made", "asked", "expected"),
    [(Precision.FP32, Precision.FP16, "HALF"), (Precision.FP16, Precision.FP32, "FLOAT")],
)
def test_a_network_of_other_types_is_refused_by_layer(made: Precision, asked: Precision, expected: str) -> None:
    with pytest.raises(ModelError, match=rf"expected {expected} in the layer node_conv2d, found"):
        build(RtxTarget(), network(made), asked, SMALL)


def test_one_convolution_in_fp32_is_found() -> None:
    """What retyping would leave behind if it overlooked a node."""
    model = network(Precision.FP16)
    nodes, weights = list(model.graph.node), {t.name: t for t in model.graph.initializer}
    victim = next(node for node in nodes if node.name == "node_conv2d_5")
    for name in victim.input[1:]:
        wide = onnx.numpy_helper.to_array(weights[name]).astype(np.float32)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(wide, name))
    before = helper.make_node("Cast", [victim.input[0]], ["wide_in"], to=1)
    after = helper.make_node("Cast", ["wide_out"], [victim.output[0]], to=10)
    victim.input[0], victim.output[0] = "wide_in", "wide_out"
    place = nodes.index(victim)
    nodes[place : place + 1] = [before, victim, after]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    with pytest.raises(ModelError, match="expected HALF in the layer node_conv2d_5, found FLOAT"):
        build(RtxTarget(), model, Precision.FP16, SMALL)


def test_sampling_in_half_precision_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = onnx_op._GRID_SAMPLE.replace("<to = 1> (x_groups)", "<to = 10> (x_groups)")
    text = text.replace("f32_grid = Reshape", "f32_wide = Reshape").replace(
        "    group_shape =", "    f32_grid = Cast <to = 10> (f32_wide)\n    group_shape ="
    )
    monkeypatch.setattr(onnx_op, "_GRID_SAMPLE", text)
    with pytest.raises(ModelError, match=r"expected FLOAT in the layer ModulatedDeformConv2d/f32_\w+, found HALF"):
        build(RtxTarget(), network(Precision.FP16), Precision.FP16, SMALL)


def test_a_lost_deformable_convolution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_one(target: RtxTarget, model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
        node = next(filter(is_op, model.graph.node))
        x, _, weight, bias = node.input
        node.CopyFrom(helper.make_node("Conv", [x, weight, bias], list(node.output), pads=[1, 1, 1, 1]))
        return plan_graph.with_grid_sample(model, 64, 64)

    monkeypatch.setattr(RtxTarget, "state_op", without_one)
    with pytest.raises(ModelError, match=r"convolutions, 4 of them deformable, found 48, 3 of them"):
        build(RtxTarget(), network(Precision.FP16), Precision.FP16, SMALL)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_fp32_is_no_tf32(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    def configured(target: RtxTarget, trt: Any, config: Any, log: object) -> None:
        allowed.append(config.get_flag(trt.BuilderFlag.TF32))
        raise InputError("enough")

    monkeypatch.setattr(RtxTarget, "configure", configured)
    with pytest.raises(InputError, match="enough"):
        build(RtxTarget(), network(precision), precision, SMALL)
    assert allowed == [precision is not Precision.FP32]


def test_what_the_parser_says_is_told_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeformConv, which TensorRT-RTX does not have."""
    monkeypatch.setattr(RtxTarget, "state_op", lambda _, model, __: model)
    with pytest.raises(ModelError, match=r"cannot take this network: node_modulated_deform_conv2d .*DeformConv"):
        build(RtxTarget(), network(Precision.FP16), Precision.FP16, SMALL)


def test_a_fault_inside_functions_is_told_with_the_innermost_node() -> None:
    log = tensorrt_library.Log("TensorRT")
    fault = SimpleNamespace(
        node_name=lambda: "",
        node_operator=lambda: "GridSample",
        desc=lambda: "no such mode",
        local_function_stack=lambda: ["outer", "inner"],
    )
    parser = SimpleNamespace(num_errors=1, get_error=lambda index: fault)
    assert str(plan_build._parse_error(parser, log)).endswith(": inner (GridSample): no such mode")


def test_what_the_log_says_is_told_where_the_parser_says_nothing() -> None:
    log = tensorrt_library.Log("TensorRT")
    log.take("ERROR", "no memory")
    assert str(plan_build._parse_error(SimpleNamespace(num_errors=0), log)).endswith("network: no memory")


def test_what_the_builder_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are no multiples of 8, of which the parser sees nothing: the decoder's features do not fit."""
    model, _ = plan_graph.load_network(BUNDLED)
    retype(model, Precision.FP16)
    plan_graph.set_size(model, "height", "width")
    monkeypatch.setattr(RtxTarget, "state_op", lambda _, model, __: plan_graph.with_grid_sample(model, 64, 64))
    with pytest.raises(ModelError, match=r"TensorRT-RTX cannot build this plan: .*concat"):
        build(RtxTarget(), model, Precision.FP16, Sizes((60, 60), (60, 60), (68, 60)))


def test_log_shows_warnings_and_keeps_errors(capfd: pytest.CaptureFixture[str]) -> None:
    log = tensorrt_library.Log("TensorRT-RTX")
    log.take("WARNING", "a [strange] thing")
    log.take("VERBOSE", "chatter")
    log.take("INFO", "Total Activation Memory: 123 bytes")
    for number in range(5):
        log.take("ERROR", f"fault {number}")
    assert capfd.readouterr().err == "TensorRT-RTX: a [strange] thing\n"
    assert log.activation_bytes == 123
    assert str(log.failure("cannot")) == "TensorRT-RTX cannot: fault 0; fault 1; fault 2 (and 2 more)"
    log.clear()
    assert not log.errors
    assert log.activation_bytes is None
    assert "no reason" in str(log.failure("cannot"))
