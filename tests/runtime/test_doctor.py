"""The doctor on machines that lack this or that: a bare Python, one with a GPU (a double of it), this one."""

import ast
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime
from common import tensorrt_library
from common.files import sha256
from common.machine import Gpu
from common.probing import Answer, FaultError, Probe
from runtime import doctor
from tests.runtime.driver_double import build_driver
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import VERSION, machine, write_plan

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "runtime" / "doctor.py"
SIZE = (64, 96)


def run(*arguments: object, python: object = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), str(SCRIPT), *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name != "TENSORRT_ROOT"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def lines_of(text: str) -> dict[str, str]:
    """Name of a probe -> its status, of the table."""
    names = "|".join(map(re.escape, [*doctor.PROBES, "plan"]))
    return {name: status for status, name in re.findall(rf"^  (ok|missing|broken) +({names})  ", text, re.MULTILINE)}


def shadow(folder: Path, module: str, code: str) -> None:
    """A package that is found before the real one."""
    path = folder / Path(*module.split("."))
    path.mkdir(parents=True)
    (path / "__init__.py").write_text(code)


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    result = run("--json")
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_this_machine_denoises(here: dict[str, Any]) -> None:
    first = here["purposes"][0]
    assert (first["purpose"], first["ready"], first["faults"]) == (doctor.DENOISE, True, [])
    found = {line["name"]: line["found"] for line in first["lines"]}
    assert found["NumPy"] == np.__version__
    assert found["ONNX Runtime"].startswith(f"{onnxruntime.__version__}, with ")
    assert re.fullmatch(r"64x64 pixels in \d+ ms by ONNX Runtime .*", found["trial run"])
    assert here["machine"]["cores"] == os.cpu_count()


def test_dev_extras_are_enough_for_what_needs_no_gpu(here: dict[str, Any]) -> None:
    """What `make dev` installs, which runs these tests, is what the doctor wants for it."""
    ready = {entry["purpose"]: entry["ready"] for entry in here["purposes"]}
    assert list(ready) == list(doctor.PURPOSES)
    for purpose in ("Build TensorRT-RTX plans", "Train", "Export to ONNX"):
        assert ready[purpose]


