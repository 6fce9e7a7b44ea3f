"""The doctor on machines that lack this or that: a bare Python, one with a GPU (a double of it), this one."""

import ast
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import tensorrt_library
from common.probing import Answer, Probe
from runtime import doctor
from tests.runtime.driver_double import build_driver
from tests.runtime.tensorrt_double import VERSION, write_plan

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


def test_a_long_fault_is_wrapped_and_its_command_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    command = "pip install " + "x" * 100
    first, *middle, last = doctor.line("NumPy", Answer("broken", "word " * 60, command)).splitlines()
    assert first.startswith("  broken   NumPy   ")
    assert all(len(text) <= 90 for text in (first, *middle))
    assert last.strip() == f"-> {command}"
