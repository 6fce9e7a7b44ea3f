"""Pictures in tiles are those that the whole gives, and a run with the bundled models stays within its memory."""

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.images import read_picture
from common.metrics import psnr
from runtime import Denoiser, tiles
from runtime.memory import BYTES_A_PIXEL
from runtime.models import ASSETS, bundled_models
from runtime.tiles import OVERLAP, SIDES
from train.camera import photographed
from train.config import CameraConfig
from train.noise import protocol_noise

ROOT = Path(__file__).resolve().parents[2]


def photo(sigma: float, shot: float = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The bundled one, clean, and with noise as a file holds it: its own (sigma 50) for 0; or with a camera's."""
    clean, noisy = (
        read_picture(ASSETS / f"astronaut_{kind}.png").pixels.astype(np.float32) / np.float32(255)
        for kind in ("clean", "noisy")
    )
    if shot:
        return clean, photographed(clean, replace(CameraConfig(), shot=(shot, shot)), 0)
    return clean, protocol_noise(clean, sigma, 0, clip8=True) if sigma else noisy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma", "shot"),
    [
        *product((model.name for model in bundled_models() if model.channels == 3), (0, 70), (0,)),
        ("real_color", 0, 1e-3),
    ],
)
def test_tiles_show_no_seam(name: str, sigma: int, shot: float) -> None:
    """The smallest ones that memory may choose, with the bundled photo's own noise (0) and with more; a camera's for
    the model of that."""
    clean, noisy = photo(sigma, shot)
    with Denoiser(ASSETS / f"{name}.onnx", tile=512) as denoiser:
        whole = denoiser.denoise(noisy)
        tiled = Denoiser(denoiser.engine, tile=min(SIDES)).denoise(noisy)
    difference = 255 * np.abs(whole - tiled)
    almost_all, change = np.quantile(difference, 0.9999), psnr(tiled, clean) - psnr(whole, clean)
    noise = f"{name}, sigma {sigma}, shot {shot}"
    print(f"{noise}: max {difference.max():.2f}, 99.99 % {almost_all:.2f} of 255, {change:+.5f} dB")
    assert 0 < almost_all <= 2
    assert abs(change) < 0.02


@pytest.mark.slow
def test_tiles_that_share_more_are_nearer_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `OVERLAP` was chosen by."""
    _, noisy = photo(70)
    almost_all = []
    with Denoiser(ASSETS / "blind_color.onnx", tile=512) as denoiser:
        whole = denoiser.denoise(noisy)
        for overlap in (64, OVERLAP, 128):
            monkeypatch.setattr(tiles, "OVERLAP", overlap)
            tiled = Denoiser(denoiser.engine, tile=min(SIDES)).denoise(noisy)
            almost_all.append(255 * np.quantile(np.abs(whole - tiled), 0.9999))
            print(f"{overlap} shared: 99.99 % {almost_all[-1]:.2f} of 255")
    less, chosen, more = almost_all
    assert less > 2 > chosen > more - 0.1


PIXELS = """
import sys
from pathlib import Path
import numpy as np
from runtime.engines import open_engine

def held(entry):
    return 1024 * int(Path("/proc/self/status").read_text().split(entry + ":")[1].split()[0])

side = int(sys.argv[2])
engine = open_engine(sys.argv[1], threads=1)
rng = np.random.default_rng(0)
before = held("VmRSS")
for height, width in [(side, side)] * 4 + (8 * rng.integers(2, side // 8 + 1, (int(sys.argv[3]), 2))).tolist():
    engine.run(rng.random((1, 3, height, width), np.float32))
print((held("VmHWM") - before) / side**2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("suffix", "side", "others"), [(".onnx", 256, 0), (".onnx", 512, 0), (".safetensors", 512, 0), (".onnx", 320, 60)]
)
def test_the_memory_that_a_pixel_takes(suffix: str, side: int, others: int) -> None:
    """`others`: smaller pictures of other sizes after it, which leave gaps in ONNX Runtime's memory."""
    command: list[str | Path] = [sys.executable, "-c", PIXELS, ASSETS / f"blind_color{suffix}", str(side), str(others)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"{suffix}, {side}x{side} and {others} others: {float(result.stdout):.0f} bytes a pixel")
    assert BYTES_A_PIXEL / 2.5 < float(result.stdout) <= BYTES_A_PIXEL


RUN = """
import sys
from pathlib import Path
import cv2
import numpy as np
from common.images import read_picture
from runtime import memory
from runtime.denoiser import Denoiser
from runtime.engines import open_engine
from runtime.engines.base import Engine
from runtime.jobs import Job
from runtime.pipeline import denoise_files

class Some(Engine):
    "The real network for the first `count` tiles, by which its memory has settled, and copies from then on."

    def __init__(self, engine, count):
        self.engine, self.left = engine, count
        self.name, self.channels = engine.name, engine.channels

    def pixels_at_once(self):
        return memory.HOST_PIXELS  # whatever this machine has free

    def _run(self, images):
        self.left -= 1
        return self.engine.run(images) if self.left >= 0 else images.copy()

folder, model, suffix, deep = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "16"
photo = read_picture("assets/astronaut_noisy.png").pixels.astype(np.uint16 if deep else np.uint8) * (257 if deep else 1)
large = np.tile(photo, (17, 25, 1))[:8334, :12001]
cv2.imwrite(str(folder / f"large{suffix}"), large)
del large
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the test's own
jobs = [Job(folder / f"large{suffix}", folder / f"done{suffix}")]
summary = denoise_files(Denoiser(Some(open_engine(model, threads=1), 8)), jobs)
assert summary.done == 1, summary.faults
print(1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("suffix", "depth", "bound"), [(".jpg", 8, 4e9), (".png", 16, 4e9)])
def test_the_memory_of_a_100_megapixel_photo(tmp_path: Path, suffix: str, depth: int, bound: float) -> None:
    """From file to file. All its tiles are of one size, so that the first few need what all would."""
    command: list[str | Path] = [sys.executable, "-c", RUN, tmp_path, ASSETS / "real_color.onnx", suffix, str(depth)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    print(f"{depth} bits: {int(result.stdout) / 1e9:.2f} GB")
    assert 1.5e9 < int(result.stdout) < bound
    assert read_picture(tmp_path / f"done{suffix}").pixels.shape == (8334, 12001, 3)


SIZES = """
from pathlib import Path
import numpy as np
from runtime import Denoiser
with Denoiser("assets/blind_color.onnx", tile=512) as denoiser:
    for height, width in ((400, 600), (512, 512), (200, 1100), (700, 512)):
        denoiser.denoise(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
# not getrusage's, which begins at what the process that started this one had
print(1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_pictures_of_many_sizes_need_no_more_than_one_of_a_tile() -> None:
    result = subprocess.run([sys.executable, "-c", SIZES], cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"{int(result.stdout) / 1e9:.2f} GB")
    assert 0.5e9 < int(result.stdout) < 2.2e9
