"""Inputs for kernels on the CPU, what the specification makes of them, and how near a kernel must come."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from plugins import op
from plugins.launch import Layer, Precision
from plugins.reference import modulated_deform_conv2d, sample_taps

Array = NDArray[Any]
Arrays = tuple[Array, Array, Array, Array]
DTYPES: dict[Precision, type] = {"fp32": np.float32, "fp16": np.float16}
HALF_ROUNDING = 2.0**-11
"""Of a number that is rounded to half: at most this part of it is lost."""
FLOAT_SUM = {"fp32": 1e-4, "fp16": 5e-5}
"""What adding in fp32 may change of a sum of about 1; of fp32's offsets, unlike fp16's, coordinates are rounded too."""


@dataclass(frozen=True)
class Case:
    """One layer on images of n x h x w.

    reach: standard deviation of the offsets in pixels. special: a third of the offsets and some logits are instead far,
    infinite, NaN, or such that the place is on a border, beside it, or on a pixel.
    """

    layer: Layer
    n: int
    h: int
    w: int
    reach: float = 1.5
    special: bool = False
    precision: Precision = "fp16"
    seed: int = 0

    @lru_cache(maxsize=64)  # noqa: B019  (one case is run by several kernels)
    def arrays(self) -> Arrays:
        """x, offset_mask, weight and bias in the shapes of `plugins.op`."""
        rng = np.random.default_rng(self.seed)
        c, o, groups = self.layer.channels, self.layer.outputs, self.layer.offset_groups
        x = rng.standard_normal((self.n, c, self.h, self.w))
        offset = self.reach * rng.standard_normal((self.n, op.offset_channels(groups), self.h, self.w))
        logits = rng.standard_normal((self.n, op.mask_channels(groups), self.h, self.w))
        weight = rng.standard_normal((o, c, 3, 3)) / c**0.5
        bias = 0.3 * rng.standard_normal(o)
        if self.special:
            offset = np.where(rng.random(offset.shape) < 1 / 3, self._special_offsets(rng), offset)
            logits = np.where(
                rng.random(logits.shape) < 0.1, rng.choice([np.inf, -np.inf, 6e4, -12], logits.shape), logits
            )
        dtype = DTYPES[self.precision]
        moves = np.concatenate((offset, logits), 1)
        return x.astype(dtype), moves.astype(dtype), weight.astype(dtype), bias.astype(dtype)

    def _special_offsets(self, rng: np.random.Generator) -> Array:
        groups = self.layer.offset_groups
        shape = (self.n, groups * op.TAPS, self.h, self.w)
        far = np.array([0, 6e4, -6e4, 300, -300, np.inf, -np.inf, np.nan])
        tap = np.tile(np.arange(op.TAPS), groups)[:, None, None]
        both = []
        for size, position in (
            (self.h, np.arange(self.h)[:, None] + tap // op.KERNEL - 1),
            (self.w, np.arange(self.w) + tap % op.KERNEL - 1),
        ):
            beside = [p + d for p in (-1, 0, size - 1, size) for d in (0, 0.5, -0.5, 2**-6, -(2**-6))]
            place = rng.choice(beside, shape)
            both.append(np.where(rng.random(shape) < 0.5, place - position, rng.choice(far, shape)))
        return np.stack(both, 2).reshape(self.n, -1, self.h, self.w)

    @lru_cache(maxsize=64)  # noqa: B019
    def right(self) -> tuple[Array, Array]:
        return specification(self.arrays(), self.layer)


def specification(arrays: Arrays, layer: Layer) -> tuple[Array, Array]:
    """y in fp64; and of each sum the root of its squared terms, by which roundings of single samples grow."""
    n, _, h, w = arrays[0].shape
    groups = layer.offset_groups
    x, moves, weight, bias = (torch.from_numpy(a.astype(np.float64)) for a in arrays)
    offset, logits = moves.split_with_sizes((op.offset_channels(groups), op.mask_channels(groups)), dim=1)
    y = modulated_deform_conv2d(x, moves, weight, bias, groups, layer.negative_slope)
    mask = logits.sigmoid().reshape(n * groups, 1, op.TAPS, h, w)
    columns = (sample_taps(x, offset, groups) * mask).reshape(n, -1, h, w)
    squares = F.conv2d(columns**2, weight.reshape(len(weight), -1, 1, 1) ** 2)
    return y.numpy(), squares.sqrt().numpy()


def check(found: Array, case: Case, *, rounds_samples: bool) -> None:
    """Raises AssertionError unless y is within the roundings of the kernel's precision.

    In half precision that is one rounding of y, by at most HALF_ROUNDING of it; and, where a kernel multiplies samples
    as halves (rounds_samples), one rounding of each sample. These are independent, and even within +-HALF_ROUNDING of
    the sample or less: their sum's standard deviation is at most HALF_ROUNDING / sqrt(3) times the terms' root sum of
    squares. Seven of these are exceeded less than once in 1e10 numbers. The error's RMS over many numbers is bounded
    by the roundings' standard deviation itself: a second rounding of every sample would exceed it.
    """
    y, terms = case.right()
    assert found.shape == y.shape
    assert not np.isnan(found).any(), f"{case}: {np.isnan(found).sum()} of {found.size} outputs are NaN or not written"
    error = found.astype(np.float64) - y
    half = HALF_ROUNDING * (case.precision == "fp16")
    deviation = half * rounds_samples * terms / 3**0.5
    excess = np.abs(error) - (half * np.abs(y) + 7 * deviation + FLOAT_SUM[case.precision])
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[worst] <= 0, (
        f"{case}: {(excess > 0).sum()} of {found.size} outputs are wrong, "
        f"the worst at {tuple(map(int, worst))}: expected {y[worst]:.5f}, found {found[worst]:.5f}"
    )
    if found.size >= 1000:
        deviation *= np.where(y < 0, case.layer.negative_slope, 1)
        allowed = np.sqrt(np.mean(deviation**2 + (half * y) ** 2 / 3)) + FLOAT_SUM[case.precision]
        rms = np.sqrt(np.mean(error**2))
        assert rms <= allowed, f"{case}: expected an RMS error of at most {allowed:.2e}, found {rms:.2e}"
