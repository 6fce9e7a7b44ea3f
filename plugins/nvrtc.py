"""CUDA source -> PTX and machine code by NVRTC, from pip wheels, on a machine without a GPU or a CUDA toolkit.

    python plugins/nvrtc.py --arch all

compiles every kernel for every architecture and prints what each uses; it fails where one spills registers or keeps a
stack frame in local memory. NVRTC is 13.0: drivers refuse PTX that is newer than they are.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common import cli
from common.errors import DependencyError, InputError, SadnetError
from plugins import op

KERNELS = Path(__file__).resolve().parent / "kernels"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten, from Turing to Blackwell."""
TYPES = {"fp32": "float", "fp16": "__half"}
"""The kernels' SADNET_TYPE for each precision."""
INSTALL = "pip install -e '.[kernels]'"


class CompileError(SadnetError):
    """NVRTC refused a source; the text holds its messages, which name file and line."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor, from ptxas: registers a thread, and bytes."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spilled: int


@dataclass(frozen=True)
class Compiled:
    """One source for one architecture: PTX for any driver as new, machine code for that architecture alone."""

    source: str
    arch: int
    ptx: bytes
    cubin: bytes
    usages: tuple[Usage, ...]


def defines(precision: str, negative_slope: float = op.NEGATIVE_SLOPE) -> dict[str, str]:
    """The macros that every kernel source is compiled with. precision: "fp32" or "fp16"."""
    return {"SADNET_TYPE": TYPES[precision], "SADNET_NEGATIVE_SLOPE": f"{float(negative_slope)!r}f"}


def compile_source(name: str, source: str, arch: int, macros: Mapping[str, str]) -> Compiled:
    """Compile CUDA C++ text, called `name` in messages, for compute capability arch / 10.

    Raises CompileError with NVRTC's messages, DependencyError where its wheels are missing.
    """
    nvrtc, include = _nvrtc()
    options = [f"--gpu-architecture=sm_{arch}", "--std=c++17", f"--include-path={include}", "--ptxas-options=-v"]
    options += [f"--define-macro={macro}={value}" for macro, value in macros.items()]
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"expected {name} to compile for sm_{arch}, found: {log.strip() or result}")
        ptx = _bytes(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
        cubin = _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Compiled(name, arch, ptx, cubin, tuple(parse_usage(log)))


def compile_kernel(path: Path, arch: int, macros: Mapping[str, str]) -> Compiled:
    """Compile a file of plugins/kernels. Raises as `compile_source` does."""
    return compile_source(path.name, path.read_text(), arch, macros)


def parse_usage(log: str) -> Iterator[Usage]:
    """The kernels' resources out of ptxas' verbose log."""
    for part in log.split("Compiling entry function ")[1:]:

        def number(pattern: str, text: str = part) -> int:
            found = re.search(pattern, text)
            return int(found[1]) if found else 0

        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        name = part.split("'")[1]
        yield Usage(
            name, number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes stack"), spilled
        )


def _nvrtc() -> tuple[Any, str]:
    """NVRTC's bindings and the folder of CUDA's headers."""
    try:
        from cuda.bindings import nvrtc
        from cuda.pathfinder import DynamicLibNotFoundError, find_nvidia_header_directory
    except ImportError as error:
        raise DependencyError(f"expected NVRTC's Python bindings, found none ({error}): {INSTALL}") from error
    include = find_nvidia_header_directory("cudart")
    if include is None:
        raise DependencyError(f"expected CUDA's headers (cuda_fp16.h), found none: {INSTALL}")
    try:
        major, minor = _checked(nvrtc.nvrtcVersion())
    except (DynamicLibNotFoundError, RuntimeError) as error:
        raise DependencyError(f"expected the library NVRTC, found none that loads: {INSTALL}") from error
    if (major, minor) != (13, 0):
        raise DependencyError(f"expected NVRTC 13.0, whose PTX driver 580 takes, found {major}.{minor}: {INSTALL}")
    return nvrtc, include


def _checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise CompileError(f"NVRTC failed: {status}")
    return values[0] if len(values) == 1 else tuple(values)


def _bytes(size: Any, get: Any, program: Any) -> bytes:
    buffer = bytes(_checked(size(program)))
    _checked((*get(program, buffer), None))
    return buffer


app = cli.application("Compile every CUDA kernel and print what it uses.")


@app.command()
def main(
    arch: Annotated[list[str], typer.Option(help="compute capability such as 89, or all (one or more)")],
) -> None:
    """Registers a thread and bytes of every kernel; fails on spilled registers and stack frames."""
    known = [str(a) for a in ARCHITECTURES]
    for text in arch:
        if text not in (*known, "all"):
            raise InputError(f"--arch: expected all, or one of {', '.join(known)}, found {text!r}")
    table = Table("kernel", "precision", "arch", "registers", "shared", "stack", "spilled", "PTX")
    bad = []
    for path in sorted(KERNELS.glob("*.cu")):
        for precision in TYPES:
            for number in known if "all" in arch else arch:
                compiled = compile_kernel(path, int(number), defines(precision))
                for u in compiled.usages:
                    sizes = (u.registers, u.shared, u.stack, u.spilled, len(compiled.ptx))
                    table.add_row(path.name, precision, f"sm_{number}", *map(str, sizes))
                    if u.stack or u.spilled:
                        bad.append(f"{path.name} {precision} sm_{number}")
    Console().print(table)
    if bad:
        raise CompileError(f"expected no spilled registers and no stack frame, found some in {', '.join(bad)}")


if __name__ == "__main__":
    cli.run(app, several=("--arch",))
