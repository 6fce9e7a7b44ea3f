"""Types of a plan's network. TensorRT takes them from the graph: there is no switch for half precision."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from common.errors import ModelError
from plugins import op

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class Precision(StrEnum):
    """Type of the network's weights and activations, from its first convolution to its last."""

    FP16 = "fp16"
    FP32 = "fp32"


ELEMENTS: dict[Precision, int] = {Precision.FP16: TensorProto.FLOAT16, Precision.FP32: TensorProto.FLOAT}
DTYPES: dict[int, np.dtype[Any]] = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.FLOAT: np.dtype(np.float32)}


def is_op(node: NodeProto) -> bool:
    """Whether the node is the deformable convolution."""
    return (node.domain, node.op_type) == (op.DOMAIN, op.NAME)


def is_convolution(node: NodeProto) -> bool:
    """Whether the node is a convolution of any kind, our op among them."""
    return node.op_type in ("Conv", "ConvTranspose") or is_op(node)


def retype(model: onnx.ModelProto, precision: Precision) -> None:
    """Give the network the types of `precision`, whatever types it has, in place.

    Its weights, and all that lies between its first convolutions and its last, take that type. What comes before (8-bit
    images made samples) and after (the residual's addition, clipping, rounding) is fp32; input and output keep their
    types. Casts between floating types, which stand behind every weight of the bundled file, go.
    Raises ModelError for a weight beyond the type's range and for a graph with control flow.
    """
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute):
        raise ModelError("expected a network without control flow, found an If, Loop or Scan")
    _Retyping(model, ELEMENTS[precision]).apply()


class _Retyping:
    """One walk over a graph. Names are those of the graph; `same` leads from one to another of equal values."""

    def __init__(self, model: onnx.ModelProto, element: int) -> None:
        self.graph, self.element = model.graph, element
        self.floats = _floating(model)
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.kept = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in self.floats}
        self.same: dict[str, str] = {}
        self.found = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self.done: list[NodeProto] = []

    def apply(self) -> None:
        declared = {value.name: value.type.tensor_type.elem_type for value in self.graph.output}
        nodes = list(self._without_casts())
        inside = _between_convolutions(nodes)
        for position, node in enumerate(nodes):
            element = self.element if position in inside else TensorProto.FLOAT
            for index, name in enumerate(node.input):
                if name in self.floats:
                    # the scales of a Resize are fp32 in every graph
                    scales = node.op_type == "Resize" and index > 0
                    node.input[index] = self._typed(name, TensorProto.FLOAT if scales else element)
            for index, name in enumerate(node.output):
                if name in self.floats:
                    if declared.get(name, element) != element:
                        self.same[name] = node.output[index] = f"{name}.inner"
                    self.found[node.output[index]] = element
                if node.op_type == "Cast" and name in self.floats:  # of integers
                    next(a for a in node.attribute if a.name == "to").i = element
            self.done.append(node)
        for name, element in declared.items():
            if name in self.same:
                source = self._typed(name, element)
                self.done.append(helper.make_node("Identity", [source], [name], name=f"{name}.typed"))
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.done)
        self.graph.initializer.extend(self.kept.values())
        del self.graph.value_info[:]  # states the types that were

    def _without_casts(self) -> Iterator[NodeProto]:
        """The nodes but casts between floating types and constants of such, whose values they note."""
        for node in self.graph.node:
            name = node.output[0]
            floating = name in self.floats
            if node.op_type == "Cast" and floating and node.input[0] in self.floats:
                self.same[name] = self._source(node.input[0])
            elif node.op_type == "Constant" and floating:
                attribute = node.attribute[0]
                value = helper.get_attribute_value(attribute)
                is_tensor = attribute.type == AttributeProto.TENSOR
                self.weights[name] = numpy_helper.to_array(value) if is_tensor else np.asarray(value, np.float32)
            else:
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.input[:] = [self._source(source) for source in node.input]
                yield copy

    def _source(self, name: str) -> str:
        return self.same.get(name, name)

    def _typed(self, name: str, element: int) -> str:
        """Name of the same values in another type, after whatever makes it."""
        name = self._source(name)
        if self.found.get(name) == element:
            return name
        typed = f"{name}.{DTYPES[element].name}"
        if name in self.weights and typed not in self.kept:
            self.kept[typed] = numpy_helper.from_array(_converted(self.weights[name], element, name), typed)
        elif name not in self.weights and typed not in self.found:
            self.done.append(helper.make_node("Cast", [name], [typed], name=typed, to=element))
            self.found[typed] = element
        return typed


def _converted(values: NDArray[Any], element: int, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        result = values.astype(DTYPES[element])
    if not np.isfinite(result).all():
        largest = np.abs(values.astype(np.float64)).max()
        raise ModelError(f"expected weights that {DTYPES[element]} holds, found {largest:.3g} in {name}")
    return result


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph without functions and with the types and shapes of all values, as far as ONNX can tell them.

    Functions are inlined, because where PyTorch's exporter has made the op's schema known, ONNX looks at that instead,
    which tells no shapes.
    """
    return onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model)).graph


def _floating(model: onnx.ModelProto) -> set[str]:
    """Names of all values of floating type. Raises ModelError where ONNX cannot tell a value's type."""
    graph = inferred(model)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    for node in model.graph.node:
        for name in filter(None, node.output):
            if not types.get(name):
                raise ModelError(f"expected a node whose type is known, found {node.name or name} ({node.op_type})")
    return {name for name, element in types.items() if element in FLOATS}


def _between_convolutions(nodes: list[NodeProto]) -> set[int]:
    """Places of the convolutions, and of the nodes on the ways from one to another.

    A shape is no value: a way ends at a Shape node.
    """
    after: set[str] = set()
    before: set[str] = set()
    later, earlier = set(), set()
    for place, node in enumerate(nodes):
        if is_convolution(node) or (node.op_type != "Shape" and after.intersection(node.input)):
            later.add(place)
            after.update(node.output)
    for place, node in reversed(list(enumerate(nodes))):
        if is_convolution(node) or before.intersection(node.output):
            earlier.add(place)
            before.update(node.input)
    return later & earlier
