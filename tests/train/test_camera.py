"""Camera noise: what each of its steps does to the statistics, and that it is keyed as all noise is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.images import read_picture
from export.parity import ASSETS
from train import jpeg
from train.camera import Camera, _demosaic, _gamma, _linear, _mosaic, add_camera_noise, draw_camera
from train.config import CameraConfig

PLAIN = Camera(
    shot=0.0,
    read=1e-4,
    red_gain=1.0,
    green_gain=1.0,
    blue_gain=1.0,
    saturation=0.0,
    tone=False,
    luma_blur=0.0,
    chroma_blur=0.0,
    bayer=(0, 0),
    quality=100,
    origin=(0, 0),
    jpeg=True,
)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    pixels = read_picture(ASSETS / "astronaut_clean.png").pixels[:120, :200]
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255


def flat(*rgb: float) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 256, 256).contiguous()


Noise = Callable[[Tensor, Camera], Tensor]


@pytest.fixture
def linear_noise(monkeypatch: pytest.MonkeyPatch) -> Noise:
    """linear_noise(clean, camera): (3, H, W) noise in linear light, before the JPEG, which is tested by itself."""
    monkeypatch.setattr("train.jpeg.compress", lambda images, *_: images)
    return lambda clean, camera: (_linear(add_camera_noise(clean, [camera], [0])) - _linear(clean))[0]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_cameras_fill_their_ranges_and_shot_noise_is_even_in_its_logarithm() -> None:
    config = CameraConfig(share=1.0)
    cameras = [draw_camera(config, np.random.default_rng(i)) for i in range(2000)]
    for name in ("shot", "saturation", "luma_blur", "chroma_blur", "quality"):
        low, high = getattr(config, name)
        values = np.array([getattr(c, name) for c in cameras])
        assert low <= values.min() <= low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) <= values.max() <= high
    assert np.median([c.shot for c in cameras]) == pytest.approx(np.sqrt(config.shot[0] * config.shot[1]), rel=0.15)
    scatter = [np.log(c.read) - 2.18 * np.log(c.shot) - 1.20 for c in cameras]
    assert (np.mean(scatter), np.std(scatter)) == (pytest.approx(0, abs=0.02), pytest.approx(0.26, rel=0.05))
    assert {c.bayer for c in cameras} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {c.origin[0] for c in cameras} == {c.origin[1] for c in cameras} == set(range(16))
    assert np.mean([c.tone for c in cameras]) == pytest.approx(config.tone, abs=0.04)
    for share in (0.0, config.jpeg, 1.0):
        files = [draw_camera(replace(config, jpeg=share), np.random.default_rng(i)).jpeg for i in range(2000)]
        assert np.mean(files) == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)
    assert all(1.9 <= c.red_gain / c.green_gain <= 2.4 and 1.5 <= c.blue_gain / c.green_gain <= 1.9 for c in cameras)


@pytest.mark.parametrize("tone", [False, True])
def test_without_noise_the_photo_comes_back_as_a_fine_jpeg_of_it(photo: Tensor, tone: bool) -> None:
    camera = replace(
        PLAIN, read=0.0, red_gain=2.5, green_gain=1.3, blue_gain=2.0, saturation=0.8, tone=tone, chroma_blur=2.0
    )
    noisy = add_camera_noise(photo, [camera], [1])
    assert (noisy - photo).mul(255).abs().mean() < 1.2  # the subsampled chroma
    assert abs(float((noisy - photo).mean())) < 2e-4


@pytest.mark.parametrize("tone", [False, True])
def test_without_noise_and_jpeg_the_photo_comes_back(photo: Tensor, tone: bool) -> None:
    camera = replace(PLAIN, read=0.0, red_gain=2.5, green_gain=1.3, saturation=0.8, tone=tone, jpeg=False, quality=1)
    files = add_camera_noise(photo.repeat(2, 1, 1, 1), [camera, replace(camera, jpeg=True)], [1, 1])
    assert ((files[0] - photo[0]).abs() < 0.5 / 255).all()
    assert (files[1] - photo[0]).abs().mean() > 0.02


def test_the_weakest_noise_is_what_is_left_of_good_light() -> None:
    """Less than half an 8-bit level, so that networks learn to leave such photos as they are."""
    (shot, _), gray = CameraConfig().shot, flat(*(128 / 255,) * 3)
    weakest = replace(PLAIN, shot=shot, read=0.0, red_gain=2.0, blue_gain=1.7, jpeg=False)
    assert float((add_camera_noise(gray, [weakest], [0]) - gray).std()) < 0.5 / 255


def test_the_variance_is_a_line_in_the_light(linear_noise: Noise) -> None:
    camera = replace(PLAIN, shot=2e-3, read=1e-4)
    for level in (0.3, 0.5, 0.7):
        light = float(_linear(torch.tensor(level)))
        at_green = linear_noise(flat(level, level, level), camera)[1, 2:-2:2, 3:-2:2]  # as the sensor saw it
        assert float(at_green.var()) == pytest.approx(2e-3 * light + 1e-4, rel=0.08)


def test_gains_amplify_the_noise_of_their_channel(linear_noise: Noise) -> None:
    gray = flat(0.5, 0.5, 0.5)
    one = linear_noise(gray, PLAIN)
    other = linear_noise(gray, replace(PLAIN, red_gain=2.0))
    ratio = other.std((1, 2)) / one.std((1, 2))
    assert float(ratio[0]) == pytest.approx(1.6, abs=0.25)  # not 2: half of red's noise comes from green sites
    assert float(ratio[0]) > 1.3 * float(ratio[2])


def test_the_colour_matrix_mutes_the_scene_on_the_sensor_and_amplifies_the_chroma_noise(linear_noise: Noise) -> None:
    clean = flat(0.8, 0.4, 0.4)
    light = _linear(clean[0, :, 0, 0])
    noise = linear_noise(clean, replace(PLAIN, shot=2e-4, read=0.0, saturation=1.0))
    level = noise.mean(0)
    at_green = (level + (noise[1] - level) / 2)[2:-2:2, 3:-2:2]  # the matrix undone
    on_sensor = float(light.mean() + (light[1] - light.mean()) / 2)
    assert float(at_green.var()) == pytest.approx(2e-4 * on_sensor, rel=0.08)


def test_clipped_highlights_carry_no_noise(linear_noise: Noise) -> None:
    strong = replace(PLAIN, shot=1e-2, read=1e-3)
    assert not linear_noise(flat(1.0, 1.0, 1.0), strong).any()
    assert linear_noise(flat(0.9, 0.9, 0.9), strong).std() > 0.02


def test_towards_white_the_noise_fades_from_nine_tenths_of_its_light_on(linear_noise: Noise) -> None:
    def deviation(light: float) -> float:
        level = float(_gamma(torch.tensor(light)))
        return float(linear_noise(flat(level, level, level), replace(PLAIN, read=1e-5)).std())

    assert deviation(0.89) > 0.9 * deviation(0.85)
    assert 0.4 < deviation(0.95) / deviation(0.85) < 0.65


def test_noise_does_not_shift_the_mean_where_nothing_clips(linear_noise: Noise) -> None:
    noise = linear_noise(flat(0.5, 0.45, 0.55), replace(PLAIN, shot=2e-4, saturation=0.8, red_gain=2.0))
    assert float(noise.mean((1, 2)).abs().max()) < 3e-4


def test_a_mosaic_and_the_cameras_smoothing_correlate_the_noise(linear_noise: Noise) -> None:
    gray = flat(0.5, 0.5, 0.5)
    rough = linear_noise(gray, replace(PLAIN, read=1e-3))
    smooth = linear_noise(gray, replace(PLAIN, read=1e-3, luma_blur=0.8, chroma_blur=2.5))
    beside = [correlation(n[1][:, 1:], n[1][:, :-1]) for n in (rough, smooth)]
    channels = [correlation(n[0], n[1]) for n in (rough, smooth)]
    print(f"of neighbours {beside}, of red and green {channels}")
    assert -0.1 < beside[0] < 0.5 < beside[1]
    assert channels[1] > 0.6
    assert smooth.std() < 0.7 * rough.std()


def test_luma_and_chroma_are_smoothed_apart(linear_noise: Noise) -> None:
    gray = flat(0.5, 0.5, 0.5)
    sharp = linear_noise(gray, replace(PLAIN, read=1e-3))
    for blurs, luma_keeps, chroma_keeps in (((0.8, 0.0), False, True), ((0.0, 2.5), True, False)):
        noise = linear_noise(gray, replace(PLAIN, read=1e-3, luma_blur=blurs[0], chroma_blur=blurs[1]))
        weights = torch.tensor([0.2126, 0.7152, 0.0722])
        luma = [torch.einsum("c,chw->hw", weights, n).std() for n in (noise, sharp)]
        chroma = [(n[0] - n[2]).std() for n in (noise, sharp)]
        assert (float(luma[0] / luma[1]) > 0.85) == luma_keeps
        assert (float(chroma[0] / chroma[1]) > 0.85) == chroma_keeps


@pytest.mark.parametrize("bayer", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_demosaicing_gives_back_what_its_filters_can_hold(bayer: tuple[int, int]) -> None:
    """A plane in space whose channels differ by constants: exact for Malvar, He and Cutler's filters."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(26.0), indexing="ij")
    scene = torch.stack([y + 2 * x + offset for offset in (0.0, 7.0, -3.0)])[None]
    rows, columns = _mosaic(scene, [replace(PLAIN, bayer=bayer)])
    assert bool(rows[0, 0, 0, 0] & columns[0, 0, 0, 0]) == (bayer == (0, 0))
    channel = torch.where(rows & columns, 0, torch.where(~rows & ~columns, 2, 1))
    mosaic = scene.gather(1, channel.expand(1, 1, 20, 26))
    inner = slice(2, -2)
    found = _demosaic(mosaic, rows, columns)
    assert torch.allclose(found[..., inner, inner], scene[..., inner, inner], atol=1e-4)


