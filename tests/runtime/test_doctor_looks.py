"""What the doctor looks for, one by one: each probe's look where it finds, and where it does not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import runtime
from common.files import sha256
from common.machine import Gpu
from common.probing import Answer, FaultError
from runtime import doctor
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import VERSION, machine, write_plan


def fault(name: str) -> Answer:
    answer = doctor.PROBES[name].answer()
    assert answer.status != "ok", answer
    return answer


def test_both_packages_of_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_gpu-1.32.0.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-1.32.0.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.32.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    answer = fault("ONNX Runtime")
    assert answer.found.startswith("expected one of onnxruntime and onnxruntime-gpu, found both")
    assert answer.todo == "pip uninstall both, then pip install -e '.[cpu]' or '.[gpu]'"


def test_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.25.1")
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert fault("ONNX Runtime").found == "1.25.1, expected >=1.26,<2"
    assert fault("NumPy") == Answer("broken", "1.26.4, expected >=2.2", "pip install -e '.[cpu]'")
    with machine(World(), backend="tensorrt"):
        assert fault("TensorRT") == Answer("broken", f"{VERSION}, expected >=11.4", doctor.TENSORRT)


def test_models_are_those_of_their_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    assert fault("bundled models") == Answer(
        "missing", f"{tmp_path}: expected models and their cards, found none", "git checkout -- assets"
    )
    (tmp_path / "a.json").write_text(json.dumps({"sha256": {"a.onnx": sha256(__file__)}}))
    assert fault("bundled models").found == f"{tmp_path / 'a.onnx'}: expected the file of a.json, found none"
    (tmp_path / "a.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    assert fault("bundled models").found == f"{tmp_path / 'a.onnx'}: expected the file of a.json, found another"
    (tmp_path / "a.onnx").write_bytes(Path(__file__).read_bytes())
    assert doctor.PROBES["bundled models"].answer() == Answer("ok", "a")
    for card in ("{", "[]", "{}", '{"sha256": 1}', '{"sha256": {"": ""}}', "\0"):
        (tmp_path / "b.json").write_text(card)
        assert fault("bundled models").found


class Idle:
    """A Denoiser and an engine that leave all noise."""

    def __init__(self, path: Path) -> None:
        self.engine, self.name = self, "ONNX Runtime 1.32.0, CUDA"

    def denoise(self, image: Any) -> Any:
        return image

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_model_that_does_not_denoise_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "Denoiser", Idle)
    assert fault("trial run").found == "ONNX Runtime 1.32.0, CUDA leaves 100% of the noise"


def test_onnx_runtime_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault("ONNX Runtime on CUDA").found == f"the model runs on ONNX Runtime {onnxruntime.__version__}, CPU"
    monkeypatch.setattr("runtime.engines.ort.OrtEngine", Idle)
    assert doctor.PROBES["ONNX Runtime on CUDA"].answer() == Answer("ok", "ONNX Runtime 1.32.0, CUDA")


def test_an_old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, status in ((12090, "broken"), (13000, "ok"), (13020, "ok")):
        monkeypatch.setattr(doctor, "driver_version", lambda version=version: version)
        answer = doctor.PROBES["NVIDIA driver"].answer()
        assert answer.status == status
        assert answer.found.startswith(f"CUDA {version // 1000}.{version % 1000 // 10}")
        assert ("driver 580" in answer.todo) == (status == "broken")


@pytest.mark.parametrize(("capability", "arch"), [("6.1", None), ("7.5", 75), ("8.7", 86), ("9.0", 90), ("12.1", 120)])
def test_gpus_that_plans_and_kernels_are_for(
    capability: str, arch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: [(Gpu("a", capability), 8 << 30), (Gpu("b", "5.2"), 2 << 30)])
    assert doctor.gpu() == f"a, compute capability {capability}, 8.0 GiB; b, compute capability 5.2, 2.0 GiB"
    answer = doctor.PROBES["GPU generation"].answer()
    if arch is None:
        assert answer == Answer("broken", "expected a GPU of compute capability 7.5 (Turing) or later, found 6.1")
    else:
        assert answer.found.endswith(f"sm_{arch}")


def test_a_plan_that_runs(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "a.plan", (64, 64), (128, 96))
    with machine(World()):
        assert doctor.plan(plan) == f"TensorRT-RTX {VERSION}, fp16, 64x64 to 96x128, on NVIDIA GeForce RTX 4090"


def test_pytorch_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    kernels: Callable[..., Any] = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, device: kernels(size))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Double")
    assert doctor.pytorch_cuda().startswith("NVIDIA Double, built for CUDA ")

    def refuse(size: int, device: str) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", refuse)
    assert fault("PyTorch on CUDA").found.startswith("RuntimeError: no kernel image")


TOOLS = {
    "nvcc": ("CUDACXX", "Built on Wed_Aug_20\nCuda compilation tools, release 13.0, V13.0.88", "13.0"),
    "CMake": (None, "cmake version 3.25.1\n\nCMake suite maintained by Kitware", "3.25.1"),
    "C++ compiler": ("CXX", "g++ (Debian 12.2.0-14) 12.2.0\nCopyright", "12.2.0"),
}


@pytest.mark.parametrize("name", TOOLS)
def test_build_tools(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, words, version = TOOLS[name]
    program = tmp_path / {"nvcc": "nvcc", "CMake": "cmake", "C++ compiler": "g++"}[name]

    def write(text: str, code: int = 0) -> None:
        program.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    for other in ("CUDACXX", "CXX"):
        monkeypatch.delenv(other, raising=False)
    assert fault(name).status == "missing"
    write(words)
    assert doctor.PROBES[name].answer() == Answer("ok", f"{version}, {program}")
    write(words, code=1)
    assert fault(name).status == "broken"
    write("nothing of the kind")
    assert fault(name).status == "broken"
    if name == "CMake":
        write("cmake version 3.22.1")
        assert fault(name).found == "3.22.1, expected >=3.24"
    if variable:
        write(words)
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv(variable, f"{program} -O2")
        assert doctor.PROBES[name].answer().status == "ok"
        monkeypatch.setenv(variable, "/nowhere/nvcc")
        assert fault(name).found == "no /nowhere/nvcc on PATH"


@pytest.mark.parametrize(
    ("words", "status", "found"),
    [
        ("#define NV_TENSORRT_MAJOR 10 //!< 1\n#define NV_TENSORRT_MINOR 0 //!<\n", "ok", "10.0, "),
        ("#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n", "ok", "11.1, "),
        ("#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 6\n", "broken", "1.6, expected >=10"),
        ("", "broken", ", expected >=10"),
    ],
)
@pytest.mark.parametrize("below", ["", "include"])
def test_headers(
    below: str, words: str, status: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(words)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    answer = doctor.PROBES["TensorRT headers"].answer()
    assert (answer.status, answer.found) == (status, f"{found}{folder}" if status == "ok" else found)


def test_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(FaultError, match=r"no NvInferRuntime\.h in \$TENSORRT_ROOT"):
        doctor.headers()


def test_python_names_the_one_that_has_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert "python3 install.py cpu" in doctor.python().todo
    (tmp_path / ".venv").mkdir()
    assert "source .venv/bin/activate" in doctor.python().todo
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert doctor.python().todo == ""
