"""PSNR and SSIM as the protocol takes them."""

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from common.metrics import psnr, ssim


@pytest.mark.parametrize(("error", "decibels"), [(0.1, 20.0), (0.01, 40.0), (0.5, 6.0206)])
def test_psnr_of_a_known_error(error: float, decibels: float) -> None:
    clean = np.full((5, 7, 3), 0.25, np.float32)
    assert psnr(clean + np.float32(error), clean) == pytest.approx(decibels, abs=1e-4)


def test_psnr_averages_the_squares_of_all_channels_together() -> None:
    clean = np.zeros((4, 4, 3), np.float32)
    output = clean.copy()
    output[..., 0] = 0.3
    assert psnr(output, clean) == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-5)


def test_outputs_are_clipped_but_not_rounded() -> None:
    clean = np.array([[0.0, 1.0]], np.float32)
    assert psnr(np.array([[-5.0, 9.0]], np.float32), clean) == math.inf
    assert psnr(np.array([[0.001, 1.0]], np.float32), clean) == pytest.approx(-10 * math.log10(1e-6 / 2), abs=1e-3)


def test_equal_images_are_perfect() -> None:
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1.0, abs=1e-6)


def test_what_is_not_a_number_stays_none() -> None:
    clean = np.zeros((3, 3), np.float32)
    assert math.isnan(psnr(np.full_like(clean, np.nan), clean))


@pytest.mark.parametrize("shape", [(24, 31, 3), (24, 31), (11, 11, 3)])
def test_ssim_is_scikit_images_with_the_protocols_settings(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    clean = rng.random(shape, dtype=np.float32)
    output = clean + rng.normal(0, 0.1, shape).astype(np.float32)
    expected = structural_similarity(
        clean,
        np.clip(output, 0, 1),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1 if len(shape) == 3 else None,
    )
    assert ssim(output, clean) == pytest.approx(expected, abs=1e-7)
    assert ssim(output, clean) < 0.99


def test_ssim_of_an_image_smaller_than_its_window_is_not_a_number() -> None:
    image = np.zeros((10, 40, 3), np.float32)
    assert math.isnan(ssim(image, image))
