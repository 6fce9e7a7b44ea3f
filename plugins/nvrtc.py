"""CUDA source -> PTX and machine code by NVRTC, from pip wheels, on a machine without a GPU or a CUDA toolkit.

    python plugins/nvrtc.py --arch all

compiles every kernel for every architecture and prints what each uses; it fails where one spills registers or keeps a
stack frame in local memory. NVRTC is 13.0: drivers refuse PTX that is newer than they are.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common import cli
from common.errors import DependencyError, InputError, SadnetError
from plugins import launch, op

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten, from Turing to Blackwell."""
SADNET_CHANNELS = (32, 64, 128, 256)
"""Of the network's four deformable convolutions, x and y alike."""
OTHER_LAYERS = (launch.Layer(64, 160, 4), launch.Layer(40, 72, 10), launch.Layer(48, 128, 8))
"""Of 16, 4 and 6 channels an offset group: layers that tiles.def does not name."""
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


def capability(major: int, minor: int) -> int:
    """Compute capability, times ten: 8 and 9 are 89."""
    return 10 * major + minor


def architecture(number: int) -> int:
    """The newest of ARCHITECTURES that a GPU of this `capability` runs. Raises DependencyError before Turing."""
    known = [arch for arch in ARCHITECTURES if arch <= number]
    if not known:
        raise DependencyError(
            f"expected a GPU of compute capability {ARCHITECTURES[0] / 10} (Turing) or later, found {number / 10}"
        )
    return max(known)


def compile_source(name: str, source: str, arch: int, macros: Mapping[str, str]) -> Compiled:
    """Compile CUDA C++ text, called `name` in messages, for compute capability arch / 10.

    Raises CompileError with NVRTC's messages, DependencyError where its wheels are missing.
    """
    nvrtc, include = load_nvrtc()
    options = [f"--gpu-architecture=sm_{arch}", "--std=c++17", f"--include-path={include}", "--ptxas-options=-v"]
    options += [f"--include-path={launch.KERNELS}"]
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


def compile_kernel(kernel: launch.Kernel, arch: int) -> Compiled:
    """Compile a kernel of plugins/kernels with the macros of its launch. Raises as `compile_source` does."""
    return compile_source(kernel.source, (launch.KERNELS / kernel.source).read_text(), arch, dict(kernel.macros))


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


def load_nvrtc() -> tuple[Any, str]:
    """NVRTC's bindings and the folder of CUDA's headers. Raises DependencyError where something is missing."""
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


def every_kernel() -> Iterator[tuple[str, launch.Kernel]]:
    """Each kernel that SADNet's layers can run, with a label, in every type; and fused ones of other layers."""
    for precision in launch.TYPES:
        yield f"plain.cu {precision}", launch.teacher(launch.Layer(32, 32), precision)
        for outputs in launch.LINEAR_PIXELS:
            (kernel,) = launch.kernels(launch.Layer(outputs, outputs), precision, "linear")
            yield f"linear.cu {precision} {outputs} outputs", kernel
    for kind in ("float", "__half", "__nv_bfloat16"):
        for channels in SADNET_CHANNELS:
            width = channels // op.OFFSET_GROUPS
            yield f"training.cu {kind} {channels}", launch.training(kind, op.OFFSET_GROUPS, width)
    for layer in (*(launch.Layer(channels, channels) for channels in SADNET_CHANNELS), *OTHER_LAYERS):
        for tile, kernel in zip(launch.tiles(layer), launch.kernels(layer, "fp16", "hwc8"), strict=True):
            yield f"fused.cu {layer.channels}-{layer.outputs}, {layer.offset_groups} groups, {tile.label}", kernel


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
    table = Table("kernel", "arch", "registers", "shared", "stack", "spilled")
    bad = []
    for label, kernel in every_kernel():
        for number in known if "all" in arch else arch:
            compiled = compile_kernel(kernel, int(number))
            for u in compiled.usages:
                sizes = (u.registers, u.shared, u.stack, u.spilled)
                table.add_row(label, f"sm_{number}", *map(str, sizes))
                if u.stack or u.spilled:
                    bad.append(f"{label} sm_{number}")
    Console(width=max(Console().width, 110)).print(table)  # a pipe is as wide as the table
    if bad:
        raise CompileError(f"expected no spilled registers and no stack frame, found some in {', '.join(bad)}")


if __name__ == "__main__":
    cli.run(app, several=("--arch",))
