"""The plugin library from Python: CMake, TensorRT's structures, and harness.cpp's C functions for its virtual ones."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import pytest

from plugins import op

SOURCE = Path(__file__).resolve().parents[3] / "plugins" / "tensorrt_v3"

FP32, FP16, INT8 = 0, 1, 2
"""nvinfer1::DataType."""
TYPES, FORMATS = range(12), range(13)
LINEAR, CHW2, HWC8 = 0, 1, 2
"""nvinfer1::TensorFormat."""
INT32_FIELD, FLOAT32_FIELD, CHAR_FIELD = 5, 1, 6
"""nvinfer1::PluginFieldType."""
BUILD, RUNTIME = 0, 1
"""nvinfer1::TensorRTPhase."""
INVALID_ARGUMENT, FAILED_EXECUTION = 3, 7
"""nvinfer1::ErrorCode."""
FINDS, FINDS_NOTHING, THROWS, ABSENT = range(4)
"""harness.cpp's FinderKind."""

Combination = tuple[tuple[int, int], ...]
"""Type and format of x, offset_mask, weight, bias and y."""
ALL_FP32: Combination = ((FP32, LINEAR),) * 5
ALL_FP16: Combination = ((FP16, LINEAR),) * 5
CHANNELS_LAST: Combination = ((FP16, HWC8),) * 3 + ((FP16, LINEAR), (FP16, HWC8))
COMBINATIONS = {"fp32 linear": ALL_FP32, "fp16 linear": ALL_FP16, "fp16 hwc8": CHANNELS_LAST}


class Dims(Structure):
    _fields_ = (("nbDims", c_int32), ("d", c_int64 * 8))


class TensorDesc(Structure):
    _fields_ = (("dims", Dims), ("type", c_int32), ("format", c_int32), ("scale", c_float))


class DynamicTensorDesc(Structure):
    _fields_ = (("desc", TensorDesc), ("min", Dims), ("max", Dims), ("opt", Dims))


class Field(Structure):
    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class Fields(Structure):
    _fields_ = (("nbFields", c_int32), ("fields", POINTER(Field)))


Shape = Sequence[int]


def dims(shape: Shape) -> Dims:
    return Dims(len(shape), (c_int64 * 8)(*shape))


def shapes_of(n: int, c: int, o: int, groups: int, h: int, w: int) -> list[tuple[int, ...]]:
    """Of x, offset_mask, weight, bias and y."""
    return [(n, c, h, w), (n, op.offset_mask_channels(groups), h, w), (o, c, 3, 3), (o,), (n, o, h, w)]


def describe(shapes: Sequence[Shape], combination: Combination) -> "ctypes.Array[TensorDesc]":
    tensors = (TensorDesc * 5)()
    for tensor, shape, (kind, layout) in zip(tensors, shapes, combination, strict=True):
        tensor.dims, tensor.type, tensor.format, tensor.scale = dims(shape), kind, layout, -1
    return tensors


def describe_dynamic(
    shapes: Sequence[Shape], combination: Combination, largest: Sequence[Shape] | None = None
) -> "ctypes.Array[DynamicTensorDesc]":
    tensors = (DynamicTensorDesc * 5)()
    for tensor, desc, most in zip(tensors, describe(shapes, combination), largest or shapes, strict=True):
        tensor.desc, tensor.min, tensor.max, tensor.opt = desc, dims(most), dims(most), dims(most)
    return tensors


