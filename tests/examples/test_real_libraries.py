"""The C++ program over the real libraries: built by CMake, and run as far as it goes on a machine without a GPU.

TENSORRT_ROOT and TENSORRT_RTX_ROOT name folders with their headers (docs/deploy.md). CI has none of these.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.examples.conftest import DOUBLES, SOURCE, compile_cpp, cuda_root, execute, failure, real_library

ROOT = SOURCE.parents[1]
MODEL = ROOT / "assets" / "blind_color.onnx"
PHOTO = ROOT / "assets" / "astronaut_noisy.png"


def cmake(build: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    if shutil.which("cmake") is None:
        pytest.skip("no CMake here: apt-get install cmake")
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_ROOT")}
    command = ["cmake", "-S", str(SOURCE), "-B", str(build), *options]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(library: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers, file = real_library(library)
    build = tmp_path_factory.mktemp("built")
    result = cmake(build, f"-DTENSORRT_LIBRARY={file}", TENSORRT_ROOT=str(headers.parent), CUDA_ROOT=str(cuda_root()))
    assert result.returncode == 0, result.stderr
    made = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning" not in made.stderr
    return build / "denoise"


@pytest.fixture(scope="module")
def rtx_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan of TensorRT-RTX, of 64x64 pixels."""
    path = tmp_path_factory.mktemp("plan") / "net.plan"
    command = [sys.executable, "export/to_plan.py", str(MODEL), "--backend", "tensorrt-rtx", "--size", "64x64"]
    made = subprocess.run([*command, "--output", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return path


def test_cmake_names_what_is_missing(tmp_path: Path) -> None:
    system = ";".join(f"{place}/include" for place in ("/usr", "/usr/local"))
    result = cmake(tmp_path, f"-DCMAKE_IGNORE_PATH={system}")
    assert result.returncode != 0
    assert result.stderr.count("CMake Error") == 1
    assert "expected the headers of TensorRT or TensorRT-RTX, found no NvInferRuntime.h: set TENSORRT_ROOT" in (
        " ".join(result.stderr.split())
    )


@pytest.mark.parametrize(
    ("macro", "name"), [("TRT_MAJOR_RTX 1", "tensorrt_rtx"), ("TRT_MAJOR_ENTERPRISE 11", "nvinfer")]
)
def test_cmake_takes_the_library_of_the_headers(tmp_path: Path, macro: str, name: str) -> None:
    include = tmp_path / "root" / "include"
    include.mkdir(parents=True)
    (include / "NvInferRuntime.h").touch()
    (include / "NvInferVersion.h").write_text(f"#define {macro}\n")
    result = cmake(tmp_path / "build", TENSORRT_ROOT=str(include.parent))
    assert result.returncode != 0
    assert result.stderr.count("CMake Error") == 1
    expected = (
        f"expected {name}'s library and the CUDA runtime, found no TENSORRT_LIBRARY: set TENSORRT_ROOT, CUDA_ROOT"
    )
    assert expected in " ".join(result.stderr.split())


def test_without_a_gpu_one_line_says_so(built: Path, rtx_plan: Path, tmp_path: Path) -> None:
    result = execute(built, rtx_plan, "a.ppm", "b.ppm", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert failure(result).startswith("error: expected an NVIDIA GPU and its driver, found none: ")


def test_a_damaged_plan_is_one_line_in_the_librarys_words(rtx_plan: Path, tmp_path: Path) -> None:
    """TensorRT-RTX's own, reached by a CUDA runtime that finds a GPU where there is none."""
    headers, file = real_library("TensorRT-RTX")
    program = tmp_path / "denoise"
    includes = (f"-I{DOUBLES['cuda']}", "-isystem", headers)
    compile_cpp(*includes, SOURCE / "denoise.cpp", file, f"-Wl,-rpath,{file.parent}", "-o", program)
    whole = rtx_plan.read_bytes()
    damaged = {
        "empty": (b"", "empty memory buffer"),
        "cut": (whole[: len(whole) // 2], "plan.header.size == blobSize"),
        "other": (b"no plan" * 1000, "magicTag"),
    }
    for name, (data, reason) in damaged.items():
        path = tmp_path / f"{name}.plan"
        path.write_bytes(data)
        line = failure(execute(program, path, "a.ppm", "b.ppm", folder=tmp_path, CUDA_VISIBLE_DEVICES=""))
        assert line.startswith(f"error: {path}: expected a plan of this version of TensorRT-RTX and for this GPU")
        assert reason in line


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["TensorRT-RTX"], indirect=True)
def test_a_real_plan_denoises_as_onnx_runtime_does(built: Path, rtx_plan: Path, tmp_path: Path) -> None:
    from common.images import read_picture, rgb8
    from runtime import Denoiser

    noisy = np.ascontiguousarray(rgb8(read_picture(PHOTO))[:61, :53])
    header = b"P6\n53 61\n255\n"
    (tmp_path / "a.ppm").write_bytes(header + noisy.tobytes())
    result = execute(built, rtx_plan, "a.ppm", "b.ppm", "a.ppm", "c.ppm", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = ((tmp_path / name).read_bytes().removeprefix(header) for name in ("b.ppm", "c.ppm"))
    assert first == second  # the second run is a CUDA graph's
    with Denoiser(MODEL) as denoiser:
        expected = denoiser.denoise(np.pad(noisy, [(0, 3), (0, 11), (0, 0)], mode="reflect"))[:61, :53]
    difference = np.abs(np.frombuffer(first, np.uint8).reshape(noisy.shape).astype(int) - expected)
    assert difference.max() <= 4
    assert difference.mean() <= 0.2 + 0.5  # both are rounded
