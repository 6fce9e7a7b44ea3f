"""The C++ plugin's launches, compiled by g++ and run on the CPU: which kernel, its grid, its arguments and their order.

Neither TensorRT's headers nor nvcc are needed: what the plugin does before a launch is for the other tests here.
"""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins import launch, op
from plugins.launch import Layer, Precision
from plugins.nvrtc import SADNET_CHANNELS
from tests.plugins.cpu_shim.build import FLAGS, SHIM, Array, Fenced, compiler
from tests.plugins.cpu_shim.cases import Case, check

V3 = launch.KERNELS.parent / "tensorrt_v3"
CPU = Path(__file__).resolve().parent / "cpu"
MARGIN, MARK = 512, 7.5
SUCCESS, INVALID_VALUE = 0, 1
"""cudaError_t of cpu/cuda_runtime_api.h."""


class Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in launch.SCALARS),
        ("negative_slope", ctypes.c_float),
    )


class Buffers(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("x", "offset_mask", "weight", "bias", "y"))


class Launches:
    """One launching source of the plugin, with its kernels, on the CPU."""

    def __init__(self, source: str, folder: Path, **macros: str) -> None:
        program = compiler()
        if program is None:  # CI has one; a user's machine need not
            pytest.skip("no C++ compiler here: apt-get install g++")
        object_file, library = folder / "run.o", folder / "run.so"
        defined = [f"-D{name}={value}" for name, value in {"SADNET_LAUNCHES": f'"{source}"', **macros}.items()]
        includes = [f"-I{path}" for path in (CPU, SHIM, launch.KERNELS, V3)]
        command = [program, *FLAGS, *includes, *defined, "-c", str(CPU / "run.cpp"), "-o", str(object_file)]
        for step in (command, [program, "-shared", str(object_file), "-o", str(library)]):
            result = subprocess.run(step, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
        self.library = ctypes.CDLL(str(library))

    @staticmethod
    def problem(case: Case) -> Problem:
        layer = case.layer
        return Problem(case.n, layer.channels, case.h, case.w, layer.outputs, layer.offset_groups, layer.negative_slope)

    def tiles(self, case: Case) -> int:
        return int(self.library.tiles(ctypes.byref(self.problem(case))))

    def run(self, case: Case, tile: int = 0, *, channels_last: bool = False) -> tuple[int, Array]:
        """A cudaError_t, and y (N, O, H, W)."""
        shape = (case.n, case.layer.outputs, case.h, case.w)
        arrays: list[Array] = [*case.arrays(), np.full(shape, np.nan, case.arrays()[0].dtype)]
        if channels_last:
            arrays = [a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for a in arrays]
        *inputs, y = (Fenced(a, MARGIN, MARK if a is arrays[-1] else np.nan) for a in arrays)
        buffers = Buffers(*(fenced.array.ctypes.data for fenced in (*inputs, y)))
        sizes = (ctypes.c_size_t * 4)(*(fenced.array.nbytes for fenced in inputs))
        fault = ctypes.c_char_p()
        problem = self.problem(case)
        code = self.library.run(ctypes.byref(problem), tile, ctypes.byref(buffers), sizes, ctypes.byref(fault))
        assert fault.value in (None, b"")
        assert y.fence_stands()
        return code, y.array.transpose(0, 3, 1, 2) if channels_last else y.array


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches("launch_fused.cu", tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision, int], Launches]:
    """linear(precision, outputs): the object file that CMakeLists.txt makes for them."""
    made: dict[Any, Launches] = {}

    def launches(precision: Precision, outputs: int) -> Launches:
        if (precision, outputs) not in made:
            macros = {"SADNET_TYPE": launch.TYPES[precision], "SADNET_OUTPUTS": str(outputs)}
            folder = tmp_path_factory.mktemp(f"linear_{precision}_{outputs}")
            made[precision, outputs] = Launches("launch_linear.cu", folder, **macros)
        return made[precision, outputs]

    return launches


@pytest.mark.parametrize(("channels", "slope"), [(32, 1.0), *((c, op.NEGATIVE_SLOPE) for c in SADNET_CHANNELS)])
def test_every_tile_of_a_fused_layer(fused: Launches, channels: int, slope: float) -> None:
    layer = Layer(channels, channels, negative_slope=slope)
    case = Case(layer, n=2, h=5, w=19)
    assert fused.tiles(case) == len(launch.tiles(layer))
    for tile in range(fused.tiles(case)):
        code, y = fused.run(case, tile, channels_last=True)
        assert code == SUCCESS
        check(y, case, rounds_samples=True)
    assert fused.run(case, fused.tiles(case), channels_last=True)[0] == INVALID_VALUE


def test_other_layers_have_no_tiles(fused: Launches) -> None:
    for layer in (Layer(32, 64), Layer(32, 32, 4), Layer(40, 40)):
        assert fused.tiles(Case(layer, 1, 1, 1)) == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("outputs", [32, 64])
@pytest.mark.parametrize("layer", [Layer(24, 40, 3), Layer(7, 5, 1, 0.5), Layer(32, 64, 8)], ids=str)
def test_linear_takes_any_layer(
    linear: Callable[[Precision, int], Launches], precision: Precision, outputs: int, layer: Layer
) -> None:
    case = Case(layer, n=2, h=11, w=37, precision=precision)
    code, y = linear(precision, outputs).run(case)
    assert code == SUCCESS
    check(y, case, rounds_samples=False)
