"""The noise of a camera on clean photos: Poisson-Gaussian in linear light, demosaiced, developed, compressed.

The photo is taken back to linear light on the sensor: inverse tone curve and sRGB gamma, inverse colour matrix,
inverse white balance. There each pixel of the Bayer mosaic gets noise whose variance is a line in its light (Foi et
al., Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data, TIP 2008). The way back to an
8-bit photo is linear up to the gamma, so that only the noise has to be demosaiced, white-balanced, colour-corrected
and smoothed: the scene itself stays as sharp as the clean photo, which is the target. Most photos are JPEG files then.
Ranges of the parameters and their sources: `train.config.CameraConfig`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from train import jpeg
from train.config import CameraConfig
from train.noise import normal_like

READ_LINE = (2.18, 1.20, 0.26)
"""log(read) = 2.18 log(shot) + 1.20, give or take a standard deviation of 0.26, fits the cameras of DND (Brooks et
al., Unprocessing images for learned raw denoising, CVPR 2019, section 3.1 and their code)."""
BLUR_RADIUS = 6
"""Of the smoothing kernels, in pixels."""
LUMA = (0.2126, 0.7152, 0.0722)
"""Of linear sRGB."""


@dataclass(frozen=True)
class Camera:
    """All that chance decides about one photo's camera; its noise comes from a seed of its own."""

    shot: float  # variance of the noise per unit of linear light, in which white is 1
    read: float  # variance in the dark
    red_gain: float
    green_gain: float
    blue_gain: float
    saturation: float  # of the colour matrix (1 + s) I - s/3
    tone: bool  # whether the photo has an S-shaped tone curve
    luma_blur: float  # standard deviation in pixels
    chroma_blur: float
    bayer: tuple[int, int]  # row and column, 0 or 1, of the photo's first pixel in the mosaic; red is at 0, 0
    quality: int  # of the JPEG file
    origin: tuple[int, int]  # of the crop in the JPEG's grid
    jpeg: bool  # whether the photo is a JPEG file at all


def draw_camera(config: CameraConfig, rng: np.random.Generator) -> Camera:
    """A camera with each parameter in its range: `shot` evenly in its logarithm, the others evenly."""

    def between(limits: tuple[float, ...]) -> float:
        return rng.uniform(limits[0], limits[1])

    slope, level, scatter = READ_LINE
    log_shot = between(tuple(map(math.log, config.shot)))
    exposure = between(config.exposure)
    return Camera(
        shot=math.exp(log_shot),
        read=math.exp(slope * log_shot + level + scatter * rng.standard_normal()),
        red_gain=exposure * between(config.red_gain),
        green_gain=exposure,
        blue_gain=exposure * between(config.blue_gain),
        saturation=between(config.saturation),
        tone=bool(rng.random() < config.tone),
        luma_blur=between(config.luma_blur),
        chroma_blur=between(config.chroma_blur),
        bayer=(int(rng.integers(2)), int(rng.integers(2))),
        quality=int(rng.integers(config.quality[0], config.quality[1] + 1)),
        origin=(int(rng.integers(jpeg.MCU)), int(rng.integers(jpeg.MCU))),
        jpeg=bool(rng.random() < config.jpeg),
    )


def photographed(clean: NDArray[np.float32], config: CameraConfig, seed: int) -> NDArray[np.float32]:
    """The noisy photo that a camera drawn by `seed` takes of clean (H, W, 3) sRGB in [0, 1]."""
    camera = draw_camera(config, np.random.default_rng(seed))
    batch = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)[None]))
    return add_camera_noise(batch, [camera], [seed])[0].numpy().transpose(1, 2, 0)


def add_camera_noise(clean: Tensor, cameras: Sequence[Camera], seeds: Sequence[int]) -> Tensor:
    """Noisy photos of clean (N, 3, H, W) sRGB in [0, 1], as whole 8-bit levels in [0, 1].

    Sample i depends on cameras[i] and seeds[i] alone, whatever batch it stands in; CPU and CUDA draw different noise
    from one seed. Sides of at least 3 pixels, for the demosaicing.
    """
    numbers = torch.tensor(
        [
            (
                *(c.shot, c.read, c.saturation, c.tone, c.luma_blur, c.chroma_blur, c.jpeg),
                *(c.red_gain, c.green_gain, c.blue_gain),
            )
            for c in cameras
        ],
        device=clean.device,
    )[:, :, None, None]
    shot, read, saturation, tone, luma_blur, chroma_blur, lossy = numbers[:, :7].split(1, dim=1)
    gains, colourful = numbers[:, 7:], 1 + saturation

    light = _linear(torch.where(tone > 0, _inverse_tone(clean), clean))
    gray = light.mean(1, keepdim=True)
    sensor = (gray + (light - gray) / colourful) / gains
    # What is white was too bright for the sensor: by how much is not known, but its noise was clipped away.
    headroom = ((1 - gray) * 10).clamp(0, 1)
    amplitude = (shot * sensor.clamp_min(0) + read).sqrt() * gains * headroom
    rows, columns = _mosaic(clean, cameras)
    red_or_blue = torch.where(rows, amplitude[:, :1], amplitude[:, 2:])
    mosaic = torch.where(rows == columns, red_or_blue, amplitude[:, 1:2])
    noise = _demosaic(mosaic * normal_like(mosaic, seeds), rows, columns)
    level = noise.mean(1, keepdim=True)
    noise = _smooth(level + (noise - level) * colourful, luma_blur, chroma_blur)

    noisy = _gamma((light + noise).clamp_(0, 1))
    noisy = torch.where(tone > 0, noisy * noisy * (3 - 2 * noisy), noisy)
    files = jpeg.compress(noisy, [c.quality for c in cameras], [c.origin for c in cameras])
    return torch.where(lossy > 0, files, noisy.mul(255).round_().div_(255))


