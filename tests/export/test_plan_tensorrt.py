"""The TensorRT backend, as far as a machine without it goes: TensorRT-RTX, whose API is the same, stands in for it.

The plugin and the look into the finished engine are left out there: both need NVIDIA's package and a GPU. The last
test is for such a machine.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

from common import cli, tensorrt_library
from common.errors import ModelError
from common.files import sha256
from common.machine import Gpu
from common.tensorrt_library import Backend, logger
from export import plan_build, plan_graph, plan_tensorrt, to_plan
from export.parity import ASSETS
from export.plan_tensorrt import check_layers, inspected_layers, kernels_sha256, print_layers, type_of
from export.plan_types import is_op
from plugins import launch

BUNDLED = ASSETS / "blind_color.onnx"
GPU = Gpu("a GPU", "8.9")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """TensorRT-RTX under TensorRT's name, and a stand-in for our plugin's module; what is called of the latter."""
    made: list[str] = []
    rtx = pytest.importorskip("tensorrt_rtx")
    plugin = ModuleType("plugins.tensorrt_qdp")

    @contextlib.contextmanager
    def errors() -> Iterator[None]:
        made.append("errors")
        yield

    vars(plugin).update(register=lambda: made.append("register"), errors=errors)
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    monkeypatch.setattr(tensorrt_library, "OLDEST", (1, 1))
    monkeypatch.setitem(sys.modules, "plugins.tensorrt_qdp", plugin)
    monkeypatch.setattr("plugins.tensorrt_qdp", plugin, raising=False)
    monkeypatch.setattr(plan_tensorrt, "gpu", lambda: GPU)
    for module in (plan_build, plan_tensorrt):  # the library keeps the first logger of a process
        monkeypatch.setattr(module, "logger", lambda _: logger(Backend.TENSORRT_RTX))
    return made


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    def run(model: Path, *arguments: object) -> tuple[int, str, str]:
        options = ["--backend", "tensorrt", "--size", "64x64", "--output", tmp_path / "a.plan", *arguments]
        with pytest.raises(SystemExit) as caught:
            cli.run(to_plan.app, argv=[str(a) for a in (model, *options)])
        code = caught.value.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def plain_model(tmp_path: Path) -> Path:
    """The bundled model with plain convolutions in place of the op, which TensorRT-RTX has no plugin for."""
    model, _ = plan_graph.load_network(BUNDLED)
    for node in filter(is_op, model.graph.node):
        x, _, weight, bias = node.input
        kept = helper.make_node("Conv", [x, weight, bias], list(node.output), name=node.name, pads=[1, 1, 1, 1])
        node.CopyFrom(kept)
    path = tmp_path / "plain.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_everything_but_plugin_and_engine(
    calls: list[str], command: Command, plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_tensorrt.TensorRTTarget, "_inspect", lambda *_: 123456789)
    code, out, err = command(plain_model)
    assert (code, err) == (0, "")
    assert "activation memory 123 MB, compute capability 8.9" in out
    assert calls == ["register", "errors"]
    assert (tmp_path / "tensorrt.timing").exists()
    found = json.loads((tmp_path / "a.plan.json").read_text())
    assert (found["backend"], found["gpu"], found["compute_capabilities"]) == ("tensorrt", asdict(GPU), ["8.9"])
    assert (found["plugin"], found["kernels_sha256"]) == ({"kind": "ahead of time"}, kernels_sha256())
    assert found["plan_sha256"] == sha256(tmp_path / "a.plan")
    assert found["activation_bytes"] == 123456789
    assert command(plain_model, "--overwrite")[0] == 0  # from the timing cache that is there


def test_a_timing_cache_of_another_gpu_is_replaced_by_an_empty_one(
    calls: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given: list[bytes] = []

    def take(cache: bytes, ignore_mismatch: bool) -> bool:
        given.append(cache)
        return not cache and not ignore_mismatch

    (tmp_path / "a.timing").write_bytes(b"another's")
    config = SimpleNamespace(create_timing_cache=lambda data: data, set_timing_cache=take)
    target = plan_tensorrt.TensorRTTarget(None, tmp_path / "a.timing")
    target.configure(sys.modules["tensorrt"], config, tensorrt_library.Log("TensorRT"))
    assert given == [b"another's", b""]
    assert "it will be replaced" in capfd.readouterr().err.replace("\n", " ")


def test_tensorrt_10_is_refused_with_either_plugin(
    calls: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library, "OLDEST", (11, 4))
    library = tmp_path / "libsadnet_plugin.so"
    library.touch()
    for options in ([], ["--plugin", library]):
        code, _, err = command(BUNDLED, *options)
        assert (code, err.count("\n")) == (2, 1), err
        assert "error: expected TensorRT 11.4 or later, found 1." in err


def test_node_without_its_plugin_is_named(calls: list[str], command: Command, tmp_path: Path) -> None:
    code, _, err = command(BUNDLED)
    assert (code, err.count("\n")) == (2, 1), err
    assert "node_modulated_deform_conv2d (ModulatedDeformConv2d)" in err
    assert "Plugin not found" in err
    assert list(tmp_path.iterdir()) == []


def test_plugin_library_must_be_one(calls: list[str], command: Command, tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    code, _, err = command(BUNDLED, "--plugin", library)
    assert (code, err.count("\n")) == (2, 1), err
    assert "--plugin: expected a shared library, found none" in err
    library.write_text("no library")
    code, _, err = command(BUNDLED, "--plugin", library)
    assert (code, err.count("\n")) == (2, 1), err
    assert str(library) in err
    assert calls == []
    assert list(tmp_path.iterdir()) == [library]


def test_capabilities_are_the_gpus(calls: list[str], command: Command) -> None:
    code, _, err = command(BUNDLED, "--compute-capability", "8.6")
    assert (code, err.count("\n")) == (2, 1), err
    assert "expected --backend tensorrt-rtx" in err


def layer(name: str, before: str, after: str, **more: Any) -> dict[str, Any]:
    tensors = [{"Name": f"{name}_{side}", "Format/Datatype": text} for side, text in (("in", before), ("out", after))]
    return {"Name": name, "LayerType": "gemm", "Inputs": tensors[:1], "Outputs": tensors[1:], **more}


HALF, FLOAT = "Channel major FP16 format where channel % 8 == 0", "Row major linear FP32"


def test_engine_that_fell_back_is_refused_by_layer() -> None:
    names = {"node_conv2d", "node_conv2d_1", "node_modulated_deform_conv2d"}
    good = [
        layer("node_conv2d + node_leaky_relu", FLOAT, HALF),  # with the image's conversion
        layer("node_conv2d_12", FLOAT, FLOAT),  # none of the names
        layer("myelin_3", HALF, HALF, Metadata="[ONNX Layer: node_modulated_deform_conv2d]"),
        layer("Reformatting CopyNode", FLOAT, FLOAT),
    ]
    check_layers(good, names, set())
    for bad in (
        layer("node_conv2d_1 + node_leaky_relu", FLOAT, FLOAT),
        layer("myelin_3", FLOAT, FLOAT, Metadata="[ONNX Layer: node_modulated_deform_conv2d][ONNX Layer: other]"),
    ):
        with pytest.raises(ModelError, match=r"expected fp16 in the layer .*(node_conv2d_1|myelin_3)"):
            check_layers([*good, bad], names, set())
    edges = layer("node_conv2d", FLOAT, FLOAT)
    check_layers([edges], names, {"node_conv2d_in", "node_conv2d_out"})


def test_types_are_read_from_both_forms_of_the_inspector() -> None:
    assert [type_of({"Format/Datatype": text}) for text in (HALF, FLOAT, "Half", "Float")] == [
        "fp16",
        "fp32",
        "fp16",
        "fp32",
    ]
    assert type_of({"DataType": "Half", "Format": "Row major linear FP32 format (kLINEAR)"}) == "fp16"
    assert type_of({"DataType": "Int64"}) == "Int64"
    assert type_of({"DataType": "BFloat16"}) == "BFloat16"


def test_report_prints_layers(capsys: pytest.CaptureFixture[str]) -> None:
    print_layers([layer("node[0]", HALF, FLOAT), {"Name": "bare"}])
    out = capsys.readouterr().out
    assert all(text in out for text in ("node[0]", "fp16", "fp32", "bare"))


@pytest.mark.parametrize("information", [{}, {"Layers": []}, {"Layers": ["name", "name"]}])
def test_inspector_without_types_is_refused(information: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="expected the engine inspector to tell"):
        inspected_layers(information)


def test_kernels_hash_changes_with_every_source(tmp_path: Path) -> None:
    for path in launch.KERNELS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = kernels_sha256(tmp_path)
    assert before == kernels_sha256()
    for path in sorted(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes() + b"\n")
        assert kernels_sha256(tmp_path) != before
        before = kernels_sha256(tmp_path)


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_plan_of_the_bundled_model(command: Command, tmp_path: Path, precision: str) -> None:
    code, out, err = command(BUNDLED, "--precision", precision)
    assert code == 0, err
    assert f"convolutions compute in {precision}" in out
    found = json.loads((tmp_path / "a.plan.json").read_text())
    assert found["kernels_sha256"] == kernels_sha256()
    assert 0 < found["activation_bytes"] < 1e9
