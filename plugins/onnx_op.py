"""The op in ONNX: the schema of its node, and the function body in standard ops that comes with every model.

ONNX Runtime inlines the body; TensorRT makes the node our plugin, for which it carries `plugins.op.PLUGIN_ATTRIBUTES`.
TensorRT-RTX has neither plugins nor DeformConv: `grid_sample_body` states the op in what it has.
"""

from collections.abc import Callable
from typing import Any

import onnx
from onnx import defs, helper

from plugins import op

OPSET = 22
"""Of the standard ops, in the body and in exported graphs."""

INPUTS = ("x", "offset_mask", "weight", "bias")
ROWS_NAME = f"{op.NAME}Rows"
"""The op, for some rows of y, as `grid_sample_body` states it."""
STRIPS_NAME = f"{op.NAME}Strips"
"""The op with the convolution that makes its offset_mask, as `strips_body` states it."""
BODY = f"{op.NAME}/"
"""How the names of these bodies' nodes begin."""
SAMPLING = f"{BODY}f32_"
"""How those begin which find the places and take the samples."""
DEFAULTS: dict[str, int | float | str] = {
    "offset_groups": op.OFFSET_GROUPS,
    "negative_slope": op.NEGATIVE_SLOPE,
    **op.PLUGIN_ATTRIBUTES,
}
"""The node's attributes, and what one that it leaves out is."""
TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")


def schema() -> defs.OpSchema:
    """The node's inputs, output, types and attributes, as ONNX states them."""
    make = defs.OpSchema
    return make(
        op.NAME,
        op.DOMAIN,
        op.VERSION,
        inputs=[make.FormalParameter(name, "T") for name in INPUTS],
        outputs=[make.FormalParameter("y", "T")],
        type_constraints=[("T", list(TYPES), "floating types")],
        attributes=[make.Attribute(name, helper.make_attribute(name, value)) for name, value in DEFAULTS.items()],
    )


def state_attributes(node: onnx.NodeProto) -> None:
    """Write down the attributes that a node of the op leaves to their defaults, in their names' order.

    Every file that we write has them. TensorRT's parser knows no defaults, and where a function states some, neither
    ONNX Runtime (1.32) nor onnx's inliner (1.23) reads them.
    """
    stated = {attribute.name for attribute in node.attribute}
    node.attribute.extend(helper.make_attribute(n, value) for n, value in DEFAULTS.items() if n not in stated)
    node.attribute.sort(key=lambda attribute: attribute.name)


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
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(op.DOMAIN, op.NAME, list(INPUTS), ["y"], nodes, opsets, attributes=list(DEFAULTS))


def grid_sample_body() -> onnx.FunctionProto:
    """The op by GridSample, for rows of y: a function `ROWS_NAME` of INPUTS and `first_row`, an int64 of shape (1).

    x is whole, (N, C, H, W). offset_mask and y are the rows of the image from first_row on, (N, ., rows, W).
    What begins with SAMPLING is fp32 whatever the tensors' type, the rest is of that type.
    """
    return _parsed(f"{ROWS_NAME} {_ATTRIBUTES} ({', '.join(INPUTS)}, first_row) => (y) {_GRID_SAMPLE}")