def test_a_machine_with_a_gpu_and_broken_packages(tmp_path: Path) -> None:
    """End to end. One package crashes, one raises what no import should, and all else is told as it is."""
    build_driver(tmp_path)
    shadow(tmp_path, "tensorrt_rtx", f"__version__ = {VERSION!r}")
    shadow(tmp_path, "torch", "import os; os.abort()")
    shadow(tmp_path, "av", "raise OSError('libavcodec.so.61: cannot open shared object file')")
    shadow(tmp_path, "onnx", "raise RuntimeError('built for another protobuf')")
    shadow(tmp_path, "tensorrt", "raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    good = write_plan(tmp_path / "a.plan", SIZE, SIZE)
    odd = write_plan(tmp_path / "b\n\N{SNOWMAN} c.plan", SIZE, SIZE, version="1.6.0.1")
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    result = run("--plan", good, odd, **environment)
    assert (result.returncode, result.stderr) == (2, "")
    text = " ".join(result.stdout.split())
    lines = lines_of(result.stdout)
    assert {name for name, status in lines.items() if status == "missing"} - {"TensorRT headers"} == {
        "ONNX Runtime on CUDA"
    }
    broken = {"PyAV", "TensorRT", "ONNX", "PyTorch", "plan"}
    assert {name for name, status in lines.items() if status == "broken"} - {"nvcc", "CMake", "C++ compiler"} == broken
    for told in (
        "Denoise photos on the CPU: ready",
        "Denoise videos on the CPU: not ready: PyAV",
        "OSError: libavcodec.so.61: cannot open shared object file -> pip install -e '.[video]'",
        "NVIDIA driver CUDA 13.0",
        "GPU NVIDIA Double, compute capability 8.9, 24.0 GiB",
        "our kernels are compiled for it as sm_89",
        "Run TensorRT-RTX plans: ready",
        "Run TensorRT plans: not ready: TensorRT",
        "expected TensorRT's Python package, found none (libnvinfer.so.11: cannot open shared object file) -> pip",
        "Train: not ready: PyTorch",
        "PyTorch ended by signal 6",
        f"Run {good}: ready ok plan TensorRT-RTX {VERSION}, fp16, 96x64 only, on NVIDIA Double",
        f"which built this plan, found {VERSION}: build it again -> python export/to_plan.py ",
        r"b \u2603 c.plan: not ready: plan",
    ):
        assert told in text, result.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without any package, not even this checkout's install."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def test_a_python_without_packages(bare: Path, tmp_path: Path) -> None:
    result = run("--plan", tmp_path / "a.plan", python=bare, PYTHONPATH="")
    assert (result.returncode, result.stderr) == (2, "")
    missing = {name for name, status in lines_of(result.stdout).items() if status == "missing"}
    assert missing >= {"NumPy", "OpenCV", "Typer", "Rich", "PyAV", "ONNX", "PyTorch", "cuda-core"}
    assert "broken" not in result.stdout
    assert "trial run" not in result.stdout, "what cannot be asked is not told"
    assert "Denoise photos on the CPU: not ready: NumPy, OpenCV, Typer, Rich\n" in result.stdout
    assert "a.plan: not ready: NumPy, Typer, Rich" in result.stdout
    assert result.stdout.count("-> pip install -e '.[cpu]'") == 4  # one each


def test_a_reader_that_goes_away(bare: Path) -> None:
    with subprocess.Popen([bare, SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_older_python_is_told_so() -> None:
    """It can read the files, and runs none of them further than the line that says so."""
    for path in (SCRIPT, *(ROOT / "common" / f"{name}.py" for name in ("driver", "probing", "requirements"))):
        ast.parse(path.read_text(), feature_version=(3, 8))
    code = f"import runpy, sys; sys.version_info = (3, 10, 4); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert "expected Python 3.11 or later, found 3.10.4" in result.stderr


@given(
    bad=st.sets(st.sampled_from([*doctor.PROBES, "plan a", "plan b"])),
    plans=st.sampled_from([[], ["a"], ["a", "b"]]),
    as_json=st.booleans(),
)
def test_exit_code_and_verdicts(bad: set[str], plans: list[str], as_json: bool) -> None:
    def asked(command: list[str], probe: Probe, limit: float) -> Answer:
        return Answer("broken" if command[-1] in bad else "ok", "1.0")

    purposes = doctor.PURPOSES | {f"Run {plan}": (f"plan {plan}",) for plan in plans}
    needs = {purpose: set(names).union(*map(above, names)) for purpose, names in purposes.items()}
    with pytest.MonkeyPatch.context() as patch:
        printed = list[str]()
        patch.setattr(doctor, "ask", asked)
        patch.setattr(sys, "argv", ["doctor.py", *["--json"] * as_json, *(["--plan", *plans] if plans else [])])
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        code = doctor.main()
    wanted = needs[doctor.DENOISE].union(*(needs[f"Run {plan}"] for plan in plans))
    assert code == (2 if bad & wanted else 0)
    text = "\n".join(printed)
    if as_json:
        verdicts = {entry["purpose"]: entry["ready"] for entry in json.loads(text)["purposes"]}
    else:
        verdicts = {purpose: f"\n{purpose}: ready" in text for purpose in purposes}
        told = re.findall(r"^  broken +(.+?)  ", text, re.MULTILINE)
        asked_in_vain = [name for name in bad if name in set().union(*needs.values()) and not bad & above(name)]
        assert sorted(told) == sorted(name.partition(" ")[0] if "plan" in name else name for name in asked_in_vain)
    assert verdicts == {purpose: not bad & names for purpose, names in needs.items()}


def above(name: str) -> set[str]:
    """All that the probe comes after."""
    after = doctor.PROBES[name].after if name in doctor.PROBES else doctor.IMPORTED
    return set(after).union(*map(above, after))


def test_tables_fit_together() -> None:
    names = list(doctor.PROBES)
    for name, probe in doctor.PROBES.items():
        assert all(names.index(other) < names.index(name) for other in probe.after), name
    assert {name for wanted in doctor.PURPOSES.values() for name in wanted} == set(names)
    assert tensorrt_library.INSTALL[tensorrt_library.Backend.TENSORRT] == doctor.TENSORRT
    cmake = (ROOT / "plugins" / "tensorrt_v3" / "CMakeLists.txt").read_text()
    assert "cmake_minimum_required(VERSION 3.24)" in cmake


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


def test_a_long_fault_is_wrapped_and_its_command_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    command = "pip install " + "x" * 100
    first, *middle, last = doctor.line("NumPy", Answer("broken", "word " * 60, command)).splitlines()
    assert first.startswith("  broken   NumPy   ")
    assert all(len(text) <= 90 for text in (first, *middle))
    assert last.strip() == f"-> {command}"
