"""Crops and their noise, which depend on seed, step and sample alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.train.test_data import noise
from train.camera import add_camera_noise
from train.config import CameraConfig, DataConfig, NoiseConfig
from train.data import Bank, Draw, Sampler
from train.noise import add_gaussian

Pixels = NDArray[Any]


def make_bank(*shapes: tuple[int, int]) -> Bank:
    full = tuple((*shape, 3) for shape in shapes)
    return Bank(tuple(map(str, full)), full, noise(sum(h * w * 3 for h, w, _ in full)))


@pytest.fixture
def sampler() -> Callable[..., Sampler]:
    def make(
        bank: Bank | None = None,
        batch: int = 4,
        seed: int = 0,
        crop: int = 16,
        camera_share: float = 0.0,
        pair_share: float = 0.5,
        gray: float = 0.0,
        **of_noise: Any,
    ) -> Sampler:
        settings = DataConfig(crop=crop, batch=batch, pair_share=pair_share, gray=gray)
        noise_, camera = NoiseConfig(**of_noise), CameraConfig(share=camera_share)
        return Sampler(bank or make_bank((20, 33), (16, 40)), settings, noise_, seed, camera)

    return make


def test_a_sample_depends_on_seed_step_and_number_alone(sampler: Callable[..., Sampler]) -> None:
    one, other = sampler(batch=2), sampler(batch=8)
    other.crops(5)
    assert one.crops(3)[0] == other.crops(3)[0][:2]
    assert [one.draw(3, i) for i in (1, 0)] == [other.draw(3, i) for i in (1, 0)]
    draws = {one.draw(step, i).noise_seed for step in range(20) for i in range(4)}
    assert len(draws) == 80
    assert sampler(seed=1).draw(3, 0) != one.draw(3, 0)


def test_draws_and_noise_never_change_or_runs_could_not_go_on(sampler: Callable[..., Sampler]) -> None:
    s = sampler()
    assert [s.draw(*at) for at in ((0, 0), (3, 1), (100_000, 3))] == [
        Draw(1, 0, 15, 4, sigma=3.073014295214602, noise_seed=152440531369162766),
        Draw(1, 0, 0, 4, sigma=10.928257436098704, noise_seed=5645376642035551439),
        Draw(1, 0, 7, 4, sigma=39.599906587124, noise_seed=830103223078759320),
    ]
    noisy, clean = s.batch(*s.crops(0))
    again = add_gaussian(
        clean, [s.draw(0, i).sigma for i in range(4)], [s.draw(0, i).noise_seed for i in range(4)], clip8=True
    )
    assert torch.equal(noisy, again)


def test_a_crop_is_the_images_region_it_says(sampler: Callable[..., Sampler]) -> None:
    s = sampler(batch=16)
    draws, crops = s.crops(0)
    assert crops.shape == (16, 16, 16, 3)
    for d, crop in zip(draws, crops.numpy(), strict=True):
        assert np.array_equal(crop, s.bank[d.image][d.top :, d.left :][:16, :16])
    assert {d.image for d in draws} == {0, 1}


def test_crops_reach_every_border_and_sigmas_the_whole_range(sampler: Callable[..., Sampler]) -> None:
    s = sampler(make_bank((18, 20)), sigma_min=10.0, sigma_max=20.0)
    draws = [s.draw(step, 0) for step in range(400)]
    assert {(d.top, d.left) for d in draws} == {(t, left) for t in range(3) for left in range(5)}
    sigmas = [d.sigma for d in draws]
    assert 10 <= min(sigmas) < 10.2
    assert 19.8 < max(sigmas) <= 20
    fixed = sampler(sigma_min=50.0, sigma_max=50.0)
    assert {fixed.draw(step, 0).sigma for step in range(9)} == {50.0}


def test_an_image_no_larger_than_the_crop_is_all_of_it(sampler: Callable[..., Sampler]) -> None:
    s = sampler(make_bank((16, 16)))
    assert {(s.draw(step, 0).top, s.draw(step, 0).left) for step in range(30)} == {(0, 0)}


def test_what_is_smaller_than_a_crop_is_extended_by_reflection(sampler: Callable[..., Sampler]) -> None:
    s = sampler(make_bank((8, 40), (9, 9)), batch=8)
    draws, crops = s.crops(0)
    assert {d.image for d in draws} == {0, 1}
    for d, crop in zip(draws, crops.numpy(), strict=True):
        region = s.bank[d.image][d.top :, d.left :][:16, :16]
        missing = [(0, 16 - side) for side in region.shape[:2]]
        assert d.top == 0
        assert np.array_equal(crop, np.pad(region, [*missing, (0, 0)], mode="reflect"))


def test_images_are_drawn_in_proportion_to_their_size(sampler: Callable[..., Sampler]) -> None:
    s = sampler(make_bank((16, 16), (48, 48), (16, 96)))
    counts = Counter(s.draw(step, 0).image for step in range(4000))
    shares = [counts[i] / 4000 for i in range(3)]
    assert shares == pytest.approx([1 / 16, 9 / 16, 6 / 16], abs=0.03)


def test_the_proportion_is_exact_to_the_pixel(sampler: Callable[..., Sampler]) -> None:
    s = sampler(make_bank((1, 1), (1, 2)))
    counts = Counter(s.draw(step, 0).image for step in range(3000))
    assert counts[0] / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_all_eight_transforms_occur_and_differ(sampler: Callable[..., Sampler]) -> None:
    s = sampler(make_bank((16, 16)), clip8=False)
    assert {s.draw(step, 0).transform for step in range(200)} == set(range(8))
    crop = torch.from_numpy(s.bank[0].copy())
    draws = [Draw(0, 0, 0, transform, sigma=0.0, noise_seed=1) for transform in range(8)]
    noisy, clean = s.batch(draws, crop.expand(8, 16, 16, 3))
    assert torch.equal(noisy, clean)
    assert (clean.shape, clean.dtype) == ((8, 3, 16, 16), torch.float32)
    image = s.bank[0].transpose(2, 0, 1)
    turned = [np.rot90(image, turns, (1, 2)) for turns in range(4)]
    expected = {np.rint(a).astype(np.uint8).tobytes() for t in turned for a in (t, t[:, :, ::-1])}
    assert {(c * 255).round().byte().numpy().tobytes() for c in clean} == expected
    assert len(expected) == 8


def test_batches_are_noisy_as_the_configuration_says(sampler: Callable[..., Sampler]) -> None:
    for clip8 in (True, False):
        s = sampler(make_bank((64, 64)), crop=64, batch=2, sigma_min=30.0, sigma_max=30.0, clip8=clip8)
        noisy, clean = s.batch(*s.crops(0))
        assert torch.equal(noisy * 255, (noisy * 255).round()) == clip8
        if not clip8:
            assert ((noisy - clean) * 255).std().item() == pytest.approx(30, rel=0.03)


def mixed_bank() -> Bank:
    """Two photos, one four times as large as the other, and a pair larger than both."""
    shapes = ((16, 16, 3), (32, 32, 3), (48, 48, 6))
    return Bank(("a", "b", "p"), shapes, noise(sum(h * w * c for h, w, c in shapes), seed=11))


def test_pairs_keep_their_own_noise_and_photos_get_some(sampler: Callable[..., Sampler]) -> None:
    s = sampler(mixed_bank(), batch=24, sigma_min=0.0, sigma_max=0.0, camera_share=0.5)
    draws, crops = s.crops(0)
    noisy, clean = s.batch(draws, crops)
    assert (noisy.shape, clean.shape) == ((24, 3, 16, 16), (24, 3, 16, 16))
    assert {(d.image == 2, d.camera is not None) for d in draws} == {(True, False), (False, True), (False, False)}
    for i, d in enumerate(draws):
        region = torch.from_numpy(s.bank[d.image][d.top :, d.left :][:16, :16].copy()).permute(2, 0, 1)
        turned = torch.rot90(region, d.transform % 4, (1, 2))
        turned = (turned.flip(2) if d.transform >= 4 else turned).float() / 255
        assert torch.equal(clean[i], turned[-3:])
        if d.image == 2:
            assert torch.equal(noisy[i], turned[:3])
        elif d.camera is None:
            assert torch.equal(noisy[i], clean[i])  # sigma 0
        else:
            assert torch.equal(noisy[i], add_camera_noise(clean[i : i + 1], [d.camera], [d.noise_seed])[0])
            assert not torch.equal(noisy[i], clean[i])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_pairs_take_their_share_whatever_their_size(sampler: Callable[..., Sampler], share: float) -> None:
    s = sampler(mixed_bank(), pair_share=share)
    counts = Counter(s.draw(step, 0).image for step in range(4000))
    shares = [counts[i] / 4000 for i in range(3)]
    assert shares == pytest.approx([(1 - share) / 5, (1 - share) * 4 / 5, share], abs=0.03)


def test_gray_samples_are_the_coloured_ones_without_their_colour(sampler: Callable[..., Sampler]) -> None:
    """Pairs, camera noise and white noise alike; the others, and all that chance decides, stay as they are."""
    coloured, some = (sampler(mixed_bank(), batch=48, camera_share=0.5, gray=share) for share in (0.0, 0.4))
    draws, crops = some.crops(0)
    assert [replace(d, gray=False) for d in draws] == coloured.crops(0)[0]
    kinds = Counter((d.image == 2, d.camera is not None, d.gray) for d in draws)
    assert len(kinds) == 6
    assert 0.25 < sum(d.gray for d in draws) / 48 < 0.55
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for found, colour in zip(some.batch(draws, crops), coloured.batch(*coloured.crops(0)), strict=True):
        for image, before, d in zip(found, colour, draws, strict=True):
            expected = (luma * before).sum(0).expand(3, -1, -1) if d.gray else before
            assert torch.allclose(image, expected, atol=1e-6)


def test_pairs_alone_need_no_share(sampler: Callable[..., Sampler]) -> None:
    bank = Bank(("p",), ((16, 24, 2),), noise(16 * 24 * 2))
    s = sampler(bank, pair_share=0.0, camera_share=1.0)
    draws, crops = s.crops(0)
    assert {d.camera for d in draws} == {None}
    noisy, clean = s.batch(draws, crops)
    assert clean.shape == (4, 1, 16, 16)
    assert not torch.equal(noisy, clean)
