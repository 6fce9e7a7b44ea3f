"""Plans for TensorRT, with our plugin: built on the GPU that will run them, each kernel timed there.

What is in this module has not been run as a whole: it needs NVIDIA's package and a GPU. The rest of a build is the same
code as TensorRT-RTX's.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import InputError, ModelError
from common.files import sha256, write_whole
from common.machine import gpu
from common.tensorrt_library import STDERR, Backend, Log, load_builder, logger
from export.plan_build import Sizes, Target
from export.plan_graph import with_plugin
from export.plan_types import Precision, is_convolution
from plugins import launch, op


class TensorRTTarget(Target):
    """The op by our plugin.

    plugin: shared library of `plugins/tensorrt_v3`; None means the ahead-of-time plugin, whose kernels the plan holds.
    timing_cache: file of measured times, which the next build for the same GPU and version starts from.
    Raises InputError where there is no such library, DependencyError where TensorRT or a GPU is missing, or
    TensorRT too old.
    """

    backend = Backend.TENSORRT

    def __init__(self, plugin: Path | None, timing_cache: Path) -> None:
        if plugin is not None and not plugin.is_file():
            raise InputError(f"--plugin: expected a shared library, found none at {plugin}")
        load_builder()
        self.plugin, self.timing_cache = plugin, timing_cache
        self.gpu = gpu()
        self.convolutions: set[str] = set()

    def state_op(self, model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
        self.convolutions = {node.name for node in model.graph.node if is_convolution(node)}
        return with_plugin(model)

    @contextmanager
    def opened(self, trt: Any, log: Log) -> Iterator[None]:
        if self.plugin is None:
            from plugins import tensorrt_qdp

            tensorrt_qdp.register()
            with tensorrt_qdp.errors():
                yield
            return
        registry = trt.get_plugin_registry()
        if registry.load_library(str(self.plugin.resolve())) is None:
            raise log.failure(f"cannot load the plugins of {self.plugin}")
        if registry.get_creator(op.NAME, str(op.VERSION), op.DOMAIN) is None:
            raise ModelError(f"{self.plugin}: expected a library with the plugin {op.DOMAIN}::{op.NAME}, found none")
        yield

    def configure(self, trt: Any, config: Any, log: Log) -> None:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the report
        try:
            kept = self.timing_cache.read_bytes() if self.timing_cache.exists() else b""
        except OSError as error:
            raise InputError(f"{self.timing_cache}: expected a timing cache, cannot read it: {error}") from error
        cache = config.create_timing_cache(kept)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            STDERR.print(f"{self.timing_cache} is of another GPU or version: it will be replaced", highlight=False)
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def finish(self, trt: Any, config: Any, data: Any, precision: Precision) -> int | None:
        write_whole(self.timing_cache, bytes(config.get_timing_cache().serialize()), overwrite=True)
        return self._inspect(trt, data, precision)

    def _inspect(self, trt: Any, data: Any, precision: Precision) -> int:
        """Print what the engine does, refuse one that does not compute in `precision`, return its activation bytes."""
        trt_logger, log = logger(self.backend)
        runtime = trt.Runtime(trt_logger)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise log.failure("cannot load the plan that it built")
        inspector = engine.create_engine_inspector()
        layers = inspected_layers(json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)))
        print_layers(layers)
        if precision is Precision.FP16:
            edges = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
            check_layers(layers, self.convolutions, edges)
        return int(engine.device_memory_size_v2)

    def facts(self) -> dict[str, Any]:
        if self.plugin is None:
            plugin, kernels = {"kind": "ahead of time"}, kernels_sha256()
        else:
            plugin, kernels = {"kind": "library", "file": self.plugin.name, "sha256": sha256(self.plugin)}, None
        return {
            "compute_capabilities": (self.gpu.compute_capability,),
            "gpu": self.gpu,
            "plugin": plugin,
            "kernels_sha256": kernels,
        }


def kernels_sha256(folder: Path = launch.KERNELS) -> str:
    """Hex SHA-256 of all kernel sources: of their names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def inspected_layers(information: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of an engine inspector's JSON. Raises ModelError where it holds their names alone."""
    layers = information.get("Layers", [])
    if not layers or not all(isinstance(layer, dict) and "Name" in layer for layer in layers):
        raise ModelError("expected the engine inspector to tell layers with their types, found none or names alone")
    return list(layers)


def check_layers(layers: list[dict[str, Any]], convolutions: Collection[str], edges: Collection[str]) -> None:
    """Raise ModelError where a layer that holds one of the convolutions, ONNX node names, has no half-precision tensor.

    `edges` are input and output of the network, whose type says nothing: the first and the last convolution may be one
    layer with the conversions beside them.
    """
    for layer in layers:
        text = f"{layer['Name']} {layer.get('Metadata', '')}"
        held = set(convolutions) & set(re.findall(r"[\w./:-]+", text))
        inner = [t for t in (*layer.get("Inputs", ()), *layer.get("Outputs", ())) if t.get("Name") not in edges]
        types = {type_of(tensor) for tensor in inner}
        if held and "fp32" in types and "fp16" not in types:
            raise ModelError(f"expected fp16 in the layer {layer['Name']}, found fp32: TensorRT fell back")


def type_of(tensor: Mapping[str, Any]) -> str:
    """fp16, fp32, or what else the inspector says: 10.x has one field for type and format, 11.x has two."""
    text = str(tensor.get("DataType", tensor.get("Format/Datatype", tensor.get("Format", ""))))
    patterns = {r"bf16|bfloat": text, "fp16|half|float16": "fp16", "fp32|float": "fp32"}
    return next((name for pattern, name in patterns.items() if re.search(pattern, text, re.IGNORECASE)), text)


def print_layers(layers: list[dict[str, Any]]) -> None:
    """A table of what the engine does, and in which types and formats."""
    table = Table("layer", "kind", "in", "out", "formats")
    for layer in layers:
        sides = [layer.get(side, ()) for side in ("Inputs", "Outputs")]
        formats = {str(t.get("Format", t.get("Format/Datatype", ""))) for side in sides for t in side}
        types = [" ".join(dict.fromkeys(type_of(tensor) for tensor in side)) for side in sides]
        cells = (layer["Name"], layer.get("LayerType", ""), *types, "; ".join(sorted(formats)))
        table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)
