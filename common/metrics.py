"""PSNR and SSIM as the evaluation protocol takes them: the output clipped to [0, 1], not quantised."""

import math

import numpy as np
from numpy.typing import NDArray


def psnr(output: NDArray[np.floating], clean: NDArray[np.floating]) -> float:
    """10 log10(1 / mean squared error) over all samples, in dB; infinite for equal images. Any shape, in [0, 1]."""
    error = np.clip(output, 0, 1).astype(np.float64) - clean.astype(np.float64)
    mse = float(np.mean(error * error))
    return 10 * math.log10(1 / mse) if mse else math.inf


def ssim(output: NDArray[np.floating], clean: NDArray[np.floating]) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of sigma 1.5) of (H, W) or (H, W, 3) in [0, 1].

    NaN where a side is under 11 pixels, the window's size.
    """
    from skimage.metrics import structural_similarity

    if min(clean.shape[:2]) < 11:
        return math.nan
    return float(
        structural_similarity(
            clean.astype(np.float32),
            np.clip(output, 0, 1).astype(np.float32),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1 if clean.ndim == 3 else None,
        )
    )
