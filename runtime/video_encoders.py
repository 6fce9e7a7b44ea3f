"""Which encoder writes a video, in which samples and at which quality. Needs PyAV."""

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import av
from av.sidedata.sidedata import Type

from common.errors import DependencyError


@dataclass(frozen=True)
class Encoder:
    """An encoder of FFmpeg.

    codec: what it writes. option: the one that takes the quality, from `best` at 100 to `worst` at 0; "" where it has
    none. whole_chroma: widths and heights are multiples of what chroma samples cover.
    """

    codec: str
    option: str = "crf"
    best: float = 14
    worst: float = 51
    options: dict[str, str] = field(default_factory=dict)
    whole_chroma: bool = False


ENCODERS = {
    "libx264": Encoder("h264", whole_chroma=True),
    "libx265": Encoder("hevc", best=16, options={"a53cc": "1", "x265-params": "log-level=none"}, whole_chroma=True),
    "libvpx-vp9": Encoder("vp9", best=12, worst=63, options={"deadline": "good", "cpu-used": "2", "row-mt": "1"}),
    "libsvtav1": Encoder("av1", best=12, worst=63, options={"preset": "6"}),
    "ffv1": Encoder("ffv1", option="", options={"level": "3", "slicecrc": "1"}),
    "prores_ks": Encoder("prores", option=""),
}

CONTAINERS = {
    ".m4v": ("mp4", ("libx264", "libx265", "libsvtav1", "libvpx-vp9")),
    ".mkv": ("matroska", tuple(ENCODERS)),
    ".mov": ("mov", ("libx264", "libx265", "prores_ks")),
    ".mp4": ("mp4", ("libx264", "libx265", "libsvtav1", "libvpx-vp9")),
    ".webm": ("webm", ("libvpx-vp9", "libsvtav1")),
}
"""FFmpeg's name for the container of a suffix, and the encoders that write it, the first choice first."""


@dataclass(frozen=True)
class Sampling:
    """How a pixel format samples a picture: bits, and luma samples for one of chroma along a row and a column."""

    depth: int
    across: int
    down: int
    gray: bool

    def __str__(self) -> str:
        kinds = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1", (4, 4): "4:1:0"}
        return f"{'gray' if self.gray else kinds[self.across, self.down]} {self.depth}-bit"


def sampling(pixels: av.VideoFormat) -> Sampling:
    """That of any format; of RGB and palettes, that of the YUV it becomes. Alpha is left out."""
    components = [component for component in pixels.components if not component.is_alpha]
    return Sampling(
        max(component.bits for component in components),
        64 // pixels.chroma_width(64),
        64 // pixels.chroma_height(64),
        len(components) == 1 and not pixels.has_palette,
    )


def choose(suffix: str, codec: str, source: Sampling, size: tuple[int, int]) -> tuple[str, str]:
    """The encoder and the pixel format that keep most: the codec where that loses nothing, then depth and chroma.

    size: (width, height). Raises DependencyError where PyAV was built without any encoder for the container.
    """

    def lost(choice: tuple[str, str]) -> tuple[int | bool, ...]:
        name, pixels = choice
        to = sampling(av.VideoFormat(pixels))
        return (
            to.gray and not source.gray,
            max(0, source.depth - to.depth),
            max(0, to.across - source.across) + max(0, to.down - source.down),
            ENCODERS[name].codec != codec,
            name == "libx264" and to.depth > 8,  # which few players take
            order.index(name),
            source.gray != to.gray,
            to.depth + source.across - to.across + source.down - to.down,  # no more than needed
        )

    container, order = CONTAINERS[suffix]
    choices = [(name, pixels) for name in order for pixels in _formats(name, size)]
    if not choices:
        raise DependencyError(
            f"expected PyAV with one of {', '.join(order)} for {container}, found none: pip install av"
        )
    return min(choices, key=lost)


def _formats(name: str, size: tuple[int, int]) -> Iterable[str]:
    """The planar YUV and gray formats that an encoder takes at this size."""
    if name == "libx265" and size[0] < 64:  # up to 48 pixels it writes beyond its memory (PyAV 18.1)
        return
    try:
        formats = av.Codec(name, "w").video_formats or ()
    except av.codec.codec.UnknownCodecError:
        return
    for pixels in formats:
        # The yuvj formats are the same samples under a deprecated name.
        plain = pixels.name.replace("yuvj", "yuv")
        kind = sampling(pixels)
        fits = not (size[0] % kind.across or size[1] % kind.down) or not ENCODERS[name].whole_chroma
        if re.fullmatch(r"(gray|yuv4\d\dp)(\d\dle)?", plain) and fits:
            yield plain


def options(name: str, quality: int, side_data: Mapping[Type, bytes]) -> dict[str, str]:
    """Of an encoder at a quality of 0 to 100, with the HDR metadata of the first frame where it takes them."""
    encoder = ENCODERS[name]
    result = dict(encoder.options)
    if encoder.option:
        result[encoder.option] = str(round(encoder.best + (encoder.worst - encoder.best) * (100 - quality) / 100))
    if metadata := [*_hdr(name, side_data)]:
        parameters = f"{name.removeprefix('lib')}-params"
        result[parameters] = ":".join([*filter(None, [result.get(parameters)]), *metadata])
    return result


HDR = {
    "libx264": ("mastering-display", "cll", 50000, 10000),
    "libx265": ("master-display", "max-cll", 50000, 10000),
    "libsvtav1": ("mastering-display", "content-light", 1, 1),
}
"""Encoders that take HDR metadata: their words for the two kinds, their units in 1 of chromaticity and in a cd/m2."""


def _hdr(name: str, side_data: Mapping[Type, bytes]) -> Iterator[str]:
    """SMPTE ST 2086 and CTA-861.3 metadata as an encoder's parameters."""
    if name not in HDR:
        return
    display, light, chromaticity, luminance = HDR[name]
    if packed := side_data.get(Type.MASTERING_DISPLAY_METADATA):
        # FFmpeg's AVMasteringDisplayMetadata: x and y of red, green, blue and white, the least and the most light
        *numbers, has_colours, has_light = struct.unpack("22i", packed)
        if has_colours and has_light:
            values = [Fraction(top, bottom or 1) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
            red, green, blue, white = (
                _pair(x, y, chromaticity) for x, y in zip(values[:8:2], values[1:8:2], strict=True)
            )
            yield f"{display}=G{green}B{blue}R{red}WP{white}L{_pair(values[9], values[8], luminance)}"
    if packed := side_data.get(Type.CONTENT_LIGHT_LEVEL):
        yield f"{light}={','.join(map(str, struct.unpack('2I', packed)))}"


def _pair(first: Fraction, second: Fraction, units: int) -> str:
    values = (f"{float(value):.6g}" if units == 1 else str(round(value * units)) for value in (first, second))
    return f"({','.join(values)})"
