"""From an ONNX model to a serialised engine, by either library: parsed, its types checked, built."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from common.errors import ModelError
from common.plan_sidecar import TensorInfo
from common.tensorrt_library import Backend, Log, load_library, logger
from export.plan_graph import image_shape
from export.plan_progress import progress
from export.plan_types import Precision, is_op
from plugins import onnx_op

TYPE_NAMES: dict[int, Literal["float32", "float16", "uint8"]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True)
class Sizes:
    """(width, height) in pixels, multiples of 8: the least, the one that the plan is tuned for, and the most."""

    least: tuple[int, int]
    usual: tuple[int, int]
    most: tuple[int, int]

    @property
    def fixed(self) -> bool:
        """Whether the plan takes one size alone."""
        return self.least == self.usual == self.most


@dataclass(frozen=True)
class Plan:
    """A serialised engine and what is known of it."""

    data: Any
    """Its bytes, as a buffer."""
    version: str
    """Of the library that made it, the only one that runs it."""
    activation_bytes: int | None
    """Device memory of one context, beside the weights; None where the library did not tell."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Target(ABC):
    """What one library does in its own way."""

    backend: Backend

    @abstractmethod
    def state_op(self, model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
        """The model with the op as the library takes it."""

    @abstractmethod
    def opened(self, trt: Any, log: Log) -> AbstractContextManager[None]:
        """Around parsing and building."""

    @abstractmethod
    def configure(self, trt: Any, config: Any, log: Log) -> None:
        """Settings of an IBuilderConfig."""

    @abstractmethod
    def finish(self, trt: Any, config: Any, data: Any, precision: Precision) -> int | None:
        """Look at the finished plan before it is written; returns its activation bytes where it tells them."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The sidecar's compute_capabilities, gpu, plugin and kernels_sha256."""


def build(target: Target, model: onnx.ModelProto, precision: Precision, sizes: Sizes) -> Plan:
    """Build a plan of a model that has its types and sizes (`plan_graph`); the op is stated here.

    Prints a line for the types checked. Raises ModelError where the library refuses the network, or a type is not what
    was asked for, DependencyError where the library is missing.
    """
    trt = load_library(target.backend)
    trt_logger, log = logger(target.backend)
    log.clear()
    ops = sum(map(is_op, model.graph.node))
    stated = target.state_op(model, sizes)
    with target.opened(trt, log), progress(trt) as monitor:
        builder = trt.Builder(trt_logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, trt_logger)  # owns the weights until the plan is built
        if not parser.parse(stated.SerializeToString()):
            raise _parse_error(parser, log)
        checked = check_types(trt, network, precision, ops)
        config = builder.create_builder_config()
        config.progress_monitor = monitor
        if precision is Precision.FP32:
            config.clear_flag(trt.BuilderFlag.TF32)
        for tensor in (network.get_input(0), network.get_output(0)):
            tensor.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
        inputs, outputs = (_describe(values, sizes) for values in (stated.graph.input, stated.graph.output))
        if not sizes.fixed:
            profile = builder.create_optimization_profile()
            for tensor in inputs:
                profile.set_shape(tensor.name, tensor.min, tensor.opt, tensor.max)
            config.add_optimization_profile(profile)
        target.configure(trt, config, log)
        data = builder.build_serialized_network(network, config)
        if data is None:
            raise log.failure("cannot build this plan")
    activation_bytes = target.finish(trt, config, data, precision)
    print(f"all {checked} convolutions compute in {precision}, the sampling of {ops} deformable ones in fp32")
    return Plan(data, trt.__version__, activation_bytes or log.activation_bytes, inputs, outputs)


def check_types(trt: Any, network: Any, precision: Precision, ops: int) -> int:
    """Look at every parsed layer and return the number of convolutions; the types are the network's, not the graph's.

    Convolutions, plugins and the op's body outside its sampling must be of `precision`, the sampling fp32; `ops` is how
    many deformable convolutions there are. Raises ModelError, which names the layer.
    """
    wanted = {Precision.FP16: trt.DataType.HALF, Precision.FP32: trt.DataType.FLOAT}[precision]
    floating = {trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16}
    convolutions = deformable = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type
        plugin = kind.name.startswith("PLUGIN")
        deformable += plugin or kind == trt.LayerType.GRID_SAMPLE
        convolution = kind in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
        convolutions += convolution
        sampling = kind == trt.LayerType.GRID_SAMPLE or layer.name.startswith(onnx_op.SAMPLING)
        if convolution or plugin:
            expected, tensors = wanted, _inputs(layer) + _outputs(layer)
        elif sampling:
            expected, tensors = trt.DataType.FLOAT, _outputs(layer)
        elif layer.name.startswith(onnx_op.BODY):
            expected, tensors = wanted, _outputs(layer)
        else:
            continue
        found = {tensor.dtype for tensor in tensors} & floating
        if convolution:
            found |= _weights_type(trt, layer)
        if wrong := found - {expected}:
            raise ModelError(f"expected {expected.name} in the layer {layer.name}, found {wrong.pop().name}")
    if not convolutions or deformable < ops:
        raise ModelError(
            f"expected a network of convolutions, {ops} of them deformable, found {convolutions}, {deformable} of them"
        )
    return convolutions


def _inputs(layer: Any) -> list[Any]:
    return [tensor for tensor in map(layer.get_input, range(layer.num_inputs)) if tensor is not None]


def _outputs(layer: Any) -> list[Any]:
    return list(map(layer.get_output, range(layer.num_outputs)))


def _weights_type(trt: Any, layer: Any) -> set[Any]:
    """Type of a convolution's weights; none where they are a tensor, which is one of its inputs."""
    transposed = layer.type == trt.LayerType.DECONVOLUTION
    layer.__class__ = trt.IDeconvolutionLayer if transposed else trt.IConvolutionLayer  # how this API casts
    types = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT}
    return {types[weights.dtype.name] for weights in (layer.kernel, layer.bias) if np.size(weights)}


def _describe(values: Sequence[onnx.ValueInfoProto], sizes: Sizes) -> tuple[TensorInfo, ...]:
    """Inputs or outputs for the sidecar."""

    def describe(value: onnx.ValueInfoProto) -> TensorInfo:
        shapes = (image_shape(value, height, width) for width, height in (sizes.least, sizes.usual, sizes.most))
        return TensorInfo(value.name, TYPE_NAMES[value.type.tensor_type.elem_type], "linear", *shapes)

    return tuple(map(describe, values))


def _parse_error(parser: Any, log: Log) -> ModelError:
    """The parser's own words, with the node that they are about."""
    messages = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        stack = error.local_function_stack()
        node = error.node_name() or (stack[-1] if stack else "a node without a name")
        messages.append(f"{node} ({error.node_operator()}): {error.desc()}")
    log.errors[:] = messages or log.errors
    return log.failure("cannot take this network")
