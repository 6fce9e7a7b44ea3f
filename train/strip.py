"""A comparison strip, as papers have them: the whole picture with boxes, and beside it what each method makes of them.

The crops of all methods are magnified by the same whole number without smoothing, so that a pixel stays a square.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

Pixels = NDArray[np.uint8]

COLOURS = ((255, 196, 0), (0, 184, 255), (255, 96, 160), (110, 220, 90))
"""Of the boxes and of the crops' frames: amber, blue, pink, green."""
FRAME = 3
GAP = 8
"""Between two frames."""
MOST_WIDTH = 8192
"""Of the whole picture beside the crops."""
MARGIN = 14
CAPTION = 66
"""Height of the two lines under each column."""
TITLE, SUBTITLE = 23, 20
"""Heights of the letters in pixels of the strip, which pages show at about half its size."""


@dataclass(frozen=True)
class Crop:
    """A square of the picture: its left and upper edge and its side, in pixels."""

    x: int
    y: int
    side: int

    def of(self, picture: Pixels) -> Pixels:
        """(side, side, 3) of (H, W, 3)."""
        return picture[self.y : self.y + self.side, self.x : self.x + self.side]


@dataclass(frozen=True)
class Panel:
    """A method's picture (H, W, 3) with the two lines under it."""

    picture: Pixels
    title: str
    subtitle: str = ""


def compose(whole: Panel, panels: Sequence[Panel], crops: Sequence[Crop], zoom: int) -> Pixels:
    """The strip, (H, W, 3): `whole` with its boxes on the left, then a column for each panel, a row for each crop.

    The crops have one side and lie within pictures of one size; `len(COLOURS)` of them at most. Raises what
    `overview_size` raises.
    """
    side = crops[0].side * zoom + 2 * FRAME
    width, height = overview_size(whole.picture.shape, crops, zoom)
    scale = height / whole.picture.shape[0]
    lefts = [MARGIN + width + GAP + i * (side + GAP) for i in range(len(panels))]
    canvas = np.full((MARGIN + height + CAPTION, lefts[-1] + side + MARGIN, 3), 255, np.uint8)

    overview = _resized(whole.picture, width, height)
    for crop, colour in zip(crops, COLOURS, strict=False):
        ends = ((crop.x, crop.y), (crop.x + crop.side - 1, crop.y + crop.side - 1))
        first, last = ((round(x * scale), round(y * scale)) for x, y in ends)
        for shade, thickness in (((255, 255, 255), 5), (colour, 3)):  # a white rim, to be seen on any picture
            cv2.rectangle(overview, first, last, shade, thickness)
    canvas[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = overview

    for left, panel in zip(lefts, panels, strict=True):
        for row, (crop, colour) in enumerate(zip(crops, COLOURS, strict=False)):
            top = MARGIN + row * (side + GAP)
            canvas[top : top + side, left : left + side] = colour
            magnified = crop.of(panel.picture).repeat(zoom, axis=0).repeat(zoom, axis=1)
            canvas[top + FRAME : top + side - FRAME, left + FRAME : left + side - FRAME] = magnified
    columns = [(MARGIN + width / 2, whole), *((left + side / 2, p) for left, p in zip(lefts, panels, strict=True))]
    return _captioned(canvas, [(centre, panel.title, panel.subtitle) for centre, panel in columns])


def overview_size(shape: tuple[int, ...], crops: Sequence[Crop], zoom: int) -> tuple[int, int]:
    """Width and height of the whole picture, of shape (H, W, 3), beside the magnified crops.

    Raises InputError where it would be wider than MOST_WIDTH.
    """
    height = len(crops) * (crops[0].side * zoom + 2 * FRAME) + (len(crops) - 1) * GAP
    width = max(1, round(shape[1] * height / shape[0]))
    if width > MOST_WIDTH:
        raise InputError(
            f"expected a photo of at most {MOST_WIDTH} pixels' width where it is as high as the magnified squares, "
            f"found {width}: take a lower --zoom, fewer squares, or a part of the photo"
        )
    return width, height


def _resized(picture: Pixels, width: int, height: int) -> Pixels:
    if picture.shape[:2] == (height, width):
        return picture.copy()
    shrinks = picture.shape[0] >= height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def _captioned(canvas: Pixels, captions: Sequence[tuple[float, str, str]]) -> Pixels:
    """The canvas with (centre, title, subtitle) below it: letters by matplotlib, whose font is the same everywhere."""
    from matplotlib.figure import Figure

    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for centre, title, subtitle in captions:
        for text, size, weight, up in ((title, TITLE, "bold", CAPTION - 32), (subtitle, SUBTITLE, "normal", 11)):
            x, y = centre / width, up / height
            figure.text(x, y, text, ha="center", va="baseline", fontsize=size * 0.72, weight=weight, parse_math=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="rgba")
    letters = np.frombuffer(drawn.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]
    captioned: Pixels = np.minimum(canvas, letters)
    return captioned
