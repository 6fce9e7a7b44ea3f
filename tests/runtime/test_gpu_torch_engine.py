"""PyTorch's engine in half precision on a GPU; what a CPU can do of it, in little, on a double too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ModelError
from common.images import read_picture
from common.metrics import psnr
from runtime import Denoiser
from runtime.engines.torch import TorchEngine, open_weights
from tests.runtime.cuda_double import FLOATS, CudaDouble, Invert, batch
from train.weights import load_weights

ASSETS = Path(__file__).resolve().parents[2] / "assets"
WEIGHTS = ASSETS / "blind_color.safetensors"
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["double", GPU])
def half_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    if request.param == "double":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 << 30, 8 << 30))
    engine = open_weights(WEIGHTS, precision="fp16")
    if request.param == "double":
        engine._cuda = CudaDouble("late")
    assert ("fp16" in engine.name, engine.device.type) == (True, {"double": "cpu"}.get(request.param, "cuda"))
    return engine


def photo(kind: str, width: int, height: int) -> np.ndarray:
    """A part of the sample photo from its middle on, (H, W, 3) in [0, 1]."""
    pixels = read_picture(ASSETS / f"astronaut_{kind}.png").pixels
    return np.asarray(pixels[:height, -width:] / np.float32(255))


def assert_alike(found: np.ndarray, right: np.ndarray, clean: np.ndarray, what: str) -> None:
    difference = 255 * np.abs(found - right)
    decibels = psnr(found, clean) - psnr(right, clean)
    print(f"{what}: {decibels:+.5f} dB, max {difference.max():.3f}/255, mean {difference.mean():.4f}/255")
    assert abs(decibels) <= 0.01
    assert difference.max() <= 4
    assert difference.mean() <= 0.2


@pytest.mark.parametrize(("width", "height"), [(480, 320), (481, 321)])
def test_half_precision_keeps_the_picture(half_engine: TorchEngine, width: int, height: int) -> None:
    if half_engine.device.type == "cpu":
        width, height = width // 10 + width % 2, height // 10 + height % 2
    noisy, clean = photo("noisy", width, height), photo("clean", width, height)
    right = Denoiser(TorchEngine(load_weights(WEIGHTS), 3)).denoise(noisy)
    assert psnr(right, clean) > psnr(noisy, clean) + 5
    for turn in ("eager", "captured", "replayed"):
        found = Denoiser(half_engine).denoise(noisy)
        assert_alike(found, right, clean, f"{width}x{height}, {turn}")


def test_half_precision_keeps_a_batch(half_engine: TorchEngine) -> None:
    width, height = (480, 320) if half_engine.device.type == "cuda" else (24, 32)
    batches = {}
    for kind in ("noisy", "clean"):
        one = photo(kind, width, height)
        images = np.stack([one, one[::-1], one[:, ::-1], one[::-1, ::-1]])
        batches[kind] = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    right = TorchEngine(load_weights(WEIGHTS), 3).run(batches["noisy"])
    for found in half_engine.stream([batches["noisy"]] * 3):
        assert_alike(found, right, batches["clean"], f"4 of {width}x{height}")


# A GPU alone


@pytest.mark.gpu
def test_a_real_gpu_goes_on_after_its_memory_ran_out() -> None:
    engine = open_weights(WEIGHTS)
    small = batch(0, (1, 3, 64, 64))
    right = [engine.run(small) for _ in range(3)][-1]
    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ModelError, match=r"cannot denoise 4096x4096 at once .*out of memory"):
            engine.run(batch(0, (1, 3, 4096, 4096)))
        for _ in range(3):
            np.testing.assert_allclose(engine.run(small), right, atol=1e-2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_a_real_gpu_tells_its_own_time() -> None:
    engine = open_weights(WEIGHTS)
    images = batch(0, (1, 3, 320, 480))
    seconds = engine.seconds_on_device(images, 20)
    assert seconds is not None
    print(f"480x320, fp16, graph: median {1e3 * float(np.median(seconds)):.3f} ms on the device")
    assert len(seconds) == 20
    assert 0 < min(seconds) <= max(seconds) < 1


@pytest.mark.gpu
def test_a_network_with_graphs_of_its_own_runs_on_a_real_gpu() -> None:
    network = torch.compile(Invert().cuda(), mode="reduce-overhead")
    engine = TorchEngine(network, 3, graphs=False)  # type: ignore[arg-type]  # a Module
    given = [batch(i, FLOATS[i % 2]) for i in range(10)]
    for images, result in zip(given, engine.stream(given), strict=True):
        np.testing.assert_allclose(result, 1 - images, atol=1e-6)
