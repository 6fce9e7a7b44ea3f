"""Tiny clips, what a video file holds, and engines whose every sample is known."""

import itertools
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from runtime import Denoiser
from runtime.engines import Engine
from runtime.engines.base import Images, Io
from runtime.video_target import planes_of

TICK = Fraction(1, 15360)


class Function(Engine):
    """Does `change` to N,C,H,W images in [0, 1]; by default nothing."""

    name, channels = "function", 3

    def __init__(self, change: Callable[[Images], Images] = lambda images: images, io: Io = "float32") -> None:
        self.change, self.io = change, io

    def _run(self, images: Images) -> Images:
        return np.ascontiguousarray(self.change(images))


same = Denoiser(Function())


def noise(pixels: str, size: tuple[int, int], seed: int) -> av.VideoFrame:
    """Every sample of a planar format at random, its whole range."""
    frame, rng = av.VideoFrame(*size, pixels), np.random.default_rng(seed)
    for plane in planes_of(frame):
        top = 2 ** max(component.bits for component in frame.format.components)
        plane[...] = rng.integers(0, top, plane.shape)
    return frame


def picture(pixels: str, size: tuple[int, int], seed: int) -> av.VideoFrame:
    """Smooth colours that move, with a little noise: what an encoder can keep."""
    rows, columns = np.mgrid[: size[1], : size[0]] / 10
    waves = [np.sin(columns + seed / 3), np.cos(rows - seed / 5), np.sin(rows + columns)]
    rgb = 128 + 80 * np.dstack(waves) + np.random.default_rng(seed).normal(0, 3, (size[1], size[0], 3))
    return av.VideoFrame.from_ndarray(np.clip(rgb, 0, 255).astype(np.uint8), "rgb24").reformat(format=pixels)


def make(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    frames: int = 5,
    size: tuple[int, int] = (64, 48),
    times: Iterable[int] | None = None,
    tick: Fraction = TICK,
    rate: Fraction = Fraction(30),
    audio: str | None = None,
    longer: int = 1,
    subtitles: bool = False,
    draw: Callable[[str, tuple[int, int], int], av.VideoFrame] = picture,
    rotation: int = 0,
    metadata: dict[str, str] | None = None,
    chapters: bool = False,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    **context: Any,
) -> Path:
    """A clip; `longer` is as often as long the sound is, `context` are attributes of the video's codec context."""
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(path, "w", options=container or {}) as file:
        video: Any = file.add_stream(codec, rate=rate, options=quiet | (options or {}))
        video.width, video.height, video.pix_fmt = *size, pixels
        video.time_base = video.codec_context.time_base = tick
        for name, value in context.items():
            setattr(video.codec_context, name, value)
        if rotation:
            video.set_display_rotation(rotation)
        sound: Any = file.add_stream(audio, rate=48000) if audio else None
        text: Any = file.add_mux_stream("subrip") if subtitles else None
        if subtitles:
            text.metadata["language"] = "fre"
            file.add_attachment("font.ttf", "application/x-truetype-font", bytes(40))
        file.metadata.update(metadata or {})
        if chapters:
            unit = Fraction(1, 1000)
            file.set_chapters(
                [
                    {"id": 1, "start": 0, "end": 100, "time_base": unit, "metadata": {"title": "one"}},
                    {"id": 2, "start": 100, "end": 200, "time_base": unit, "metadata": {"title": "two"}},
                ]
            )
        if sound:
            sound.layout = "mono"
            samples = np.sin(np.arange(int(48000 * frames * longer / rate)) / 20).astype(np.float32)[None]
            wave = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            wave.sample_rate, wave.pts, wave.time_base = 48000, 0, Fraction(1, 48000)
            resampler = av.AudioResampler(sound.format, "mono", 48000, 960 if audio == "libopus" else 1024)
            for part in [*resampler.resample(wave), *resampler.resample(None)]:
                file.mux(sound.encode(part))
            file.mux(sound.encode(None))
        for number, at in zip(
            range(frames), times or (round(n / rate / tick) for n in itertools.count()), strict=False
        ):
            frame = draw(pixels, size, number)
            frame.pts, frame.time_base = at, tick
            for name in ("color_range", "colorspace"):
                setattr(frame, name, context.get(name, getattr(frame, name)))
            file.mux(video.encode(frame))
            if subtitles and number in (1, 3):
                line = av.Packet(f"line {number}".encode())
                line.stream, line.time_base, line.duration = text, Fraction(1, 1000), 60
                line.pts = line.dts = 33 * number
                file.mux(line)
        file.mux(video.encode(None))
    return path


def copied(packet: Any, stream: av.stream.Stream, *, before: bytes = b"") -> Any:
    """A packet for another stream, with bytes put before its own."""
    copy: Any = av.Packet(before + bytes(packet))
    for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
        setattr(copy, name, getattr(packet, name))
    copy.stream = stream
    return copy


def add_cover(file: Any, png: bytes) -> Any:
    """A stream for a cover picture; returns its packet, to be written after all streams are added."""
    stream = file.add_mux_stream("png", width=8, height=8)
    stream.disposition = av.stream.Disposition.attached_pic
    packet: Any = av.Packet(png)
    packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 1000)
    return packet


class Read:
    """All that a file holds."""

    def __init__(self, path: Path) -> None:
        with av.open(path, "r", metadata_errors="replace") as file:
            self.video = file.streams.video[0]
            self.codec = self.video.codec_context.codec.canonical_name
            self.rate, self.aspect = self.video.average_rate, self.video.sample_aspect_ratio
            self.tag, self.duration = self.video.codec_context.codec_tag, file.duration
            self.metadata = dict(file.metadata)
            self.chapters = [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"])  # type: ignore[operator]  # stubs
                for c in file.chapters()
            ]
            self.streams = [
                (s.type, s.metadata.get("language", "und"), s.disposition, getattr(s, "data", None))
                for s in file.streams
            ]
            self.packets: dict[int, list[tuple[bytes, Any]]] = {s.index: [] for s in file.streams}
            self.frames: list[Any] = []
            for packet in file.demux():
                if packet.stream is self.video:
                    self.frames += packet.decode()
                elif packet.size:
                    self.packets[packet.stream.index].append(
                        (bytes(packet), packet.pts and packet.pts * packet.time_base)
                    )
            self.times = [frame.pts * frame.time_base for frame in self.frames]
            first: Any = self.frames[0]
            self.pixels, self.rotation = first.format.name, first.rotation
            self.colours = [first.color_range, first.colorspace, first.color_primaries, first.color_trc]
            self.side_data = {data.type: bytes(data) for data in first.side_data}

    def planes(self) -> list[list[NDArray[Any]]]:
        return [planes_of(frame) for frame in self.frames]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
