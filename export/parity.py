"""Parity of an exported file with PyTorch fp32: on a real noisy photo, at sizes that are no power of two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import ModelError
from common.images import read_picture, rgb8
from common.metrics import psnr
from common.padding import pad_to_multiple
from runtime.engines.base import Io, from_io, to_io
from runtime.engines.ort import load_onnxruntime
from train.sadnet import SADNet

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CASES = ((1, 320, 480), (1, 321, 481), (1, 53, 37), (1, 8, 8), (1, 3, 5), (1, 1, 1), (3, 72, 104))
"""(batch, height, width) that are compared."""
HALF_CASES = ((1, 53, 37), (2, 40, 64))
"""The same in half precision, which PyTorch computes slowly on a CPU."""


@dataclass(frozen=True)
class Bound:
    """Largest differences allowed, of samples in [0, 1] and of PSNR in dB."""

    max: float
    mean: float
    psnr: float


FP32 = Bound(max=1e-4, mean=1e-5, psnr=0.001)
FP16 = Bound(max=4 / 255, mean=0.2 / 255, psnr=0.01)
UINT8 = Bound(max=0.5 / 255 + 1e-4, mean=0.3 / 255, psnr=0.05)  # the output's rounding is part of the difference
UINT8_FP16 = Bound(max=1 / 255, mean=0.3 / 255, psnr=0.05)


Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A network on N,C,H,W images in [0, 1]."""


def check_parity(network: SADNet, path: Path, half: bool, io: str) -> None:
    """Run the ONNX file and `network` on crops of the sample photo and print their differences.

    Both take their input through the one padding function. Raises ModelError beyond the bound. ONNX Runtime on a CPU
    computes a half graph in fp32 as far as it may, so that this shows its structure; `check_half` is of its precision.
    """
    bound = (UINT8_FP16 if half else UINT8) if io == "uint8" else FP16 if half or io == "float16" else FP32
    _compare("the file", network, _onnx_runner(path, io), io, bound, CASES)


def check_half(network: SADNet, exported: nn.Module, io: str) -> None:
    """The same of `exported`, what the file was made of, in half precision by PyTorch on a CPU."""

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            y: torch.Tensor = exported(torch.from_numpy(to_io(x, cast(Io, io))))
        return from_io(y.numpy(), x.dtype)

    _compare("in half precision", network, run, io, UINT8_FP16 if io == "uint8" else FP16, HALF_CASES)


def _compare(
    what: str, network: SADNet, run: Run, io: str, bound: Bound, cases: Sequence[tuple[int, int, int]]
) -> None:
    clean, noisy = (_sample(name, network.config.channels) for name in ("astronaut_clean.png", "astronaut_noisy.png"))
    print(f"{what}\n{'batch, size':>16} {'max':>9} {'mean':>9}  PSNR change")
    for n, height, width in cases:
        places = [(60 * i, 40 * i) for i in range(n)]  # from the photo's top, where there is detail
        x, y = (np.stack([a[:, t : t + height, s : s + width] for t, s in places]) for a in (noisy, clean))
        padded = pad_to_multiple(x)
        with torch.inference_mode():
            expected = network(torch.from_numpy(padded)).numpy()[..., :height, :width]
        if io == "uint8":
            expected = expected.clip(0, 1)
        found = run(padded)[..., :height, :width]
        difference = np.abs(found - expected)
        change = psnr(found, y) - psnr(expected, y)
        print(f"{n:>4}, {f'{width}x{height}':>10} {difference.max():9.2e} {difference.mean():9.2e}  {change:+.4f} dB")
        # a PSNR of a few samples hangs on each one's rounding
        photo = n * height * width >= 1000
        fits = difference.max() <= bound.max and (
            not photo or (difference.mean() <= bound.mean and abs(change) <= bound.psnr)
        )
        if not fits:  # NaN fits nothing
            raise ModelError(
                f"parity with PyTorch fp32 failed, {what}, at {n} x {width}x{height}: expected a difference of at most "
                f"{bound.max:.2e} (mean {bound.mean:.2e}, PSNR {bound.psnr} dB), found {difference.max():.2e} "
                f"({difference.mean():.2e}, {change:+.4f} dB)"
            )


def _sample(name: str, channels: int) -> NDArray[np.float32]:
    image = rgb8(read_picture(ASSETS / name)).astype(np.float32) / np.float32(255)
    if channels == 1:  # in whole levels, or a file of 8-bit images would be given another picture than PyTorch
        image = np.rint(255 * image.mean(axis=2, keepdims=True)) / np.float32(255)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _onnx_runner(path: Path, io: str) -> Run:
    """The file under ONNX Runtime, on the CPU, behind N,C,H,W float32 whatever its own images are."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        (y,) = session.run(None, {name: to_io(x, cast(Io, io))})
        return from_io(y, x.dtype)

    return run
