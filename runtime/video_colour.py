"""The Y, Cb and Cr samples of video as the RGB that the network takes, and what it changed brought back to them.

Only the change is brought back: a sample that the network leaves alone keeps its value, whatever matrix and range the
file has, and colours that RGB cannot hold are not lost. Samples of limited range keep their foot- and headroom, code 0
is 0 and the highest code is 1, so that noise below black and highlights above white are seen and not clipped. The
transfer curve stays as it is: of HDR video the network, which knows sRGB, sees the PQ or HLG codes.

Chroma samples are repeated to the size of the luma, and their change is the mean of what it is over the pixels that
share them. That is an exact inverse, which bilinear and bicubic enlarging lack: denoising 4:2:0 with the bundled model
at sigma 25 they were measured to lose 0.9 to 1.5 dB of luma and 0.2 to 1.1 dB of chroma against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
"""A plane of uint8 or uint16 codes, or float32 pictures of (H, W, 3) RGB or (H, W) gray in [0, 1]."""

_WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),  # BT.2020 of constant luminance, nearly
}
"""Weights of red and blue in luma, by the matrix numbers of ITU-T H.273."""


@dataclass(frozen=True)
class Coding:
    """What the samples of a frame mean.

    depth: bits of a sample. across, down: luma samples for one of chroma, along a row and along a column.
    full_range: black is code 0, not 16 of 255. matrix: the number in ITU-T H.273; where the file states none that is
    known here, BT.709 from 720 lines up and BT.601 below, as players guess.
    """

    depth: int
    across: int
    down: int
    full_range: bool
    matrix: int
    lines: int

    @property
    def highest(self) -> int:
        """The largest code."""
        return int(2**self.depth - 1)

    @cached_property
    def to_rgb(self) -> NDArray[np.float64]:
        """3x4: codes Y, Cb, Cr and 1 to R, G, B in [0, 1]."""
        red, blue = self._weights
        green = 1 - red - blue
        rgb = np.array(
            [
                [1, 0, 2 * (1 - red)],
                [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
                [1, 2 * (1 - blue), 0],
            ]
        )
        chroma = 1 if self.full_range else 219 / 224  # luma has 219 steps where chroma has 224
        scaled = rgb * [1, chroma, chroma] / self.highest
        return np.column_stack([scaled, scaled @ [0, -(2 ** (self.depth - 1)), -(2 ** (self.depth - 1))]])

    @cached_property
    def from_rgb(self) -> NDArray[np.float64]:
        """3x3: a change of R, G, B to that of the codes."""
        return np.asarray(np.linalg.inv(self.to_rgb[:, :3]), np.float64)

    @property
    def _weights(self) -> tuple[float, float]:
        return _WEIGHTS.get(self.matrix) or _WEIGHTS[1 if self.lines >= 720 else 6]


def to_rgb(planes: Sequence[Samples], coding: Coding) -> Samples:
    """The picture of planes Y, Cb, Cr, or of Y alone: float32 (H, W, 3) or (H, W), clipped to [0, 1]."""
    luma, *chroma = planes
    if not chroma:
        return np.divide(luma, coding.highest, dtype=np.float32)
    height, width = luma.shape
    full = [luma]
    for plane in chroma:
        size = plane.shape[1] * coding.across, plane.shape[0] * coding.down
        full.append(cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST)[:height, :width])
    rgb = cv2.transform(cv2.merge(full).astype(np.float32), coding.to_rgb)
    return np.clip(rgb, 0, 1, out=rgb)


def add_change(planes: Sequence[Samples], change: Samples, coding: Coding) -> None:
    """Add to the codes of `planes`, in place, a change of the picture that `to_rgb` gave; rounded and clipped."""
    if len(planes) == 1:
        _add(planes[0], change * np.float32(coding.highest), coding)
        return
    luma, *chroma = cv2.split(cv2.transform(change, coding.from_rgb))
    _add(planes[0], luma, coding)
    for plane, full in zip(planes[1:], chroma, strict=True):
        height, width = plane.shape[0] * coding.down, plane.shape[1] * coding.across
        missing = height - full.shape[0], width - full.shape[1]  # of the last samples, at odd sizes
        if any(missing):
            full = cv2.copyMakeBorder(full, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
        _add(plane, cv2.resize(full, plane.shape[::-1], interpolation=cv2.INTER_AREA), coding)


def _add(plane: Samples, change: Samples, coding: Coding) -> None:
    depth = cv2.CV_8U if plane.dtype == np.uint8 else cv2.CV_16U
    np.minimum(cv2.add(plane, change, dtype=depth), coding.highest, out=plane)  # cv2 rounds and clips to the type
