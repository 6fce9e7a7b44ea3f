"""The exported ONNX file as a plan's parser takes it: of the plan's shapes, the op in the words of its library."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it carries no types
from onnx import NodeProto, TensorProto, helper, numpy_helper

from common.contract import model_details
from common.errors import InputError, ModelError
from common.padding import MULTIPLE
from export.plan_types import DTYPES, inferred, is_op
from plugins import onnx_op, op

FIRST_ROW = "first_row_of_the_image"
STRIP_BYTES = 256 * 2**20
"""What the samples of one strip may take in memory, as far as the height can be divided."""


def load_network(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model of a file that `export/to_onnx.py` wrote, its op's attributes all stated, and what its metadata says.

    Raises InputError where there is no such file, ModelError where it is damaged or another network.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: expected an ONNX model file, found {'a folder' if path.is_dir() else 'none'}")
        model = onnx.load(path)
        onnx.checker.check_model(model)
        _check_nodes(model)
    except OSError as error:
        raise InputError(f"{path}: expected an ONNX model file, cannot read it: {error.strerror or error}") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path}: expected an ONNX model, found another or a damaged file ({reason})") from error
    details = model_details(path, {entry.key: entry.value for entry in model.metadata_props})
    inputs, outputs = model.graph.input, model.graph.output
    if len(inputs) != 1 or len(outputs) != 1 or len(shape(inputs[0])) != 4:
        raise ModelError(f"{path} is another network: expected one input and one output of four dimensions")
    if any(map(is_op, model.graph.node)) and not any(function.name == op.NAME for function in model.functions):
        raise ModelError(f"{path}: expected the function body of {op.NAME}, found none: export the model again")
    for node in filter(is_op, model.graph.node):
        onnx_op.state_attributes(node)
    return model, details


def _check_nodes(model: onnx.ModelProto) -> None:
    """Raise ValueError for what a damaged file may hold beside what ONNX's checker looks at: names that are no text,
    which protobuf then gives as bytes, and other inputs than the op has."""
    for node in model.graph.node:
        names = (node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute))
        if damaged := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"the name {damaged[0]!r}")
        if is_op(node) and (len(node.input), len(node.output)) != (len(onnx_op.INPUTS), 1):
            raise ValueError(f"{node.name} with {len(node.input)} inputs and {len(node.output)} outputs")


def shape(value: onnx.ValueInfoProto) -> list[int]:
    """Its sizes, 0 for one that is not fixed."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def set_size(model: onnx.ModelProto, height: int | str, width: int | str) -> None:
    """Make input and output one image of this size; a side that is a text stays dynamic under this name."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in zip((0, *_sides(value)), (1, height, width), strict=True):
            dim = value.type.tensor_type.shape.dim[axis]
            dim.Clear()
            if isinstance(size, int):
                dim.dim_value = size
            else:
                dim.dim_param = size
    del model.graph.value_info[:]  # states the shapes that were


def image_shape(value: onnx.ValueInfoProto, height: int, width: int) -> tuple[int, ...]:
    """One image of this size as the input or output holds it: N,C,H,W, or N,H,W,C of 8 bits."""
    sizes = shape(value)
    for axis, size in zip((0, *_sides(value)), (1, height, width), strict=True):
        sizes[axis] = size
    return tuple(sizes)


def _sides(value: onnx.ValueInfoProto) -> tuple[int, int]:
    """Axes of height and width; 8-bit images are stored N, H, W, C."""
    return (1, 2) if value.type.tensor_type.elem_type == TensorProto.UINT8 else (2, 3)


def bytes_at_edges(model: onnx.ModelProto) -> None:
    """Make 8-bit images as the last step, in place: TensorRT knows them as input and output of a network alone."""
    *_, cast, last = model.graph.node
    declared = model.graph.output[0].type.tensor_type.elem_type
    if declared == TensorProto.UINT8 and cast.op_type == "Cast" and last.op_type == "Transpose":
        # from Cast, Transpose to Transpose, Cast; the name between them stays
        before, between, output = cast.input[0], cast.output[0], last.output[0]
        cast.input[0], cast.output[0] = between, output
        last.input[0], last.output[0] = before, between
        moved = NodeProto()
        moved.CopyFrom(cast)
        model.graph.node.remove(cast)
        model.graph.node.append(moved)


def with_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without the op's body: TensorRT makes a plugin of the node that remains, and has no other choice."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.functions[:]
    return result


def with_grid_sample(model: onnx.ModelProto, height: int, width: int) -> onnx.ModelProto:
    """A model with GridSample in place of the op, without functions, for images of at most this size.

    The model is `load_network`'s and has the plan's types already. Large images go through the op in strips
    (`plugins.onnx_op.strips_body`).
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    set_size(result, height, width)
    graph = inferred(result)
    shapes = {value.name: shape(value) for value in (*graph.input, *graph.value_info)}
    result.CopyFrom(model)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    nodes: dict[str, NodeProto] = {}  # by first output
    functions = {onnx_op.ROWS_NAME: onnx_op.grid_sample_body()}
    for original in model.graph.node:
        if not is_op(original):
            nodes[original.output[0]] = original
            continue
        x, offset_mask, weight, bias = original.input
        if len(shapes.get(x, ())) != 4 or 0 in shapes[x]:
            raise ModelError(f"expected an image with channels into {original.name}, found {x}: a damaged file")
        _, channels, rows, columns = shapes[x]
        convolution = nodes[offset_mask] if offset_mask in nodes and uses[offset_mask] == 1 else None
        strips = 1
        if convolution is not None and _is_plain(convolution):
            # heights are multiples of 8, half of them of 4, and so on: these divide whatever the size
            dtype = DTYPES[types.get(weight, TensorProto.FLOAT)]
            groups = next(a.i for a in original.attribute if a.name == "offset_groups")
            strips = _strips(channels, groups, rows * columns, dtype, most=MULTIPLE * rows // height)
        node = NodeProto(name=original.name, domain=op.DOMAIN, output=original.output)
        node.attribute.extend(a for a in original.attribute if a.name not in op.PLUGIN_ATTRIBUTES)
        if convolution is None or strips == 1:
            node.op_type = onnx_op.ROWS_NAME
            node.input.extend([*original.input, FIRST_ROW])
        else:
            node.op_type = f"{onnx_op.STRIPS_NAME}{strips}"
            features, kernel, *rest = convolution.input
            if not any(rest):  # the exporter drops a bias of zeros
                rest = [f"{kernel}.no_bias"]
                zeros = np.zeros(op.offset_mask_channels(groups), dtype)
                result.graph.initializer.append(numpy_helper.from_array(zeros, rest[0]))
            node.input.extend([x, features, kernel, *rest, weight, bias])
            functions[node.op_type] = onnx_op.strips_body(strips)
            del nodes[offset_mask]
        nodes[node.output[0]] = node
    del result.graph.node[:]
    result.graph.node.extend(nodes.values())
    result.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), FIRST_ROW))
    del result.functions[:]
    result.functions.extend(functions.values())
    return onnx.inliner.inline_local_functions(result)


def _is_plain(convolution: NodeProto) -> bool:
    """Whether it is a 3x3 convolution whose output has its input's size, so that rows can be had by themselves."""
    plain = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
    found = {a.name: helper.get_attribute_value(a) for a in convolution.attribute if a.name in plain}
    return convolution.op_type == "Conv" and found == plain


def _strips(channels: int, groups: int, pixels: int, dtype: np.dtype[Any], most: int) -> int:
    """Into how many strips an image of `pixels` goes: a power of two, at most `most`."""
    samples = (op.TAPS * channels + op.offset_mask_channels(groups)) * dtype.itemsize
    places = op.offset_channels(groups) * np.dtype(np.float32).itemsize
    strips = 1
    while 2 * strips <= most and pixels * (samples + places) > strips * STRIP_BYTES:
        strips *= 2
    return strips