def _linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _gamma(light: Tensor) -> Tensor:
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def _inverse_tone(image: Tensor) -> Tensor:
    """Inverse of the curve 3 x^2 - 2 x^3."""
    return 0.5 - torch.sin(torch.asin(1 - 2 * image) / 3)


def _mosaic(images: Tensor, cameras: Sequence[Camera]) -> tuple[Tensor, Tensor]:
    """The Bayer mosaic's rows (N, 1, H, 1) and columns (N, 1, 1, W) with red pixels; blue ones are in the others."""
    height, width = images.shape[2:]
    first = torch.tensor([c.bayer for c in cameras], device=images.device)[:, :, None, None]
    rows = torch.arange(height, device=images.device)[:, None] + first[:, :1]
    columns = torch.arange(width, device=images.device) + first[:, 1:]
    return rows % 2 == 0, columns % 2 == 0


def _demosaic(mosaic: Tensor, red_rows: Tensor, red_columns: Tensor) -> Tensor:
    """(N, 3, H, W) of a mosaic (N, 1, H, W), by the linear 5x5 filters of Malvar, He and Cutler (ICASSP 2004).

    Sums of shifted images rather than a convolution: the same in every batch, and no TF32 on a GPU.
    """
    edged = F.pad(mosaic, (2, 2, 2, 2), mode="reflect")  # which keeps the mosaic's pattern
    height, width = mosaic.shape[2:]

    def at(down: int, right: int) -> Tensor:
        return edged[:, :, 2 + down : 2 + down + height, 2 + right : 2 + right + width]

    across, far_across = at(0, -1) + at(0, 1), at(0, -2) + at(0, 2)
    along, far_along = at(-1, 0) + at(1, 0), at(-2, 0) + at(2, 0)
    diagonal = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    green = (4 * mosaic + 2 * (across + along) - far_across - far_along) / 8
    from_row = (5 * mosaic + 4 * across - far_across - diagonal + far_along / 2) / 8
    from_column = (5 * mosaic + 4 * along - far_along - diagonal + far_across / 2) / 8
    from_corners = (6 * mosaic + 2 * diagonal - 1.5 * (far_across + far_along)) / 8
    red = torch.where(
        red_rows, torch.where(red_columns, mosaic, from_row), torch.where(red_columns, from_column, from_corners)
    )
    blue = torch.where(
        red_rows, torch.where(red_columns, from_corners, from_column), torch.where(red_columns, from_row, mosaic)
    )
    return torch.cat([red, torch.where(red_rows == red_columns, green, mosaic), blue], 1)


def _smooth(noise: Tensor, luma_blur: Tensor, chroma_blur: Tensor) -> Tensor:
    """What noise reduction in the camera leaves of (N, 3, H, W): Gaussians of two widths over luma and chroma."""
    luma = LUMA[0] * noise[:, 0:1] + LUMA[1] * noise[:, 1:2] + LUMA[2] * noise[:, 2:3]
    planes = torch.cat([luma, noise[:, 0:1] - luma, noise[:, 2:3] - luma], 1)
    width = torch.cat([luma_blur, chroma_blur, chroma_blur], 1).clamp_min(1e-3)
    kernel = torch.exp(-0.5 * (torch.arange(BLUR_RADIUS + 1, device=noise.device).view(-1, 1, 1, 1, 1) / width) ** 2)
    kernel /= kernel[0] + 2 * kernel[1:].sum(0)
    r = BLUR_RADIUS
    for dimension, padding in ((2, (0, 0, r, r)), (3, (r, r, 0, 0))):
        edged, size = F.pad(planes, padding, mode="replicate"), planes.shape[dimension]
        planes = kernel[0] * planes
        for shift in range(1, r + 1):
            pair = edged.narrow(dimension, r - shift, size) + edged.narrow(dimension, r + shift, size)
            planes.addcmul_(kernel[shift], pair)
    luma, red, blue = planes[:, :1], planes[:, :1] + planes[:, 1:2], planes[:, :1] + planes[:, 2:]
    return torch.cat([red, (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1], blue], 1)
