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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import OutputError
from common.files import sha256, whole_file
from export.plan_build import Plan, Target
from export.plan_types import Precision

FORMAT = 1


def sidecar_path(plan: Path) -> Path:
    """Of a plan's sidecar. The whole name stays: `blind_color.json` is the model card's."""
    return plan.with_name(f"{plan.name}.json")


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


def write_plan(
    plan: Plan, target: Target, precision: Precision, source: Path, details: dict[str, Any], files: tuple[Path, Path]
) -> dict[str, Any]:
    """Write the plan and its sidecar to `files`, and return what the sidecar says.

    source: the ONNX file; details: its metadata.
    """
    path, sidecar = files
    path.write_bytes(plan.data)
    contents = {
        "format": FORMAT,
        "plan_sha256": sha256(path),
        "backend": str(target.backend),
        "version": plan.version,
        "precision": str(precision),
        **plan.tensors,
        **target.facts(),
        "activation_bytes": plan.activation_bytes,
        "onnx": {"file": source.name, "sha256": sha256(source)},
        "model": details,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    sidecar.write_text(json.dumps(contents, indent=1) + "\n")
    return contents