def strips_body(strips: int) -> onnx.FunctionProto:
    """The op and the 3x3 convolution that makes its offset_mask, one strip of rows after the other.

    A function of x, features (N, F, H, W), offset_weight (27*G, F, 3, 3), offset_bias, weight and bias, whose name is
    `STRIPS_NAME` and the number of strips; that number divides H. `grid_sample_body` holds 9*C samples and 9*G places
    for each of its pixels, at 1920x1088 three gigabytes, hence the strips. The values are the same.
    """
    lines = []
    for i in range(strips):
        image, parts = "x", [f"band{i}"]
        if i:
            # Zero, but made of the strip before: TensorRT would take the samples of all strips first, as there is
            # nothing that they wait for, and would need as much memory as without strips. On x it keeps TensorRT from
            # sharing one copy of x in fp32 among the strips. (TensorRT-RTX 1.7, the whole network at 1920x1088 in
            # fp16: 3710 MB without strips, 1027 MB with zero added to the features alone, 877 MB like this.)
            lines.append(f"seen{i} = Slice (y{i - 1}, corner, corner_end)")
            lines.append(f"positive{i} = Relu (seen{i})")
            lines.append(f"negative{i} = Neg (positive{i})")
            lines.append(f"tie{i} = Relu (negative{i})")
            lines.append(f"after{i} = Add (band{i}, tie{i})")
            lines.append(f"image{i} = Add (x, tie{i})")
            lines.append(f"above{i} = Gather <axis = 2> (band{i - 1}, last)")
            image, parts = f"image{i}", [f"above{i}", f"after{i}"]
        if i < strips - 1:
            lines.append(f"below{i} = Gather <axis = 2> (band{i + 1}, first)")
            parts.append(f"below{i}")
        pads = [int(i == 0), 1, int(i == strips - 1), 1]  # of the image: elsewhere there are rows above and below
        lines.append(f"part{i} = Concat <axis = 2> ({', '.join(parts)})")
        lines.append(f"offset_mask{i} = Conv <pads = {pads}> (part{i}, offset_weight, offset_bias)")
        lines.append(f"number{i} = Constant <value_ints = [{i}]> ()")
        lines.append(f"row{i} = Mul (number{i}, rows)")
        groups_and_slope = "<offset_groups: int = @offset_groups, negative_slope: float = @negative_slope>"
        operands = f"({image}, offset_mask{i}, weight, bias, row{i})"
        lines.append(f"y{i} = {op.DOMAIN}.{ROWS_NAME} {groups_and_slope} {operands}")
    # Bands by Reshape and Gather: of a Slice between computed rows TensorRT does not know how large it can be.
    bands = [
        f"place{i} = Constant <value_int = {i}> () band{i} = Gather <axis = 2> (split, place{i})" for i in range(strips)
    ]
    inputs = "(x, features, offset_weight, offset_bias, weight, bias)"
    ys = ", ".join(f"y{i}" for i in range(strips))
    return _parsed(
        f"""{STRIPS_NAME}{strips} {_ATTRIBUTES} {inputs} => (y)
        {{
            strips = Constant <value_ints = [{strips}]> ()
            first = Constant <value_ints = [0]> ()
            last = Constant <value_ints = [-1]> ()
            corner = Constant <value_ints = [0, 0, 0, 0]> ()
            corner_end = Constant <value_ints = [1, 1, 1, 1]> ()
            image_and_channels = Shape <start = 0, end = 2> (features)
            height = Shape <start = 2, end = 3> (features)
            width = Shape <start = 3, end = 4> (features)
            rows = Div (height, strips)
            view = Concat <axis = 0> (image_and_channels, strips, rows, width)
            split = Reshape <allowzero = 1> (features, view)
            {" ".join(bands)}
            {" ".join(lines)}
            y = Concat <axis = 2> ({ys})
        }}"""
    )


_ATTRIBUTES = "<offset_groups, negative_slope>"


def _parsed(text: str) -> onnx.FunctionProto:
    """A function in ONNX's text form, with the attributes of the op; its nodes are named after their outputs."""
    opsets = f'"": {OPSET}, "{op.DOMAIN}": {op.VERSION}'
    function = onnx.parser.parse_function(f'<domain: "{op.DOMAIN}", opset_import: [{opsets}]> {text}')
    for node in function.node:
        node.name = f"{BODY}{node.output[0]}"
    return function


