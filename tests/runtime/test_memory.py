"""The bundled model stays under the memory bound that `runtime.denoiser` states, and its tiles show no seam."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import resource
import numpy as np
from runtime import Denoiser
with Denoiser("assets/blind_color.onnx") as denoiser:
    for height, width in ((400, 600), (512, 512), (1100, 1300)):
        denoiser.denoise(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_peak_memory_is_bounded() -> None:
    result = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5e9 < int(result.stdout) < 3.5e9


@pytest.mark.slow
def test_tiles_of_the_bundled_model_show_no_seam() -> None:
    code = """
import numpy as np
from common.images import read_picture
from runtime import Denoiser
noisy = read_picture("assets/astronaut_noisy.png").pixels.astype(np.float32) / 255
with Denoiser("assets/blind_color.onnx") as whole, Denoiser("assets/blind_color.onnx", tile=256) as tiled:
    difference = np.abs(whole.denoise(noisy) - tiled.denoise(noisy))
print(difference.max() * 255, np.quantile(difference, 0.9999) * 255)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    largest, almost_all = map(float, result.stdout.split())
    assert 0 < largest <= 2
    assert almost_all <= 0.5