def test_gamma_is_the_inverse_of_linear() -> None:
    levels = torch.linspace(0, 1, 256)
    assert torch.allclose(_gamma(_linear(levels)), levels, atol=1e-6)


def test_a_sample_is_the_same_in_every_batch_and_again(photo: Tensor) -> None:
    config = CameraConfig(share=1.0)
    cameras = [draw_camera(config, np.random.default_rng(i)) for i in range(5)]
    batch = torch.cat([photo] * 5)
    kept, state = batch.clone(), torch.get_rng_state()
    together = add_camera_noise(batch, cameras, range(5))
    assert torch.equal(add_camera_noise(batch, cameras, range(5)), together)
    for i in range(5):
        assert torch.equal(add_camera_noise(photo, [cameras[i]], [i])[0], together[i])
    assert torch.equal(batch, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(add_camera_noise(photo, [cameras[0]], [1])[0], together[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40), st.integers(3, 40))
def test_any_camera_on_any_image_gives_finite_8_bit_levels(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.choice([0, 1, 128, 254, 255], (1, 3, height, width)) / 255  # the ends of every curve
    image = torch.from_numpy(levels.astype(np.float32))
    noisy = add_camera_noise(image, [draw_camera(CameraConfig(share=1.0), rng)], [seed])
    assert noisy.shape == image.shape
    assert torch.equal(noisy, (noisy * 255).round() / 255)
    assert 0 <= noisy.min() <= noisy.max() <= 1


@pytest.mark.gpu
def test_a_gpus_noise_has_the_statistics_of_a_cpus(photo: Tensor) -> None:
    camera = replace(PLAIN, shot=2e-3, read=1e-4, chroma_blur=1.0, quality=80)
    noises = [(add_camera_noise(photo.to(device), [camera], [0]).cpu() - photo)[0] for device in ("cpu", "cuda")]
    assert float(noises[1].std()) == pytest.approx(float(noises[0].std()), rel=0.03)
    beside = [correlation(n[..., 1:], n[..., :-1]) for n in noises]
    assert beside[1] == pytest.approx(beside[0], abs=0.03)
    silent = replace(camera, shot=0.0, read=0.0)  # the same but for rounding: TF32 would move JPEG's coefficients
    quiet = [add_camera_noise(photo.to(device), [silent], [0]).cpu() for device in ("cpu", "cuda")]
    assert (quiet[0] - quiet[1]).abs().mean() < 2e-4


def test_shot_noise_is_of_the_light_on_the_sensor(linear_noise: Any) -> None:
    """Which a gain above 1 makes less, before it makes its noise more."""
    light = float(_linear(torch.tensor(0.5)))
    noise = linear_noise(flat(0.5, 0.5, 0.5), replace(PLAIN, shot=1e-3, read=0.0, green_gain=1.6))
    assert float(noise[1, 2:-2:2, 3:-2:2].var()) == pytest.approx(1e-3 * light * 1.6, rel=0.08)


@pytest.mark.parametrize(("quality", "origin"), [(30, (5, 3)), (80, (0, 12))])
def test_the_jpeg_is_the_cameras(photo: Any, quality: int, origin: tuple[int, int]) -> None:
    found = add_camera_noise(photo, [replace(PLAIN, read=0.0, quality=quality, origin=origin)], [0])
    y, x = origin
    assert (found - jpeg.compress(photo, [quality], [origin])).abs().mean() < 1e-4
    for other, place in ((quality + 15, origin), (quality, (y + 2, x)), (quality, (y, x + 2))):
        assert (found - jpeg.compress(photo, [other], [place])).abs().mean() > 1e-3
