"""Asks the plugin what TensorRT's ONNX parser and builder ask, in their order, and keeps the launch that it answers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx

from plugins import launch, nvrtc, op
from plugins.launch import Layer, Layout, Precision
from tests.plugins.tensorrt_double import DynamicPluginTensorDesc, ExprBuilder, Expression, PluginTensorDesc, Sizes

Combination = tuple[tuple[str, str], ...]
"""(type, format) of x, offset_mask, weight, bias and y, in TensorRT's words."""
Tactic = tuple[Layer, Precision, Layout, int]
TYPES: dict[Precision, str] = {"fp32": "FLOAT", "fp16": "HALF"}
FORMATS: dict[Layout, str] = {"linear": "LINEAR", "hwc8": "HWC8"}

ARCH = 80
"""What the PTX is compiled for in these tests."""

SADNET = tuple(Layer(c, c, offset_pitch=216) for c in (32, 64, 128, 256))
OTHERS = (
    Layer(24, 40, 3, negative_slope=0.1, offset_pitch=88),
    Layer(8, 16, 1, negative_slope=1.0, offset_pitch=32),
    Layer(64, 200, 4, offset_pitch=112),
)
"""Like SADNET, with the channels that TensorRT pads offset_mask to in HWC8."""
LINEAR_ONLY = Layer(6, 5, 2)


def tactics_of(*layers: Layer) -> list[Tactic]:
    """Every kernel that the plugin should offer for the layers."""
    found: list[Tactic] = []
    for layer in layers:
        forms: tuple[tuple[Precision, Layout], ...] = (("fp32", "linear"), ("fp16", "linear"), ("fp16", "hwc8"))
        for precision, layout in forms[: 2 if layer == LINEAR_ONLY else 3]:
            count = len(launch.kernels(layer, precision, layout))
            found += [(layer, precision, layout, i + 1) for i in range(count)]
    return found


def expected_kernel(layer: Layer, precision: Precision, layout: Layout, tactic: int) -> launch.Kernel:
    """What a tactic should launch: ONNX's attributes are fp32, and only HWC8 has a pitch."""
    pitch = layer.offset_pitch if layout == "hwc8" else 0
    exact = replace(layer, offset_pitch=pitch, negative_slope=float(np.float32(layer.negative_slope)))
    return launch.kernels(exact, precision, layout)[tactic - 1]


_compile, _compiled = nvrtc.compile_kernel, dict[Any, nvrtc.Compiled]()


def compile_once(kernel: launch.Kernel, arch: int) -> nvrtc.Compiled:
    """For `nvrtc.compile_kernel`, which numbers registers otherwise from call to call: equal kernels, equal PTX."""
    key = (kernel.source, kernel.macros, arch)
    if key not in _compiled:
        _compiled[key] = _compile(kernel, arch)
    return _compiled[key]


def ptx_parameters(ptx: bytes) -> list[str]:
    """The types of the entry's parameters, such as u64."""
    found = re.search(rf"\.entry {launch.ENTRY}\(([^)]*)\)", ptx.decode())
    assert found
    return re.findall(r"\.param \.(\w+)", found[1])


def parsed_fields(trt: ModuleType, node: onnx.NodeProto, creator: Any) -> list[Any]:
    """The fields that TensorRT's ONNX parser makes of a node.

    Read in onnx/onnx-tensorrt, at commit 0137504e (TensorRT 10.6, the first that took such plugins; the sources of 11.4
    were not at hand): `loadFields` in onnxOpImporters.cpp goes through the creator's `field_names` in their order and
    looks each up among the node's attributes. So plugin_namespace, plugin_version and aot, which are no fields of the
    creator, are not passed (`FallbackPluginImporter` there and `createPlugin` in importerUtils.cpp read them: with aot
    set, STRICT_AOT), and an attribute that the node lacks is left out, with a warning. An INT becomes one INT32 and a
    FLOAT one FLOAT32, whatever type the creator named.
    """
    kinds = {
        onnx.AttributeProto.INT: (np.int32, trt.PluginFieldType.INT32),
        onnx.AttributeProto.FLOAT: (np.float32, trt.PluginFieldType.FLOAT32),
    }
    attributes = {attribute.name: attribute for attribute in node.attribute}
    fields = []
    for field in creator.field_names:
        if field.name in attributes:
            dtype, kind = kinds[attributes[field.name].type]
            value = np.array([onnx.helper.get_attribute_value(attributes[field.name])], dtype)
            fields.append(trt.PluginField(field.name, value, kind))
    return fields


@dataclass(frozen=True)
class Launch:
    """What TensorRT would launch: `entry` of `ptx` on pointers to the inputs, the int32 `scalars`, a pointer to y."""

    entry: str
    ptx: bytes
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    scalars: tuple[int, ...]


