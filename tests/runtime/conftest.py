"""Small ONNX models and plans that stand in for SADNet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.tensorrt_double import LARGE, SMALL, write_plan


def _write_model(
    path: Path,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    half: bool = False,
    marked: bool = True,
    details: str = json.dumps({"format": 1}),
    op: str = "Conv",
    outputs: int = 1,
) -> Path:
    """A 3x3 box blur of every channel; `op` "Identity" copies. `marked` puts the exporter's key into the metadata."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    shape: list[Any] = ["n", channels, *(size or ("h", "w"))]
    weights = numpy_helper.from_array(np.full((channels, 1, 3, 3), 1 / 9, dtype), "weights")
    options: dict[str, Any] = {"group": channels, "pads": [1, 1, 1, 1]} if op == "Conv" else {}
    inputs = ["image", "weights"] if op == "Conv" else ["image"]
    nodes = [helper.make_node(op, inputs, [f"clean{i}"], **options) for i in range(outputs)]
    graph = helper.make_graph(
        nodes,
        "stand-in",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(f"clean{i}", kind, shape) for i in range(outputs)],
        [weights] if op == "Conv" else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    if marked:
        helper.set_model_props(model, {"sadnet": details})
    onnx.save(model, path)
    return path


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """Call with a path and the options of `_write_model`; returns the path."""
    return _write_model


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """A folder with plans of three sizes, for `tensorrt_double`."""
    write_plan(tmp_path / "large.plan", LARGE, LARGE)
    write_plan(tmp_path / "range.plan", (8, 8), (96, 96))
    write_plan(tmp_path / "small.plan", SMALL, SMALL)
    return tmp_path


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    """One that copies, in a folder of its own."""
    (tmp_path / "model").mkdir()
    return write_model(tmp_path / "model" / "m.onnx", op="Identity")