class Plugin:
    """One IPluginV3, which is destroyed with it. Methods give TensorRT's codes; `log` what was logged since."""

    def __init__(self, harness: Any, handle: int) -> None:
        self.harness, self.handle = harness, c_void_p(handle)

    def __del__(self) -> None:
        self.harness.v3_destroy(self.handle)

    def log(self) -> str:
        return str(self.harness.v3_log().decode())

    def output_types(self, types: Sequence[int]) -> tuple[int, int]:
        found = c_int32(-1)
        code = self.harness.v3_output_types(self.handle, (c_int32 * len(types))(*types), len(types), byref(found), 1)
        return code, found.value

    def output_shape(self, shapes: Sequence[Shape]) -> tuple[int, list[int]]:
        found = Dims()
        array = (Dims * len(shapes))(*map(dims, shapes))
        code = self.harness.v3_output_shapes(self.handle, array, len(shapes), byref(found), 1)
        return code, list(found.d[: found.nbDims])

    def combinations(self, shapes: Sequence[Shape], largest: Sequence[Shape] | None = None) -> set[Combination]:
        """All that TensorRT finds, which asks for one tensor after another."""
        found: set[Combination] = set()
        garbage = (-7, -7)

        def extend(chosen: Combination) -> None:
            if len(chosen) == 5:
                found.add(chosen)
                return
            for pair in ((kind, layout) for kind in TYPES for layout in FORMATS):
                combination = (*chosen, pair, *(garbage,) * (4 - len(chosen)))
                tensors = describe_dynamic(shapes, combination, largest)
                for tensor in tensors[len(chosen) + 1 :]:  # TensorRT has not set these yet
                    tensor.desc.dims.nbDims = 8
                    tensor.max.nbDims = 8
                if self.harness.v3_supports(self.handle, len(chosen), tensors, 4, 1):
                    extend((*chosen, pair))

        extend(())
        return found

    def configure(self, shapes: Sequence[Shape], combination: Combination) -> int:
        tensors = describe_dynamic(shapes, combination)
        return int(self.harness.v3_configure(self.handle, tensors, 4, byref(tensors[4]), 1))

    def tactics(self) -> list[int]:
        count = self.harness.v3_tactic_count(self.handle)
        found = (c_int32 * (count + 1))()
        assert self.harness.v3_tactics(self.handle, found, count) == 0
        assert found[count] == 0
        return list(found[:count])

    def set_tactic(self, tactic: int) -> int:
        return int(self.harness.v3_set_tactic(self.handle, tactic))

    def shape_change(self, shapes: Sequence[Shape], combination: Combination) -> int:
        tensors = describe(shapes, combination)
        return int(self.harness.v3_shape_change(self.handle, tensors, 4, byref(tensors[4]), 1))

    def enqueue(
        self, shapes: Sequence[Shape], combination: Combination, pointers: Sequence[int], stream: int = 0
    ) -> int:
        tensors = describe(shapes, combination)
        inputs, output = (c_void_p * 4)(*pointers[:4]), (c_void_p * 1)(pointers[4])
        return int(self.harness.v3_enqueue(self.handle, tensors, byref(tensors[4]), inputs, output, stream))

    def serialized(self) -> list[Field]:
        """What an engine keeps of it."""
        fields = self.harness.v3_fields_to_serialize(self.handle).contents
        return list(fields.fields[: fields.nbFields])

    def attributes(self) -> tuple[int, float]:
        return attributes_in(self.serialized())


Create = Callable[..., Plugin | None]


def attributes_in(fields: Sequence[Field]) -> tuple[int, float]:
    groups, slope = fields
    assert (groups.name, groups.type, groups.length) == (b"offset_groups", INT32_FIELD, 1)
    assert (slope.name, slope.type, slope.length) == (b"negative_slope", FLOAT32_FIELD, 1)
    return ctypes.cast(groups.data, POINTER(c_int32))[0], ctypes.cast(slope.data, POINTER(c_float))[0]


def field(name: str, value: Any, kind: int, length: int = 1) -> Field:
    """value: a ctypes number or array, which the field keeps alive; None for a null pointer."""
    result = Field(name.encode(), None if value is None else ctypes.cast(byref(value), c_void_p), kind, length)
    result.value = value
    return result


def attributes(groups: int = op.OFFSET_GROUPS, slope: float = op.NEGATIVE_SLOPE) -> list[Field]:
    return [
        field("offset_groups", c_int32(groups), INT32_FIELD),
        field("negative_slope", c_float(slope), FLOAT32_FIELD),
    ]


def configure(
    build: Path, *options: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"not built: {tool} absent")
    command = ["cmake", "-S", str(SOURCE), "-B", str(build), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def one_line(text: str) -> str:
    """CMake breaks a message into lines."""
    return " ".join(text.split())


def load(harness: Path, library: Path) -> Any:
    """harness.cpp's functions, with the plugin library opened."""
    loaded = ctypes.CDLL(str(harness))
    texts = ("open", "log", "creator_name", "creator_version", "creator_namespace", "name", "version", "namespace")
    results: dict[Any, Iterable[str]] = {
        c_char_p: (*texts, "capability", "metadata"),
        c_void_p: ("create", "clone", "attach"),
        POINTER(Fields): ("field_names", "fields_to_serialize"),
        c_bool: ("supports",),
        c_size_t: ("workspace",),
    }
    for result, names in results.items():
        for name in names:
            getattr(loaded, f"v3_{name}").restype = result
    loaded.v3_enqueue.argtypes = [c_void_p] * 6
    failure = loaded.v3_open(str(library).encode())
    if failure:
        raise OSError(failure.decode())
    return loaded
