"""Plans: real TensorRT-RTX ones, built without a GPU, their sidecars, and what is refused."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from common import cli
from common.errors import DependencyError, OutputError
from common.files import sha256
from common.plan_sidecar import plan_files
from export import to_plan
from export.parity import ASSETS
from export.plan_rtx import RtxTarget

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ASSETS / "blind_color.onnx"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the script's command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.run(to_plan.app, several=("--compute-capability",), argv=[str(a) for a in arguments])
        code = caught.value.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def rtx(command: Command, tmp_path: Path) -> Command:
    """The same with the backend TensorRT-RTX and an output folder of its own; options named twice count once."""

    def run(*arguments: object, model: Path = BUNDLED) -> tuple[int, str, str]:
        output = () if "--output" in arguments else ("--output", tmp_path / "out" / "a.plan")
        return command(model, "--backend", "tensorrt-rtx", *output, *arguments)

    return run


def sidecar(plan: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(plan.with_name(f"{plan.name}.json").read_text())
    return contents


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fixed_plan_and_its_sidecar(tmp_path: Path) -> None:
    """As a user runs it, in a folder of his own, with nothing said but the size."""
    arguments = [str(ROOT / "export" / "to_plan.py"), str(BUNDLED), "--backend", "tensorrt-rtx", "--size", "480x320"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    plan = tmp_path / "blind_color-rtx-fp16-480x320.plan"
    assert files(tmp_path) == [plan.name, f"{plan.name}.json"]
    assert "activation memory" in result.stdout
    assert "all 48 convolutions compute in fp16" in result.stdout

    import tensorrt_rtx

    found = sidecar(plan)
    assert found["plan_sha256"] == sha256(plan)
    assert found["onnx"] == {"file": "blind_color.onnx", "sha256": sha256(BUNDLED)}
    assert (found["format"], found["backend"], found["version"]) == (1, "tensorrt-rtx", tensorrt_rtx.__version__)
    assert found["precision"] == "fp16"
    shape = [1, 3, 320, 480]
    image = {"type": "float32", "format": "linear", "min": shape, "opt": shape, "max": shape}
    assert found["inputs"] == [{"name": "noisy", **image}]
    assert found["outputs"] == [{"name": "denoised", **image}]
    assert found["compute_capabilities"] == ["8.0 and later"]
    assert (found["gpu"], found["plugin"], found["kernels_sha256"]) == (None, None, None)
    assert found["model"]["config"]["channels"] == 3
    assert 0 < found["activation_bytes"] < 400e6
    assert found["created"].endswith("Z")


def test_dynamic_plan_keeps_to_a_gigabyte(rtx: Command, tmp_path: Path) -> None:
    code, _, err = rtx("--min", "60x64", "--opt", "1280x720", "--max", "1920x1081")
    assert (code, err) == (0, "")
    found = sidecar(tmp_path / "out" / "a.plan")
    (entry,) = found["inputs"]
    assert [entry[name] for name in ("min", "opt", "max")] == [[1, 3, 64, 64], [1, 3, 720, 1280], [1, 3, 1088, 1920]]
    assert 0.5e9 < found["activation_bytes"] <= 1e9


def test_fixed_full_hd_plan_keeps_to_a_gigabyte(rtx: Command, tmp_path: Path) -> None:
    code, _, err = rtx("--size", "1920x1088")
    assert (code, err) == (0, "")
    assert 0.5e9 < sidecar(tmp_path / "out" / "a.plan")["activation_bytes"] <= 1e9


def test_fp32_plan_for_turing(rtx: Command, tmp_path: Path) -> None:
    code, out, err = rtx("--size", "61x57", "--precision", "fp32", "--compute-capability", "7.5")
    assert (code, err) == (0, "")
    assert "compute in fp32" in out
    found = sidecar(tmp_path / "out" / "a.plan")
    assert (found["compute_capabilities"], found["precision"]) == (["7.5"], "fp32")
    assert found["inputs"][0]["max"] == [1, 3, 64, 64]


def test_plan_for_chosen_cards(rtx: Command, tmp_path: Path) -> None:
    code, _, err = rtx("--size", "64x64", "--compute-capability", "8.6", "12.0")
    assert (code, err) == (0, "")
    assert sidecar(tmp_path / "out" / "a.plan")["compute_capabilities"] == ["8.6", "12.0"]


def test_8_bit_images(rtx: Command, tmp_path: Path) -> None:
    """8-bit values inside a network are what TensorRT refuses."""
    model = onnx.load(BUNDLED)
    graph = model.graph
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    sizes = ["n", "h", "w", channels]
    for name, value in (("full", 255), ("low", 0), ("high", 1)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    before = [
        helper.make_node("Cast", ["bytes"], ["float_bytes"], to=1),
        helper.make_node("Transpose", ["float_bytes"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "full"], ["noisy"]),
    ]
    after = [
        helper.make_node("Clip", ["denoised", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "full"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["byte_planes"], to=2),
        helper.make_node("Transpose", ["byte_planes"], ["clean"], perm=[0, 2, 3, 1]),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].CopyFrom(helper.make_tensor_value_info("bytes", onnx.TensorProto.UINT8, sizes))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("clean", onnx.TensorProto.UINT8, sizes))
    onnx.save(model, tmp_path / "bytes.onnx")
    code, _, err = rtx("--size", "96x64", model=tmp_path / "bytes.onnx")
    assert (code, err) == (0, "")
    (entry,) = sidecar(tmp_path / "out" / "a.plan")["outputs"]
    assert (entry["name"], entry["type"], entry["max"]) == ("clean", "uint8", [1, 64, 96, 3])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_build(number: int, rtx: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure = RtxTarget.configure

    def interrupted(*arguments: Any) -> None:
        configure(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(RtxTarget, "configure", interrupted)
    code, _, err = rtx("--size", "64x64")
    assert (code, err) == (130, "interrupted\n")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected --size, or all of --min, --opt and --max"),
        (("--size", "64x64", "--max", "64x64"), "expected --size, or all of"),
        (("--min", "64x64", "--max", "64x64"), "expected --size, or all of"),
        (("--size", "64"), "--size: expected WIDTHxHEIGHT"),
        (("--size", "0x64"), "--size: expected WIDTHxHEIGHT"),
        (("--size", "64x-8"), "--size: expected WIDTHxHEIGHT"),
        (("--size", "20000x20000"), "at most 2^26 pixels"),
        (("--size", "70000x8"), "--size: expected at most 65536 pixels a side"),
        (("--min", "64x64", "--opt", "32x64", "--max", "128x128"), "in ascending order"),
        (("--size", "64x64", "--compute-capability", "9.9"), "--compute-capability: expected one of 7.5, 8.0,"),
        (("--size", "64x64", "--compute-capability", "7.5", "8.6"), "expected 7.5 alone"),
        (("--size", "64x64", "--precision", "int8"), "int8"),
        (("--size", "64x64", "--output", "a.engine"), "ending in .plan"),
        (("--size", "64x64", "--plugin", "a.so"), "--plugin: expected --backend tensorrt"),
        (("--size", "64x64", "--timing-cache", "a"), "--timing-cache: expected --backend tensorrt"),
    ],
)
def test_wrong_options_are_one_line(rtx: Command, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    code, _, err = rtx(*options)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert files(tmp_path) == []


def test_a_capability_named_twice_counts_once() -> None:
    assert RtxTarget(["7.5", "7.5"]).capabilities == ("7.5",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found none"),
        (b"", "expected an ONNX model"),
        (b"no model at all", "expected an ONNX model"),
        ("half a file", "expected an ONNX model"),
        ("a folder", "found a folder"),
        ("no metadata", "another network"),
        ("no JSON", "another network"),
    ],
)
def test_wrong_models_are_one_line(rtx: Command, tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "bad.onnx"
    if content == "half a file":
        path.write_bytes(BUNDLED.read_bytes()[:1000000])
    elif content == "a folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        model = onnx.load(BUNDLED)
        del model.metadata_props[:]
        if content == "no JSON":
            helper.set_model_props(model, {"sadnet": "{"})
        onnx.save(model, path)
    code, _, err = rtx("--size", "64x64", model=path)
    assert (code, err.count("\n")) == (2, 1), err
    assert str(path) in err
    assert message in err
    assert not (tmp_path / "out").exists()


def test_missing_libraries_name_their_install_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, module, expected in (
        ("tensorrt", "tensorrt", "pip install --extra-index-url https://pypi.nvidia.com -e '.[tensorrt]'"),
        ("tensorrt-rtx", "tensorrt_rtx", "pip install -e '.[rtx]'"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        code, _, err = command(BUNDLED, "--backend", backend, "--size", "64x64")
        assert (code, err.count("\n")) == (2, 1), err
        assert expected in err


def test_compute_capability_current_needs_a_gpu(rtx: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> None:
        raise DependencyError("expected an NVIDIA GPU, found none")

    monkeypatch.setattr("export.plan_rtx.gpu", none)
    code, _, err = rtx("--size", "64x64", "--compute-capability", "current")
    assert (code, err) == (2, "error: expected an NVIDIA GPU, found none\n")
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["a.plan", "a.plan.json"])
def test_existing_files_are_kept_without_overwrite(rtx: Command, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("old")
    code, _, err = rtx("--size", "64x64")
    assert (code, err.count("\n")) == (2, 1), err
    assert "--overwrite" in err
    assert files(folder) == [name]
    assert (folder / name).read_text() == "old"
    assert rtx("--size", "64x64", "--overwrite")[0] == 0
    assert sidecar(folder / "a.plan")["plan_sha256"] == sha256(folder / "a.plan")


@pytest.mark.parametrize("writer", ["write_bytes", "write_text"])
def test_a_full_disk_leaves_nothing(rtx: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, writer, full)
    code, _, err = rtx("--size", "64x64")
    assert (code, err.count("\n")) == (2, 1), err
    assert "No space left" in err
    assert files(tmp_path) == []


def test_plan_and_sidecar_appear_together(tmp_path: Path) -> None:
    plan = tmp_path / "a.plan"
    manager = plan_files(plan, overwrite=False)
    for path, text in zip(manager.__enter__(), ("plan", "{}"), strict=True):
        path.write_text(text)
    plan.with_name("a.plan.json").write_text("another's")
    with pytest.raises(OutputError, match="appeared meanwhile"):
        manager.__exit__(None, None, None)
    assert files(tmp_path) == ["a.plan.json"]


def test_ctrl_c_between_the_two_leaves_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, []

    def interrupted(file: int) -> None:
        synced.append(file)
        if len(synced) == 2:
            raise KeyboardInterrupt
        sync(file)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt), plan_files(tmp_path / "a.plan", overwrite=False) as temporary:  # noqa: PT012
        for path in temporary:
            path.write_text("new")
    assert (len(synced), files(tmp_path)) == (2, [])


def test_a_plan_that_replaced_another_stays_where_its_sidecar_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is gone; that the old sidecar is of another, its SHA-256 tells."""
    plan, about = tmp_path / "a.plan", tmp_path / "a.plan.json"
    for path in (plan, about):
        path.write_text("old")
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target == about:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space"), plan_files(plan, overwrite=True) as temporary:  # noqa: PT012
        for path in temporary:
            path.write_text("new")
    assert (plan.read_text(), about.read_text()) == ("new", "old")
