"""The JSON file beside a plan, by which a runtime knows whether it can run it. `sadnet.plan` has `sadnet.plan.json`.

format          1
plan_sha256     of the plan: the two files belong together
backend         tensorrt or tensorrt-rtx
version         of that library: it alone runs the plan
precision       fp16 or fp32, of the network between input and output
inputs, outputs name, type, format ("linear": no padding, last axis fastest), shapes min, opt and max; one each,
                (1, C, H, W) float32 or float16 in [0, 1], or (1, H, W, C) uint8
compute_capabilities
                what the plan runs on: "8.6", or "8.0 and later"
gpu             name and compute_capability of the GPU that it was built on and for, or null
plugin          null; {"kind": "ahead of time"}, which is inside the plan; or {"kind": "library", "file", "sha256"},
                which has to be loaded first
kernels_sha256  of plugins/kernels, where these are inside the plan, or null
activation_bytes
                device memory of one context, beside the weights, or null
onnx            file and sha256 of the model that the plan was made of
model           what that file's metadata says: the network's configuration and its weights' SHA-256
created         date and time, UTC
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError, ModelError
from common.files import whole_file
from common.machine import Gpu
from common.padding import MULTIPLE
from common.tensorrt_library import Backend

FORMAT = 1
MOST = 2**16
"""Of height and width, in pixels."""
AND_LATER = " and later"
"""Ends a compute capability that stands for all from it on."""
CAPABILITY = rf"[0-9]{{1,3}}\.[0-9]({AND_LATER})?"
SHA256 = "[0-9a-f]{64}"


@dataclass(frozen=True)
class TensorInfo:
    """Input or output of a plan. min, opt, max: shapes; equal where the plan takes one size alone."""

    name: str
    type: Literal["float32", "float16", "uint8"]
    format: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def channels(self) -> int:
        """1, gray, or 3, RGB."""
        return self.max[3 if self.type == "uint8" else 1]

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) of one of its shapes; 8-bit images are stored N, H, W, C."""
        first = 1 if self.type == "uint8" else 2
        return shape[first], shape[first + 1]


@dataclass(frozen=True)
class Sidecar:
    """What the file says, but for `format`; the module's text describes every entry."""

    plan_sha256: str
    backend: Backend
    version: str
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    compute_capabilities: tuple[str, ...]
    gpu: Gpu | None
    plugin: dict[str, str] | None
    kernels_sha256: str | None
    activation_bytes: int | None
    onnx: dict[str, str]
    model: dict[str, Any]
    created: str

    def dumps(self) -> str:
        """The file's text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def sidecar_path(plan: Path) -> Path:
    """Of a plan's sidecar. The whole name stays: `blind_color.json` is the model card's."""
    return plan.with_name(f"{plan.name}.json")


def read_sidecar(plan: Path) -> Sidecar:
    """What the file beside a plan says. Raises InputError where it is missing, ModelError where it is damaged."""
    path = sidecar_path(plan)
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        number = values.pop("format")
        if number == FORMAT:
            return _checked(values)
    except FileNotFoundError as error:
        raise InputError(
            f"{plan}: expected {path.name} beside it, which says what runs the plan, found none: copy it there, or "
            "build the plan with export/to_plan.py"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: expected a plan's description, cannot read it: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"{path}: expected what export/to_plan.py writes beside a plan, found another or a damaged file ({error}): "
            "build the plan again"
        ) from error
    raise ModelError(f"{path}: expected format {FORMAT}, found {number!r}: build the plan again with this checkout")


def _checked(values: dict[str, Any]) -> Sidecar:
    """A sidecar that can be relied on, or ValueError, KeyError or TypeError: it may come from anywhere."""
    for side in ("inputs", "outputs"):
        (entry,) = values[side]
        values[side] = (_tensor(entry),)
    given, made = values["inputs"][0], values["outputs"][0]
    if replace(made, name=given.name) != given or made.name == given.name:
        raise ValueError(f"input {given} and output {made}")
    values["backend"] = Backend(values["backend"])
    if values["gpu"] is not None:
        values["gpu"] = Gpu(**values["gpu"])
        _match(".+", values["gpu"].name)
        _match(CAPABILITY, values["gpu"].compute_capability)
    values["compute_capabilities"] = tuple(values["compute_capabilities"])
    for capability in values["compute_capabilities"]:
        _match(CAPABILITY, capability)
    if values["plugin"] is not None:
        _match("library|ahead of time", values["plugin"]["kind"])
    library = [values["plugin"]] if values["plugin"] and values["plugin"]["kind"] == "library" else []
    for file in (values["onnx"], *library):
        _match(r"[^/\\\0]+", file["file"])  # a name: it is looked for in folders of ours
        _match(SHA256, file["sha256"])
    _match("fp16|fp32", values["precision"])
    _match(".+", values["version"])
    _match(SHA256, values["plan_sha256"])
    values["model"] = dict(values["model"])
    return Sidecar(**values)


def _match(pattern: str, text: Any) -> None:
    if not isinstance(text, str) or not re.fullmatch(pattern, text) or text in (".", ".."):
        raise ValueError(f"{text!r}")


def _tensor(entry: dict[str, Any]) -> TensorInfo:
    tensor = TensorInfo(
        entry["name"], entry["type"], entry["format"], *(tuple(entry[name]) for name in ("min", "opt", "max"))
    )
    shapes = (tensor.min, tensor.opt, tensor.max)
    sides = [side for shape in shapes for side in tensor.size(shape)]
    good = (
        tensor.type in ("float32", "float16", "uint8")
        and tensor.format == "linear"
        and isinstance(tensor.name, str)
        and all(len(shape) == 4 and shape[0] == 1 for shape in shapes)
        and all(type(side) is int and 0 < side <= MOST and side % MULTIPLE == 0 for side in sides)
        and all(low <= mid <= high for low, mid, high in zip(*shapes, strict=True))
        and tensor.channels in (1, 3)
        and {tensor.channels} == {shape[3 if tensor.type == "uint8" else 1] for shape in shapes}
    )
    if not good:
        raise ValueError(f"an image {entry}")
    return tensor


@contextlib.contextmanager
def plan_files(plan: Path, *, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Yield temporary paths of a plan and its sidecar, which become files together at the end, or neither does.

    Raises OutputError as `common.files.whole_file` does.
    """
    published = False
    try:
        with whole_file(sidecar_path(plan), overwrite=overwrite) as sidecar:
            with whole_file(plan, overwrite=overwrite) as temporary:
                yield temporary, sidecar
            published = True
    except BaseException:  # Ctrl-C too
        if published and not overwrite:  # of an old plan the sidecar's SHA-256 tells
            plan.unlink(missing_ok=True)
        raise
