"""What is refused before a library sees a plan: one line each, which says how to build the plan again."""

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import DependencyError, InputError, ModelError, SadnetError
from common.machine import Gpu
from common.plan_sidecar import read_sidecar, sidecar_path
from export import to_plan
from export.plan_rtx import RtxTarget
from export.plan_types import Precision
from runtime.engines import open_engine
from runtime.engines.plan_file import open_plan, rebuild
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import machine, write_plan

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 96)
COMMAND = "python export/to_plan.py --backend tensorrt-rtx --size 96x64 --precision fp16"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "a.plan", SIZE, SIZE)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(**values: Any) -> Callable[[Path], None]:
    def apply(plan: Path) -> None:
        path = sidecar_path(plan)
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def drop(name: str) -> Callable[[Path], None]:
    def apply(plan: Path) -> None:
        path = sidecar_path(plan)
        contents = json.loads(path.read_text())
        del contents[name]
        path.write_text(json.dumps(contents))

    return apply


@pytest.mark.parametrize(
    ("harm", "kind", "words"),
    [
        (damage, ModelError, f"expected the plan that a.plan.json describes, .*; build it again: {COMMAND}"),
        (
            change(version="1.6.0.1"),
            ModelError,
            rf"expected TensorRT-RTX 1\.6\.0\.1, .* found 1\.7\.1\.116: .*{COMMAND}",
        ),
        (
            change(compute_capabilities=["8.6", "12.0"]),
            ModelError,
            r"expected a GPU of compute capability 8\.6 or 12\.0, found NVIDIA GeForce RTX 4090 of 8\.9: .* "
            rf"{COMMAND} --compute-capability current .*--output .*a\.plan --overwrite -- sadnet\.onnx$",
        ),
        (lambda plan: sidecar_path(plan).unlink(), InputError, r"expected a\.plan\.json beside it"),
        (lambda plan: sidecar_path(plan).write_bytes(b"\xff\xfe"), ModelError, "another or a damaged file"),
        (lambda plan: sidecar_path(plan).write_text("[]"), ModelError, "another or a damaged file"),
        (lambda plan: sidecar_path(plan).write_text("{}"), ModelError, "another or a damaged file"),
        (change(format=2), ModelError, "expected format 1, found 2"),
        (change(inputs=[]), ModelError, "another or a damaged file"),
        (
            change(gpu={"name": "NVIDIA L40S", "compute_capability": "8.9"}),
            ModelError,
            "expected NVIDIA L40S, for which this plan was built, found NVIDIA GeForce RTX 4090",
        ),
        (change(plugin={"kind": "library", "file": "../lib.so", "sha256": "0" * 64}), ModelError, "lib.so"),
        (change(onnx=None), ModelError, "a damaged file"),
        (change(onnx={"file": "a/b.onnx", "sha256": "0" * 64}), ModelError, "b.onnx"),
        (change(compute_capabilities="8.9"), ModelError, "'8'"),
        (change(compute_capabilities=["sm_89"]), ModelError, "sm_89"),
        (change(backend="tensorrt-lite"), ModelError, "tensorrt-lite"),
        (change(surprise=1), ModelError, "surprise"),
        (drop("version"), ModelError, "version"),
        (
            change(
                outputs=[
                    {
                        "name": "y",
                        "type": "int4",
                        "format": "linear",
                        **{key: [1, 3, 64, 96] for key in ("min", "opt", "max")},
                    }
                ]
            ),
            ModelError,
            "int4",
        ),
    ],
)
def test_refusals_are_one_line(plan: Path, harm: Callable[[Path], Any], kind: type[SadnetError], words: str) -> None:
    harm(plan)
    with machine(World()), pytest.raises(kind, match=words) as caught:
        open_engine(plan)
    assert "\n" not in str(caught.value)
    assert str(plan) in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TENSOR = ("name", "type", "format", "min", "opt", "max")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_sidecar_makes_more_than_an_error_of_ours(plan: Path, data: st.DataObject) -> None:
    """One entry, or one of a tensor's, is anything at all: refused, or harmless."""
    write_plan(plan, SIZE, SIZE)
    path = sidecar_path(plan)
    contents = json.loads(path.read_text())
    name = data.draw(st.sampled_from([*contents, "else"]))
    if name in ("inputs", "outputs") and data.draw(st.booleans()):
        contents[name][0][data.draw(st.sampled_from(TENSOR))] = data.draw(VALUES)
    else:
        contents[name] = data.draw(VALUES)
    path.write_text(json.dumps(contents))
    with machine(World()), contextlib.suppress(SadnetError):
        open_engine(plan).close()


