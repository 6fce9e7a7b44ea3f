"""Training's noise and the protocol's."""

import hashlib

import numpy as np
import pytest
import torch

from train.noise import add_gaussian, protocol_noise


def test_the_noise_has_the_strength_that_each_sample_asks_for() -> None:
    clean = torch.full((4, 3, 128, 128), 0.5)
    sigmas = [0.0, 5.0, 25.0, 75.0]
    noise = (add_gaussian(clean, sigmas, [1, 2, 3, 4], clip8=False) - clean) * 255
    assert not noise[0].any()
    for sample, sigma in zip(noise[1:], sigmas[1:], strict=True):
        assert sample.std().item() == pytest.approx(sigma, rel=0.015)
        assert abs(sample.mean().item()) < 0.02 * sigma
        kurtosis = (sample / sigma).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, abs=0.15)  # Gaussian, not uniform


def test_the_noise_is_white_across_places_and_channels() -> None:
    noise = add_gaussian(torch.zeros(1, 3, 256, 256), [255.0], [0], clip8=False)[0]
    neighbours = ((noise[:, 1:] * noise[:, :-1]), (noise[:, :, 1:] * noise[:, :, :-1]), (noise[0] * noise[1]))
    assert all(abs(product.mean().item()) < 0.01 for product in neighbours)


def test_clip8_gives_whole_8_bit_levels_and_clips() -> None:
    clean = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    noisy = add_gaussian(clean, [50.0, 75.0], [5, 6], clip8=True)
    levels = noisy * 255
    assert torch.equal(noisy, levels.round() / 255)
    assert noisy.min() == 0
    assert noisy.max() == 1
    plain = add_gaussian(clean, [50.0, 75.0], [5, 6], clip8=False)
    assert (noisy - plain.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert plain.min() < 0
    assert plain.max() > 1


def test_a_sample_is_the_same_in_every_batch() -> None:
    clean = torch.rand(3, 3, 16, 16)
    together = add_gaussian(clean, [10, 20, 30], [7, 8, 9], clip8=False)
    for i in range(3):
        alone = add_gaussian(clean[i : i + 1], [10 * (i + 1)], [7 + i], clip8=False)
        assert torch.equal(alone[0], together[i])
    other_layout = add_gaussian(
        clean.contiguous(memory_format=torch.channels_last), [10, 20, 30], [7, 8, 9], clip8=False
    )
    assert torch.equal(other_layout, together)


def test_other_seeds_give_other_noise_and_the_clean_batch_is_left_alone() -> None:
    clean = torch.rand(2, 3, 16, 16)
    kept, state = clean.clone(), torch.get_rng_state()
    noisy = add_gaussian(clean.expand(2, 3, 16, 16), [20, 20], [1, 2**63 - 1], clip8=True)
    assert not torch.equal(noisy[0] - clean[0], noisy[1] - clean[1])
    assert torch.equal(clean, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("sigma", "index", "clip8", "values", "mean"),
    [  # from the evaluation protocol's own script
        (50, 0, False, [-0.019555669, -0.11550975, 0.85806525], 0.5342039172227184),
        (50, 0, True, [0.0, 0.0, 0.85882354], 0.5332026245693365),
        (25, 7, False, [0.069301747, 0.40255907, 1.149568], 0.5247432032289604),
        (25, 7, True, [0.070588239, 0.40392157, 1.0], 0.521830074613293),
        (7.5, 3, False, [0.0013830784, 0.31314671, 1.0202483], 0.4917405386940421),
        (7.5, 3, True, [0.0, 0.3137255, 1.0], 0.49130719983950255),
    ],
)
def test_the_protocols_noise_is_the_protocols(
    sigma: float, index: int, clip8: bool, values: list[float], mean: float
) -> None:
    clean = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)
    noisy = protocol_noise(clean, sigma, index, clip8=clip8)
    assert noisy.dtype == np.float32
    np.testing.assert_allclose(noisy.ravel()[[0, 17, 59]], values, rtol=1e-7)
    assert np.mean(noisy, dtype=np.float64) == pytest.approx(mean, rel=1e-9)


def test_the_protocols_noise_of_a_gray_image_has_the_images_shape() -> None:
    clean = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)[..., 0]
    noisy = protocol_noise(clean, 50, 0, clip8=False)
    assert noisy.shape == (4, 5)
    np.testing.assert_allclose(noisy.ravel()[[0, 19]], [-0.01955567, 0.83501244], rtol=1e-6)


def test_no_two_images_of_a_test_set_get_the_same_noise() -> None:
    clean = np.zeros((8, 8), np.float32)
    seen = {hashlib.sha256(protocol_noise(clean, 25, i, clip8=False).tobytes()).digest() for i in range(20)}
    assert len(seen) == 20
