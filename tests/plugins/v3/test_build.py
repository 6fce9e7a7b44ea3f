"""What CMake says where something is missing, what the built library shows, and TensorRT's own registry."""

import json
import os
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from plugins import op
from tests.plugins.v3.driver import configure, one_line

MULTIARCH = f"{platform.machine()}-linux-gnu"


def test_without_headers_one_line_names_the_package(tmp_path: Path) -> None:
    system = [
        folder / part for folder in map(Path, ("/usr/include", "/usr/local/include")) for part in (".", MULTIARCH)
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TENSORRT_ROOT"}
    result = configure(tmp_path, f"-DCMAKE_IGNORE_PATH={';'.join(map(str, system))}", environment=environment)
    assert result.returncode != 0
    assert "expected TensorRT's headers, found no NvInferRuntime.h: apt install libnvinfer-headers-dev, or set " in (
        one_line(result.stderr)
    )
    assert result.stderr.count("CMake Error") == 1


def test_without_nvcc_one_line_says_so(tmp_path: Path) -> None:
    headers = tmp_path / "tensorrt" / "include" / "NvInferRuntime.h"
    headers.parent.mkdir(parents=True)
    headers.touch()
    options = [f"-DTENSORRT_ROOT={tmp_path / 'tensorrt'}", "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND"]
    result = configure(tmp_path / "build", *options)
    assert result.returncode != 0
    assert "expected nvcc, found none: install the CUDA toolkit" in one_line(result.stderr)


def symbols(library: Path, which: str) -> list[tuple[str, str]]:
    """(kind, name) of its dynamic symbols, without their versions."""
    lines = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    return [(kind, name.split("@")[0]) for *_, kind, name in map(str.split, lines.splitlines())]


def test_exports_what_tensorrt_looks_for_and_nothing_else(library: Path) -> None:
    assert symbols(library, "--defined-only") == [("T", "getCreators"), ("T", "setLoggerFinder")]


def test_needs_the_c_and_cpp_libraries_alone(library: Path) -> None:
    lines = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    unversioned = {name for _, name in map(str.split, lines.stdout.splitlines()) if "@" not in name}
    assert unversioned <= {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    versions = set(re.findall(r"@([A-Z]+)", lines.stdout))
    assert versions <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}
    dynamic = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {re.split(r"\.so|-", name)[0] for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic)}
    assert needed <= {"libc", "libm", "libdl", "libpthread", "librt", "libgcc_s", "libstdc++", "ld"}


REGISTRY = """
import ctypes, json, sys
import numpy as np
import tensorrt_lean as trt

registry, (path, *ways) = trt.get_plugin_registry(), sys.argv[1:]
results = []

def look() -> None:
    creator = registry.get_creator("ModulatedDeformConv2d", "1", "sadnet")
    if creator is None:
        results.append(None)
        return
    groups = trt.PluginField("offset_groups", np.array([4], np.int32), trt.PluginFieldType.INT32)
    node = trt.PluginField("aot", np.array([1], np.int32), trt.PluginFieldType.INT32)
    made = creator.create_plugin("dcn", trt.PluginFieldCollection([groups, node]), trt.TensorRTPhase.BUILD)
    results.append([creator.name, creator.plugin_version, creator.plugin_namespace, made is not None])

look()
if "open" in ways:
    library = ctypes.CDLL(path)
    look()
if "load" in ways:
    handle = registry.load_library(path)
    assert handle is not None
    look()
    registry.deregister_library(handle)
    look()
print(json.dumps(results))
"""


@pytest.mark.parametrize("ways", [["load"], ["open"], ["open", "load"]], ids=" and ".join)
def test_the_real_registry_takes_it(library: Path, ways: list[str]) -> None:
    """TensorRT's own, of its lean runtime: by its loader, and opened by a program as Triton does."""
    if find_spec("tensorrt_lean") is None:
        pytest.skip("tensorrt-lean is not installed")
    command = [sys.executable, "-c", REGISTRY, str(library), *ways]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    there = [op.NAME, str(op.VERSION), op.DOMAIN, True]
    found = {"load": [None, there, None], "open": [None, there], "open load": [None, there, there, None]}
    assert json.loads(result.stdout) == found[" ".join(ways)]