# GridSample's coordinates are -1 and 1 at the image's edges, not in the middle of its outermost pixels, so that pixel p
# lies at (p + 1/2) / (size / 2) - 1; the taps' constants hold that 1/2. The nine samples of a pixel lie in nine images
# below each other, 9 * rows high.
_GRID_SAMPLE = """
{
    axis_0 = Constant <value_ints = [0]> ()
    axis_1 = Constant <value_ints = [1]> ()
    last_axis = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_ints = [2]> ()
    taps = Constant <value_ints = [9]> ()
    group_count = Constant <value_int: int = @offset_groups> ()
    groups = Unsqueeze (group_count, axis_0)
    n = Shape <start = 0, end = 1> (x)
    c = Shape <start = 1, end = 2> (x)
    h = Shape <start = 2, end = 3> (x)
    w = Shape <start = 3, end = 4> (x)
    rows = Shape <start = 2, end = 3> (offset_mask)
    n_groups = Mul (n, groups)
    c_group = Div (c, groups)
    c_taps = Mul (c, taps)
    tap_rows = Mul (taps, rows)

    mask_channels = Mul (groups, taps)
    offset_channels = Mul (mask_channels, two)
    channels = Add (offset_channels, mask_channels)
    offset = Slice (offset_mask, axis_0, offset_channels, axis_1)
    logits = Slice (offset_mask, offset_channels, channels, axis_1)

    offset_shape = Concat <axis = 0> (n_groups, taps, two, rows, w)
    offset_taps = Reshape <allowzero = 1> (offset, offset_shape)
    f32_any = Cast <to = 1> (offset_taps)
    f32_far = Constant <value_float = 16777216.0> ()
    f32_far_back = Constant <value_float = -16777216.0> ()
    not_a_number = IsNaN (f32_any)
    f32_number = Where (not_a_number, f32_far, f32_any)
    f32_offset = Clip (f32_number, f32_far_back, f32_far)
    f32_half = Constant <value_float = 0.5> ()
    f32_unit = Constant <value_float = 1.0> ()

    row_count = Squeeze (rows, axis_0)
    row_range = Range (zero, row_count, one)
    y_range = Add (row_range, first_row)
    y_view = Constant <value_ints = [1, 1, -1, 1]> ()
    y_line = Reshape (y_range, y_view)
    f32_y_line = Cast <to = 1> (y_line)
    f32_y_taps = Constant <value = float[1,9,1,1] {-0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 1.5}> ()
    f32_y_base = Add (f32_y_line, f32_y_taps)
    f32_y_offset = Gather <axis = 2> (f32_offset, zero)
    f32_y_pixel = Add (f32_y_offset, f32_y_base)
    f32_h = Cast <to = 1> (h)
    f32_h_half = Mul (f32_h, f32_half)
    f32_y_scaled = Div (f32_y_pixel, f32_h_half)
    f32_y = Sub (f32_y_scaled, f32_unit)
    f32_y_last = Unsqueeze (f32_y, last_axis)

    column_count = Squeeze (w, axis_0)
    x_range = Range (zero, column_count, one)
    x_view = Constant <value_ints = [1, 1, 1, -1]> ()
    x_line = Reshape (x_range, x_view)
    f32_x_line = Cast <to = 1> (x_line)
    f32_x_taps = Constant <value = float[1,9,1,1] {-0.5, 0.5, 1.5, -0.5, 0.5, 1.5, -0.5, 0.5, 1.5}> ()
    f32_x_base = Add (f32_x_line, f32_x_taps)
    f32_x_offset = Gather <axis = 2> (f32_offset, one)
    f32_x_pixel = Add (f32_x_offset, f32_x_base)
    f32_w = Cast <to = 1> (w)
    f32_w_half = Mul (f32_w, f32_half)
    f32_x_scaled = Div (f32_x_pixel, f32_w_half)
    f32_x = Sub (f32_x_scaled, f32_unit)
    f32_x_last = Unsqueeze (f32_x, last_axis)

    f32_pairs = Concat <axis = 4> (f32_x_last, f32_y_last)
    grid_shape = Concat <axis = 0> (n_groups, tap_rows, w, two)
    f32_grid = Reshape <allowzero = 1> (f32_pairs, grid_shape)
    group_shape = Concat <axis = 0> (n_groups, c_group, h, w)
    x_groups = Reshape <allowzero = 1> (x, group_shape)
    f32_image = Cast <to = 1> (x_groups)
    f32_samples = GridSample <mode = "linear", padding_mode = "zeros", align_corners = 0> (f32_image, f32_grid)
    samples = CastLike (f32_samples, x)

    mask_shape = Concat <axis = 0> (n_groups, axis_1, tap_rows, w)
    mask_logits = Reshape <allowzero = 1> (logits, mask_shape)
    mask = Sigmoid (mask_logits)
    modulated = Mul (samples, mask)
    column_shape = Concat <axis = 0> (n, c_taps, rows, w)
    columns = Reshape <allowzero = 1> (modulated, column_shape)
    weight_shape = Constant <value_ints = [0, -1, 1, 1]> ()
    weight_columns = Reshape (weight, weight_shape)
    sum = Conv (columns, weight_columns, bias)
    y = LeakyRelu <alpha: float = @negative_slope> (sum)
}
"""


def _from_function(name: str, attribute: str, kind: onnx.AttributeProto.AttributeType) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, ref_attr_name=attribute, type=kind)
