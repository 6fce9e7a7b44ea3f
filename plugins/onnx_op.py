"""The op in ONNX: the schema of its node, and the function body in standard ops that comes with every model.

ONNX Runtime inlines the body; TensorRT makes the node our plugin, for which it carries `plugins.op.PLUGIN_ATTRIBUTES`.
"""

from collections.abc import Callable
from typing import Any

import onnx
from onnx import defs, helper

from plugins import op

OPSET = 22
"""Of the standard ops, in the body and in exported graphs."""

INPUTS = ("x", "offset_mask", "weight", "bias")
TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")


def schema() -> defs.OpSchema:
    """The node's inputs, output, types and attributes, as ONNX states them."""
    make = defs.OpSchema
    defaults = {"offset_groups": op.OFFSET_GROUPS, "negative_slope": op.NEGATIVE_SLOPE} | op.PLUGIN_ATTRIBUTES
    return make(
        op.NAME,
        op.DOMAIN,
        op.VERSION,
        inputs=[make.FormalParameter(name, "T") for name in INPUTS],
        outputs=[make.FormalParameter("y", "T")],
        type_constraints=[("T", list(TYPES), "floating types")],
        attributes=[make.Attribute(name, helper.make_attribute(name, value)) for name, value in defaults.items()],
    )


def register_schema() -> None:
    """Make the op known to `onnx`; PyTorch's exporter asks for it."""
    if not defs.has(op.NAME, op.DOMAIN):
        defs.register_schema(schema())


def translation() -> Callable[..., Any]:
    """How PyTorch's exporter writes the torch op: for its `custom_translation_table`."""
    import onnxscript

    register_schema()
    opset = onnxscript.values.Opset(op.DOMAIN, op.VERSION)

    def translate(x: Any, offset_mask: Any, weight: Any, bias: Any, offset_groups: int, negative_slope: float) -> Any:
        attributes = {"offset_groups": offset_groups, "negative_slope": negative_slope} | op.PLUGIN_ATTRIBUTES
        return opset.ModulatedDeformConv2d(x, offset_mask, weight, bias, **attributes)

    return translate


def deform_conv_body() -> onnx.FunctionProto:
    """The op by ONNX's DeformConv (opset 22), for any number of offset groups and any slope."""

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], **attributes)

    deform = node(
        "DeformConv", ["x", "weight", "offset", "bias", "mask"], "sum", kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    deform.attribute.append(_from_function("offset_group", "offset_groups", onnx.AttributeProto.INT))
    activation = node("LeakyRelu", ["sum"], "y")
    activation.attribute.append(_from_function("alpha", "negative_slope", onnx.AttributeProto.FLOAT))
    nodes = [
        # two thirds of the channels are offsets, one third the mask's logits, whatever the number of groups
        node("Shape", ["offset_mask"], "channels", start=1, end=2),
        node("Constant", [], "three", value_ints=[3]),
        node("Div", ["channels", "three"], "mask_channels"),
        node("Add", ["mask_channels", "mask_channels"], "offset_channels"),
        node("Concat", ["offset_channels", "mask_channels"], "parts", axis=0),
        helper.make_node("Split", ["offset_mask", "parts"], ["offset", "logits"], axis=1),
        node("Sigmoid", ["logits"], "mask"),
        deform,
        activation,
    ]
    names = ["offset_groups", "negative_slope", *op.PLUGIN_ATTRIBUTES]
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(op.DOMAIN, op.NAME, list(INPUTS), ["y"], nodes, opsets, attributes=names)


def _from_function(name: str, attribute: str, kind: onnx.AttributeProto.AttributeType) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, ref_attr_name=attribute, type=kind)