class Build:
    """One node on its way from ONNX to an engine.

    shapes: of x, offset_mask, weight and bias; a name for a size that is known at run time only. largest: of these.
    """

    def __init__(
        self, trt: ModuleType, node: onnx.NodeProto, shapes: Sequence[Sequence[int | str]], dtype: str, largest: Sizes
    ) -> None:
        creator = trt.get_plugin_registry().get_creator(node.op_type, str(op.VERSION), node.domain)
        fields = trt.PluginFieldCollection(parsed_fields(trt, node, creator))
        request = trt.QuickPluginCreationRequest.STRICT_AOT
        self.plugin = creator.create_plugin(node.op_type, node.domain, fields, trt.TensorRTPhase.BUILD, request)
        self.trt, self.builder, self.largest = trt, ExprBuilder(), largest
        self.inputs = [[self._expression(size) for size in shape] for shape in shapes]
        types = [getattr(trt.DataType, dtype)] * len(shapes)
        self.output_types = self.plugin.get_output_data_types(types, [len(shape) for shape in shapes])
        self.outputs = self.plugin.get_output_shapes(self.inputs, [], self.builder)

    def _expression(self, size: int | str) -> Expression:
        return self.builder.constant(size) if isinstance(size, int) else Expression(lambda sizes: sizes[size])

    def _tensors(self, combination: Combination) -> list[DynamicPluginTensorDesc]:
        tensors = []
        for shape, (kind, layout) in zip(self.inputs + self.outputs, combination, strict=True):
            dims = self.trt.Dims([-1 if size.constant is None else size.constant for size in shape])
            desc = PluginTensorDesc(
                dims=dims, type=getattr(self.trt.DataType, kind), format=self.trt.TensorFormat[layout], scale=-1.0
            )
            most = self.trt.Dims([size.at(self.largest) for size in shape])
            least = self.trt.Dims([size.at(dict.fromkeys(self.largest, 1)) for size in shape])
            tensors.append(DynamicPluginTensorDesc(desc=desc, min=least, opt=least, max=most))
        return tensors

    def combinations(self) -> list[Combination]:
        """The types and formats that the plugin offers."""
        network = self._tensors((("HALF", "LINEAR"),) * (len(self.inputs) + 1))
        flat = self.plugin.get_supported_format_combinations(network, len(self.inputs))
        pairs = [(desc.type.name, desc.format.name) for desc in flat]
        return [tuple(pairs[i : i + len(network)]) for i in range(0, len(pairs), len(network))]

    def tactics(self, combination: Combination) -> list[int]:
        """Of one that `combinations` has named."""
        tensors = self._tensors(combination)
        self.plugin.configure_plugin(tensors[: len(self.inputs)], tensors[len(self.inputs) :])
        return sorted(self.plugin.get_valid_tactics())

    def record(self, combination: Combination, tactic: int) -> Callable[[Sizes], Launch]:
        """The launch of a tactic, for any sizes."""
        tensors, count = self._tensors(combination), len(self.inputs)
        params, scalars = SimpleNamespace(), _SymExprs()
        self.plugin.set_tactic(tactic)
        self.plugin.get_launch_params(self.inputs, tensors, count, params, scalars, self.builder)
        descs = [tensor.desc for tensor in tensors]
        entry, ptx = self.plugin.get_kernel(descs[:count], descs[count:])
        extra = [scalars[i] for i in range(scalars.nbSymExprs)]
        assert all(symbol.dtype == self.trt.PluginArgDataType.INT32 for symbol in extra)

        def at(sizes: Sizes) -> Launch:
            def axes(name: str) -> tuple[int, int, int]:
                x, y, z = (getattr(params, f"{name}_{axis}").expr.at(sizes) for axis in "xyz")
                return x, y, z

            values = tuple(symbol.expr.at(sizes) for symbol in extra)
            return Launch(entry, ptx, axes("grid"), axes("block"), params.shared_mem.expr.at(sizes), values)

        return at


class _SymExprs(dict[int, Any]):
    """For ISymExprs."""

    nbSymExprs: int  # noqa: N815  (TensorRT's name)


def recorded_launch(
    trt: ModuleType,
    layer: Layer,
    precision: Precision,
    layout: Layout,
    tactic: int,
    sizes: Sizes,
    dynamic: bool = True,
) -> Launch:
    """What TensorRT would launch for a layer, at sizes n, h and w, in an engine for any sizes or for these alone."""
    build = Build(trt, node_of(layer), shapes_of(layer, None if dynamic else sizes), TYPES[precision], sizes)
    (combination,) = (c for c in build.combinations() if c[0] == (TYPES[precision], FORMATS[layout]))
    assert tactic in build.tactics(combination)
    return build.record(combination, tactic)(sizes)


def node_of(layer: Layer, **attributes: Any) -> onnx.NodeProto:
    """The layer's node, with the attributes that our exporter writes and `attributes`; None takes one away."""
    values = {"offset_groups": layer.offset_groups, "negative_slope": layer.negative_slope} | op.PLUGIN_ATTRIBUTES
    kept: dict[str, Any] = {name: value for name, value in (values | attributes).items() if value is not None}
    return onnx.helper.make_node(op.NAME, ["x", "offset_mask", "weight", "bias"], ["y"], domain=op.DOMAIN, **kept)


def shapes_of(layer: Layer, sizes: Sizes | None = None) -> list[tuple[int | str, ...]]:
    """Of the layer's inputs, at fixed sizes or at any."""
    n, h, w = (size if sizes is None else sizes[size] for size in ("n", "h", "w"))
    c, o = layer.channels, layer.outputs
    return [(n, c, h, w), (n, op.offset_mask_channels(layer.offset_groups), h, w), (o, c, 3, 3), (o,)]
