"""The noisy images that a run's held-out examples are validated on, the same at every step."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from train.camera import photographed
from train.config import TrainConfig
from train.data import Bank
from train.noise import protocol_noise

Noise = float | Literal["pairs", "camera"]
"""White noise of a sigma, the noise that pairs have, or that of cameras."""


def validation_noises(bank: Bank, config: TrainConfig) -> list[Noise]:
    """What is validated: pairs where the bank holds any, or else each kind of noise that training adds."""
    if any(bank.paired(index) for index in range(len(bank))):
        return ["pairs"]
    noises: list[Noise] = [*config.run.validation_sigmas] if config.camera.share < 1 else []
    return [*noises, "camera"] if config.camera.share else noises


def noise_name(noise: Noise) -> str:
    """Short, for the log."""
    return f"sigma{noise:g}" if isinstance(noise, float) else noise


def held_out(
    bank: Bank, index: int, noise: Noise, config: TrainConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(noisy, clean), each (H, W, C) float32 in [0, 1], of image `index` of the bank, cropped to the centre."""
    image, size = bank[index], config.run.validation_crop
    if size:
        top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
        image = image[top : top + size, left : left + size]
    scaled = image.astype(np.float32) / np.float32(255)
    if bank.paired(index):
        noisy, clean = np.split(scaled, 2, axis=2)
        return noisy, clean
    if noise == "camera":
        return photographed(scaled, config.camera, index), scaled
    assert isinstance(noise, float)
    return protocol_noise(scaled, noise, index, clip8=config.noise.clip8), scaled
