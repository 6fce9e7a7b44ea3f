"""Every engine that this machine has, against PyTorch in fp32 on a CPU, on noisy photos and through `Denoiser`.

The photos are real ones of the CC set where the checkout has it beside it (../shared/data/CC), and else the sample
photo, whose noise is synthetic. The engine of plans runs on a CPU with a double of its library that computes the very
graph that TensorRT-RTX is given.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from common.images import read_picture, rgb8
from common.metrics import psnr
from common.padding import pad_to
from common.tensorrt_library import Backend
from export import plan_graph, to_onnx, to_plan
from export.parity import FP16
from export.plan_build import Sizes
from export.plan_rtx import RtxTarget
from export.plan_tensorrt import TensorRTTarget
from export.plan_types import Precision, retype
from runtime import Denoiser
from runtime.engines import Engine, open_engine
from runtime.engines.ort import OrtEngine
from runtime.engines.torch import TorchEngine
from runtime.tiles import TILE
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import machine, write_plan
from train.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
REAL = ROOT.parent / "shared" / "data" / "CC"
BUNDLED, WEIGHTS = ASSETS / "blind_color.onnx", ASSETS / "blind_color.safetensors"
LARGEST = (1088, 1920)
Case = tuple[int, int, int]
"""Images, height, width."""
Photos = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Noisy and clean, (N, H, W, 3) in [0, 1]."""

CASES = [(1, 320, 480), (1, 321, 481), (4, 160, 240), pytest.param((1, 1080, 1920), marks=pytest.mark.slow)]
ON_A_GPU = [(1, 320, 480), (1, 321, 481), (4, 320, 480), (1, 1080, 1920)]


@cache
def photos(case: Case) -> Photos:
    count, height, width = case
    pairs = [(path, path.with_name(path.name.replace("_real", "_mean"))) for path in sorted(REAL.glob("*_real.png"))]
    pairs = pairs[:: len(pairs) // count or 1] or [(ASSETS / "astronaut_noisy.png", ASSETS / "astronaut_clean.png")]
    pairs = (pairs * count)[:count]

    def part(path: Path, index: int) -> NDArray[np.float32]:
        image = rgb8(read_picture(path))
        top, left = 20 * index, 30 * index
        image = image[top : top + height, left : left + width]
        return (pad_to(image, (height, width), (0, 1)) / 255).astype(np.float32)

    noisy, clean = (np.stack([part(pair[side], i) for i, pair in enumerate(pairs)]) for side in (0, 1))
    return noisy, clean


@cache
def expected(case: Case) -> NDArray[np.float32]:
    network = load_weights(WEIGHTS)
    with Denoiser(TorchEngine(network, 3), tile=TILE) as denoiser:
        return denoiser.denoise(photos(case)[0])


def exported(folder: Path, precision: to_onnx.Precision, io: to_onnx.Io) -> Path:
    """The bundled weights, exported anew."""
    model = to_onnx.export_network(load_weights(WEIGHTS), precision, io, {})
    (folder / "exported.onnx").write_bytes(model.SerializeToString())
    return folder / "exported.onnx"


def rtx_graph(folder: Path) -> Path:
    """What TensorRT-RTX is given, in half precision, for images up to 1920x1088."""
    model, _ = plan_graph.load_network(BUNDLED)
    retype(model, Precision.FP16)
    onnx.save(plan_graph.with_grid_sample(model, *LARGEST), folder / "stated.onnx")
    return folder / "stated.onnx"


MODELS: dict[str, Callable[[Path], Path]] = {
    "bundled": lambda _: BUNDLED,
    "fp16": lambda folder: exported(folder, to_onnx.Precision.FP16, to_onnx.Io.FLOAT32),
    "fp16 images": lambda folder: exported(folder, to_onnx.Precision.FP16, to_onnx.Io.FLOAT16),
    "8-bit images": lambda folder: exported(folder, to_onnx.Precision.FP32, to_onnx.Io.UINT8),
    "TensorRT-RTX": rtx_graph,
}


def check(engine: Engine, case: Case) -> None:
    noisy, clean = photos(case)
    # tiles alike: on a GPU they would be larger, which changes more than half precision does
    found, wanted = Denoiser(engine, tile=TILE).denoise(noisy), expected(case)
    if engine.io == "uint8":  # its images' own rounding is no difference
        wanted = np.rint(wanted * np.float32(255)) / np.float32(255)
    difference = np.abs(found - wanted)
    change = psnr(found, clean) - psnr(wanted, clean)
    print(f"{engine.name} {case}: max {difference.max():.2e} mean {difference.mean():.2e} PSNR {change:+.4f} dB")
    assert psnr(found, clean) > psnr(noisy, clean)
    assert difference.max() <= FP16.max
    assert difference.mean() <= FP16.mean
    assert abs(change) <= FP16.psnr


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_agrees(model: Path, case: Case) -> None:
    with open_engine(model) as engine:
        check(engine, case)


@pytest.mark.parametrize("model", ["TensorRT-RTX"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_plans_on_a_double_agree(model: Path, tmp_path: Path, case: Case) -> None:
    """A plan of one size beside one of many, in a folder; where there are tiles, they are its size."""
    fixed = (320, 480) if max(case) < TILE else (TILE, TILE)
    write_plan(tmp_path / "fixed.plan", fixed, fixed)
    write_plan(tmp_path / "range.plan", (8, 8), LARGEST)
    with OrtEngine(model) as graph, machine(World(), graph.run), open_engine(tmp_path) as engine:
        check(engine, case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_A_GPU)
def test_pytorch_on_a_gpu_agrees(case: Case) -> None:
    with open_engine(WEIGHTS) as engine:
        assert "CPU" not in engine.name
        check(engine, case)


@pytest.mark.gpu
@pytest.mark.parametrize("io", ["float32", "uint8"])
@pytest.mark.parametrize("case", ON_A_GPU)
@pytest.mark.parametrize("backend", [Backend.TENSORRT_RTX, pytest.param(Backend.TENSORRT, marks=pytest.mark.tensorrt)])
def test_plans_on_a_gpu_agree(tmp_path: Path, backend: Backend, case: Case, io: str) -> None:
    pytest.importorskip({Backend.TENSORRT_RTX: "tensorrt_rtx", Backend.TENSORRT: "tensorrt"}[backend])
    model = exported(tmp_path, to_onnx.Precision.FP32, to_onnx.Io(io))
    size = (-(-case[2] // 8) * 8, -(-case[1] // 8) * 8)
    target = RtxTarget() if backend is Backend.TENSORRT_RTX else TensorRTTarget(None, tmp_path / "timing")
    to_plan.write(model, tmp_path / "a.plan", target, Precision.FP16, Sizes(size, size, size), overwrite=False)
    with open_engine(tmp_path / "a.plan") as engine:
        check(engine, case)