@pytest.mark.parametrize(
    ("capabilities", "found", "runs"),
    [
        (["8.0 and later"], "8.0", True),
        (["8.0 and later"], "12.0", True),
        (["8.0 and later"], "10.3", True),
        (["8.0 and later"], "7.5", False),
        (["7.5"], "7.5", True),
        (["7.5"], "8.6", False),
        (["8.6", "12.0"], "12.0", True),
        (["8.6", "12.0"], "8.9", False),
    ],
)
def test_capabilities(plan: Path, capabilities: list[str], found: str, runs: bool) -> None:
    change(compute_capabilities=capabilities)(plan)
    with machine(World(), gpu=Gpu("a GPU", found)):
        if runs:
            assert open_plan(plan).sidecar.compute_capabilities == tuple(capabilities)
        else:
            with pytest.raises(ModelError, match="expected a GPU of compute capability"):
                open_plan(plan)


def test_library_and_gpu_are_asked_for(plan: Path) -> None:
    def none(_: int) -> None:
        raise DependencyError("expected an NVIDIA GPU, found none (CUDA_ERROR_NO_DEVICE)")

    with machine(World()), pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.engines.plan_file.gpu", none)
        with pytest.raises(DependencyError, match=r"a\.plan is a plan of TensorRT-RTX: expected an NVIDIA GPU"):
            open_plan(plan)
        patch.setitem(sys.modules, "tensorrt_rtx", None)
        with pytest.raises(DependencyError, match=r"expected TensorRT-RTX's Python package, .*: pip install"):
            open_plan(plan)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("a magic number of another library", "build it again"),
        # TensorRT-RTX 1.7 on an H100
        ("TensorRT-RTX does not support this compute capability, so", r"use --backend tensorrt, or the model's"),
    ],
)
def test_what_the_library_refuses_is_told(plan: Path, reason: str, advice: str) -> None:
    plan.write_text(reason)  # the double's library says what it finds
    change(plan_sha256=hashlib.sha256(reason.encode()).hexdigest())(plan)
    with machine(World()), pytest.raises(ModelError, match=rf"cannot load .*a\.plan: {reason}.*; {advice}"):
        open_engine(plan)


@pytest.mark.parametrize(
    "options",
    [
        ["--min", "64x64", "--opt", "96x64", "--max", "128x96"],
        ["--size", "96x64", "--compute-capability", "8.6", "8.9", "--precision", "fp32"],
    ],
)
def test_the_command_builds_such_a_plan(tmp_path: Path, options: list[str]) -> None:
    """Built, its sidecar read, and the command of that run: the second sidecar says the same."""
    script, model = str(ROOT / "export" / "to_plan.py"), str(ROOT / "assets" / "blind_color.onnx")

    def run(arguments: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, script, *arguments], env=environment, check=True, capture_output=True)

    run([model, "--backend", "tensorrt-rtx", *options, "--output", str(tmp_path / "first.plan")])
    first = read_sidecar(tmp_path / "first.plan")
    text = rebuild(tmp_path / "first.plan", first).removeprefix("build it again: python export/to_plan.py ")
    before = (tmp_path / "first.plan.json").read_text()
    run(shlex.split(text))  # as it would be pasted: it finds the bundled model, and replaces the plan
    assert (tmp_path / "first.plan.json").read_text() != before
    second = read_sidecar(tmp_path / "first.plan")
    for name in ("inputs", "outputs", "precision", "compute_capabilities", "version", "onnx", "backend"):
        assert getattr(first, name) == getattr(second, name)


def test_commands_of_tensorrt_name_its_plugin(tmp_path: Path) -> None:
    plugin = {"kind": "library", "file": "lib sadnet.so", "sha256": "0" * 64}
    path = write_plan(tmp_path / "a.plan", SIZE, SIZE, backend="tensorrt", compute_capabilities=["8.9"], plugin=plugin)
    assert rebuild(path, read_sidecar(path), size=(128, 64)).endswith(
        "--backend tensorrt --size 64x128 --precision fp16 --plugin 'lib sadnet.so' -- sadnet.onnx"
    )


def test_a_real_plan_is_read_back(tmp_path: Path) -> None:
    """What export writes is what the runtime reads, to the last entry."""
    target, sizes = RtxTarget(), to_plan.plan_sizes("96x64", None, None, None)
    path = tmp_path / "a.plan"
    to_plan.write(ROOT / "assets" / "blind_color.onnx", path, target, Precision.FP16, sizes, overwrite=False)
    assert read_sidecar(path).dumps() == sidecar_path(path).read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "expected a folder of plans, found none"),
        ("missing.plan", "found no such file"),
        ("model.engine", r"ending in \.onnx, \.plan or \.safetensors, or a folder of plans, found '\.engine'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.engine").touch()
    with pytest.raises(InputError, match=words):
        open_engine(tmp_path / name)
