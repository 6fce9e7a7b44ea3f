"""The C++ example, compiled: its program over doubles of CUDA and TensorRT, and over the real libraries."""

import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.plugins.cpu_shim.build import compiler

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "examples" / "cpp"
DOUBLES = {"cuda": HERE / "double" / "cuda", "tensorrt": HERE / "double" / "tensorrt"}
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIBRARIES = {
    "TensorRT": ("TENSORRT_ROOT", "tensorrt_lean_libs", "libnvinfer_lean.so.11"),
    "TensorRT-RTX": ("TENSORRT_RTX_ROOT", "tensorrt_rtx_libs", "libtensorrt_rtx.so.1"),
}
"""Of each library: the variable that names a folder with its headers, and the Python package that has its file. The
lean runtime stands for TensorRT, which is not on PyPI: its headers and its runtime's interface are the same."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def compile_cpp(*arguments: str | Path) -> None:
    program = compiler()
    if program is None:
        pytest.skip("no g++ 12 or later here: apt-get install g++")
    result = subprocess.run([program, *FLAGS, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def cuda_root() -> Path:
    """A CUDA toolkit's folder; the Python packages lack some of its headers."""
    for root in filter(None, (os.environ.get("CUDA_ROOT"), "/usr/local/cuda")):
        if (Path(root) / "include" / "crt" / "host_defines.h").is_file():
            return Path(root)
    pytest.skip("no CUDA toolkit in CUDA_ROOT or /usr/local/cuda")


def real_library(name: str) -> tuple[Path, Path]:
    """Folder of a real library's headers, and its file."""
    variable, package, file = LIBRARIES[name]
    headers = Path(os.environ.get(variable, "/nowhere")) / "include"
    if not (headers / "NvInferRuntime.h").is_file():
        pytest.skip(f"no {name} headers: set {variable}")
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"the Python package {package} is not installed")
    return headers, Path(found.origin).with_name(file)


@pytest.fixture(scope="session", params=list(LIBRARIES))
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def doubled(library: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program over the doubles of one library, with sanitizers."""
    path = tmp_path_factory.mktemp("doubled") / "denoise"
    flavour = ("-DTRT_MAJOR_RTX=1",) if library == "TensorRT-RTX" else ()
    compile_cpp(*SANITIZERS, *flavour, *(f"-I{d}" for d in DOUBLES.values()), SOURCE / "denoise.cpp", "-o", path)
    return path


@pytest.fixture
def run(doubled: Path, tmp_path: Path) -> Run:
    """run(*arguments, fails=n): the program over the doubles, in tmp_path, the n-th call that can fail failing."""

    def started(*arguments: str | Path, fails: int = 0) -> "subprocess.CompletedProcess[str]":
        return execute(doubled, *arguments, folder=tmp_path, DOUBLE_FAILS=str(fails))

    return started


def execute(
    program: Path, *arguments: str | Path, folder: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def failure(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a refusal."""
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if not line.endswith("a warning of the double")]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    return errors[0]
