"""Noise: on batches in training, on the device; and the evaluation protocol's, on one NumPy image."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def add_gaussian(clean: Tensor, sigmas: Sequence[float], seeds: Sequence[int], *, clip8: bool) -> Tensor:
    """White Gaussian noise on clean (N, C, H, W) in [0, 1]: sigma (0 to 255) and random seed for each sample.

    With `clip8` the result is clipped to [0, 1] and rounded to 8 bits. Sample i depends on sigmas[i] and seeds[i]
    alone, whatever batch it stands in; CPU and CUDA draw different noise from one seed.
    """
    scale = torch.tensor(sigmas, dtype=clean.dtype, device=clean.device).div_(255)
    noisy = clean + normal_like(clean, seeds) * scale[:, None, None, None]
    return noisy.clamp_(0, 1).mul_(255).round_().div_(255) if clip8 else noisy


def normal_like(batch: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal noise of the batch's shape, each sample from its own seed."""
    generator = torch.Generator(batch.device)
    noise = torch.empty_like(batch, memory_format=torch.contiguous_format)
    for sample, seed in zip(noise, seeds, strict=True):
        sample.normal_(generator=generator.manual_seed(seed))
    return noise


def protocol_noise(clean: NDArray[np.float32], sigma: float, index: int, *, clip8: bool) -> NDArray[np.float32]:
    """The evaluation protocol's noisy version of image `index` (from 0, in file name order) of a test set.

    clean (H, W, 3) or (H, W) in [0, 1]; sigma on the scale 0 to 255. The generator is seeded with 1000*sigma + index.
    """
    rng = np.random.default_rng(int(1000 * sigma + index))
    noisy = clean + rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma / 255)
    if clip8:
        noisy = np.rint(np.clip(noisy, 0, 1) * np.float32(255)) / np.float32(255)
    return noisy.astype(np.float32, copy=False)
