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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, ModelError, OutputError
from common.files import whole_file
from common.machine import Gpu
from common.tensorrt_library import Backend

FORMAT = 1
AND_LATER = " and later"
"""Ends a compute capability that stands for all from it on."""


@dataclass(frozen=True)
class TensorInfo:
    """Input or output of a plan. min, opt, max: shapes; equal where the plan takes one size alone."""

    name: str
    type: str
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
            for side in ("inputs", "outputs"):
                values[side] = tuple(_tensor(entry) for entry in values[side])
            values["backend"] = Backend(values["backend"])
            values["compute_capabilities"] = tuple(values["compute_capabilities"])
            values["gpu"] = values["gpu"] and Gpu(**values["gpu"])
            if len(values["inputs"]) != 1 or len(values["outputs"]) != 1:
                raise ValueError("not one input and one output")
            return Sidecar(**values)
    except FileNotFoundError as error:
        raise InputError(
            f"{plan}: expected {path.name} beside it, which says what runs the plan, found none: copy it there, or "
            "build the plan with export/to_plan.py"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: expected a plan's description, cannot read it: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path}: expected what export/to_plan.py writes beside a plan, found another or a damaged file ({error}): "
            "build the plan again"
        ) from error
    raise ModelError(f"{path}: expected format {FORMAT}, found {number!r}: build the plan again with this checkout")


def _tensor(entry: dict[str, Any]) -> TensorInfo:
    shapes = {name: tuple(int(side) for side in entry[name]) for name in ("min", "opt", "max")}
    if entry["type"] not in ("float32", "float16", "uint8") or any(len(shape) != 4 for shape in shapes.values()):
        raise ValueError(f"an image of type {entry['type']} and shapes {shapes}")
    return TensorInfo(entry["name"], entry["type"], entry["format"], **shapes)


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
    except OutputError:
        if published and not overwrite:  # of an old plan the sidecar's SHA-256 tells
            plan.unlink(missing_ok=True)
        raise
