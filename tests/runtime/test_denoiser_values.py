"""Samples in and out of `Denoiser`: rounding, gray, strength, layouts, and what is refused."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import InputError, ModelError
from runtime import Denoiser
from runtime.engines.base import Images
from tests.runtime.test_denoiser import Stub, noise


class Fixed(Stub):
    """Gives the same value everywhere; channel c has c times `step` more."""

    def __init__(self, value: float, step: float = 0.0) -> None:
        super().__init__()
        self.value, self.step = value, step

    def _run(self, images: Images) -> Images:
        steps = self.step * np.arange(3, dtype=np.float32)[:, None, None]
        return np.broadcast_to(np.float32(self.value) + steps, images.shape).astype(np.float32)


@pytest.mark.parametrize(("value", "expected"), [(100.4, 100), (100.6, 101), (-3.0, 0), (300.0, 255)])
def test_samples_are_rounded_and_clipped(value: float, expected: int) -> None:
    assert (Denoiser(Fixed(value / 255)).denoise(np.zeros((9, 9, 3), np.uint8)) == expected).all()
    assert (Denoiser(Fixed(value / 65535)).denoise(np.zeros((9, 9), np.uint16)) == max(0, round(value))).all()


def test_gray_is_the_mean_of_a_colour_models_channels() -> None:
    assert (Denoiser(Fixed(10 / 255, step=10 / 255)).denoise(np.zeros((9, 9), np.uint8)) == 20).all()


@pytest.mark.parametrize(("strength", "expected"), [(0.0, 100), (0.25, 125), (1.0, 200)])
def test_strength_blends_with_the_input(strength: float, expected: int) -> None:
    image = np.full((9, 9, 3), 100, np.uint8)
    assert (Denoiser(Fixed(200 / 255)).denoise(image, strength) == expected).all()


def test_what_the_network_gives_beyond_white_counts_in_a_blend() -> None:
    image = np.full((9, 9, 3), 100, np.uint8)
    assert (Denoiser(Fixed(300 / 255)).denoise(image, 0.5) == 200).all()


@pytest.mark.parametrize("kind", [">u2", "<u2", ">f4", "<f8"])
def test_arrays_of_any_byte_order(kind: str) -> None:
    """As FITS and some TIFF readers give them."""
    image = (noise((9, 9, 3)) / 255).astype(kind) if "f" in kind else noise((9, 9, 3)).astype(kind)
    result = Denoiser(Stub()).denoise(image)
    assert result.dtype == np.dtype(kind).newbyteorder("=")
    np.testing.assert_allclose(result, image, atol=1e-6)


def test_arrays_of_any_layout() -> None:
    image = noise((40, 60, 3))[::-1, ::2, ::-1]
    image.flags.writeable = False
    result = Denoiser(Stub()).denoise(image)
    np.testing.assert_array_equal(result, image)
    assert result.flags.c_contiguous
    assert result.flags.writeable


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([[0, 1], [2, 3]], "expected a NumPy array, found list"),
        (np.ma.masked_array(np.zeros((4, 4), np.uint8)), "expected a NumPy array, found MaskedArray"),
        (np.zeros((4, 4), np.int32), "found int32"),
        (np.zeros((4, 4), np.complex64), "found complex64"),
        (np.zeros((4, 4, 4), np.uint8), r"found \(4, 4, 4\)"),
        (np.zeros(4, np.uint8), r"found \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4), -np.inf, np.float16), "infinity"),
        (np.full((4, 4), 255, np.float32), "divide by 255"),
        (np.full((4, 4), -255, np.float32), "found 255: divide by 255"),
    ],
)
def test_arrays_that_are_refused(image: NDArray[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Denoiser(Stub()).denoise(image)


def test_colour_on_a_gray_model_is_refused() -> None:
    with pytest.raises(InputError, match="model is for gray"):
        Denoiser(Stub(channels=1)).denoise(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("tile", [-8, 56, 100])
def test_sizes_that_are_refused(tile: int) -> None:
    with pytest.raises(InputError, match=f"found {tile}"):
        Denoiser(Stub(), tile=tile)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "1", None])
def test_strengths_that_are_refused(strength: Any) -> None:
    with pytest.raises(InputError, match="strength"):
        Denoiser(Stub()).denoise(np.zeros((8, 8), np.uint8), strength)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_sample_that_is_not_finite_is_told(value: float) -> None:
    class Overflows(Stub):
        def _run(self, images: Images) -> Images:
            result = images.copy()
            result[-1, -1, 3, 5] = value
            return result

    for shape in ((8, 8), (8, 8, 3)):
        with pytest.raises(ModelError, match="not finite"):
            Denoiser(Overflows()).denoise(np.zeros(shape, np.uint8))
    image = np.zeros((8, 8, 3), np.float32)
    image[3, 5, 2] = value
    with pytest.raises(InputError, match="found NaN or infinity"):
        Denoiser(Stub()).denoise(image)
