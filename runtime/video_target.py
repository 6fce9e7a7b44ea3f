"""A video that is written: other pictures, and all else that its source has. Needs PyAV."""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.codec.context import Flags, ThreadType
from av.sidedata.sidedata import Type
from av.stream import Disposition, Stream
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from common.errors import InputError, OutputError
from runtime.video_colour import Coding, Samples, add_change
from runtime.video_encoders import CONTAINERS, ENCODERS, choose, options, sampling
from runtime.video_source import Packets, Source, reason

_OF_THE_FILE = {
    "alpha_mode",
    "compatible_brands",
    "duration",
    "encoder",
    "major_brand",
    "minor_version",
    "software",
    "vendor_id",
}
"""Metadata that the writer of a file sets, or that is of pictures which it does not write."""
_OF_FRAMES = {
    Type.A53_CC: "closed captions",
    Type.CONTENT_LIGHT_LEVEL: "HDR light levels",
    Type.DOVI_METADATA: "Dolby Vision",
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.DYNAMIC_HDR_VIVID: "HDR Vivid",
    Type.MASTERING_DISPLAY_METADATA: "HDR mastering display",
    Type.SPHERICAL: "spherical projection",
    Type.STEREO3D: "stereoscopic layout",
}
"""Metadata of frames that matters to who watches them."""
_BT_709 = 1
"""What RGB becomes; by chance also swscale's number for it."""


class Target:
    """A video file that is written: the frames of `source` after `fit` and a change, its other streams and metadata.

    Args:
        path: what is written, in the container of its suffix; name: what errors and notes call it.
        first: the first frame of `source`.
        quality: 0 to 100.

    Raises OutputError where it cannot be written. `fit` may run in another thread than the rest.
    """

    def __init__(self, path: Path, name: Path, source: Source, first: av.VideoFrame, quality: int) -> None:
        self.path, self.name, self.source = path, name, source
        self.frames = 0
        """Written so far."""
        self.notes: list[str] = []
        """What is written otherwise than in the source, or not at all."""
        suffix = path.suffix.lower()
        self._kind, _ = CONTAINERS[suffix]
        self._choose(suffix, first)
        self._facts = _facts(source, first)
        self._streams: dict[int, Stream] = {}
        self._refused = 0
        self._unit = 0  # of the frames' times, the greatest, in ticks
        self._broken = ""
        metadata = source.container.metadata
        with self._told():
            self._container = av.open(
                path.absolute(),
                "w",
                format=self._kind,
                container_options=_mp4_options(source) if self._kind in ("mp4", "mov") else {},
                metadata_errors="surrogateescape",
            )
            for stream in source.container.streams:
                if stream is source.video:
                    self._video = self._add_video(first, quality)
                elif stream in source.others:
                    what = f"{stream.type} stream {stream.index} ({getattr(stream, 'name', None) or 'unknown'})"
                    if not self._add_copy(stream):
                        self.notes.append(f"{what} is left out, because {suffix} files do not hold it")
                    elif stream.type == "video" and not stream.disposition & Disposition.attached_pic:
                        self.notes.append(f"{what} is copied as it is: one video is denoised")
            self._container.metadata.update(metadata)
            self._container.set_chapters(source.container.chapters())

    def fit(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame in the samples of `coding`: itself, as a rule."""
        if frame.format.name == self._pixels:
            return frame
        rgb = _is_rgb(frame.format)
        fitted = self._reformatter.reformat(
            frame,
            format=self._pixels,
            src_color_range=ColorRange.JPEG if rgb or _is_full(frame) else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG if self.coding.full_range else ColorRange.MPEG,
            dst_colorspace=_BT_709 if rgb else None,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
        )
        if not rgb:  # of two matrices that are the same swscale names the other
            fitted.colorspace = frame.colorspace
        return fitted

    def write(self, frame: av.VideoFrame, change: Samples, packets: Packets) -> None:
        """Write packets of other streams, then a frame that `fit` gave, changed by `change` (see `add_change`)."""
        with self._told():
            self._copy(packets)
            frame.make_writable()  # the decoder may still refer to it
            add_change(planes_of(frame), change, self.coding)
            frame.pict_type = PictureType.NONE  # how the source was encoded
            self._unit = math.gcd(self._unit, frame.pts or 0)
            self._container.mux(self._video.encode(frame))
            self.frames += 1

    def finish(self) -> None:
        """Write what is outstanding; the file is whole after it."""
        with self._told():
            self._copy(self.source.rest)
            self.source.rest = []
            with contextlib.suppress(av.error.EOFError):  # a call before was interrupted
                self._container.mux(self._video.encode(None))
            self._container.close()

    def check(self) -> None:
        """After `finish`: read the file, and note what it does not hold. Raises OutputError where it is unreadable."""
        try:
            with Source(self.path) as written, contextlib.closing(written.pieces()) as pieces:
                kept, tick = _facts(written, next(pieces).frame), written.tick
        except InputError as error:
            raise OutputError(f"{self.name}: what was written cannot be read: {error}") from error
        self.notes += [f"{name} is not kept" for name, value in self._facts.items() if kept.get(name) != value]
        if (self._unit * self.source.tick / tick).denominator != 1:
            self.notes.append(f"the times of frames are rounded to {tick} s")
        if self._refused:
            self.notes.append(f"{self._refused} packets of other streams are left out, because their times are wrong")

    def close(self) -> None:
        """Let go of a file that is not finished."""
        with contextlib.suppress(av.FFmpegError):
            self._container.close()

    def _choose(self, suffix: str, first: av.VideoFrame) -> None:
        codec, given = self.source.video.codec_context.codec.canonical_name, sampling(first.format)
        self._encoder, self._pixels = choose(suffix, codec, given, (first.width, first.height))
        encoder, wanted = ENCODERS[self._encoder], sampling(av.VideoFormat(self._pixels))
        if (encoder.codec, wanted) != (codec, given):
            self.notes.append(f"video of {codec} {given} is written as {encoder.codec} {wanted}")
        # FFmpeg's decoder of VP8 and VP9 gives no alpha, which such a file has in data of its own.
        aside = any(_word(key) == "alpha_mode" for key in self.source.video.metadata)
        if aside or any(component.is_alpha for component in first.format.components):
            self.notes.append("transparency is left out")
        rgb = _is_rgb(first.format)
        full, matrix = (False, _BT_709) if rgb else (_is_full(first), first.colorspace)
        self.coding = Coding(wanted.depth, wanted.across, wanted.down, full, matrix, first.height)
        self._reformatter = VideoReformatter()

    def _add_video(self, first: av.VideoFrame, quality: int) -> av.VideoStream:
        """Its times are the source's own."""
        given = self.source.video
        side_data = _side_data(first)
        settings = options(self._encoder, quality, side_data)
        if self._encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # it prints all it does, and has no option against that
        stream = self._container.add_stream(self._encoder, rate=self.source.rate, options=settings)
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = first.width, first.height, self._pixels
        context.time_base = stream.time_base = self.source.tick
        context.flags |= Flags.frame_duration
        context.thread_type = ThreadType.AUTO  # PyAV's own choice has x264 cut each frame into slices
        if given.sample_aspect_ratio:
            context.sample_aspect_ratio = given.sample_aspect_ratio
        fitted = self.fit(first)
        context.colorspace, context.color_primaries = fitted.colorspace, fitted.color_primaries
        context.color_range, context.color_trc = fitted.color_range, fitted.color_trc
        if ENCODERS[self._encoder].codec == "hevc" and self._kind in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # Apple's players take no other
        if matrix := side_data.get(Type.DISPLAYMATRIX):  # the pixels stay as they are
            stream.set_display_matrix(np.frombuffer(matrix, np.int32).tolist())
        _describe(stream, given)
        return stream

    def _add_copy(self, given: Stream) -> bool:
        """Whether the container holds the stream: tried in memory, because a header cannot be taken back."""
        try:
            with av.open(io.BytesIO(), "w", format=self._kind) as trial:
                trial.add_stream_from_template(given, opaque=True)
                trial.start_encoding()
        except (ValueError, av.FFmpegError):
            return False
        stream = self._container.add_stream_from_template(given, opaque=True)
        _describe(stream, given)
        self._streams[given.index] = stream
        return True

    def _copy(self, packets: Packets) -> None:
        for packet in packets:
            if stream := self._streams.get(packet.stream.index):
                packet.stream = stream
                try:
                    self._container.mux(packet)
                except av.ArgumentError:  # as of damaged times; a disk that is full is another error
                    self._refused += 1

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        if self._broken:  # the muxer of MP4 whose header could not be written crashes on what comes next
            raise OutputError(self._broken)
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            self._broken = f"cannot write {self.name}: {reason(error)}"
            raise OutputError(self._broken) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def planes_of(frame: av.VideoFrame) -> list[Samples]:
    """The planes of planar YUV or gray as arrays that share the frame's memory."""
    dtype = np.uint8 if sampling(frame.format).depth == 8 else np.uint16
    return [
        np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]  # rows are padded
        for plane in frame.planes
    ]


def _mp4_options(source: Source) -> dict[str, str]:
    options = {"movie_timescale": str(source.tick.denominator)}  # or the start is rounded to a millisecond
    if any("." in key for key in source.container.metadata):
        options["movflags"] = "use_metadata_tags"  # QuickTime's newer kind, as "com.apple.quicktime.make"
    return options


def _describe(stream: Stream, given: Stream) -> None:
    stream.disposition = given.disposition
    stream.metadata.update({key: value for key, value in given.metadata.items() if _word(key) not in _OF_THE_FILE})


def _facts(source: Source, first: av.VideoFrame) -> dict[str, Any]:
    """What a file says beside its pictures and streams."""
    unset = (None, 0, 2)  # 2 is "unspecified" of a matrix, primaries and transfer
    aspect = source.video.sample_aspect_ratio
    facts = {
        "rotation": first.rotation or None,
        "pixel aspect ratio": None if aspect in (0, 1) else aspect,
        "colour matrix": None if first.colorspace in unset else first.colorspace,
        "colour primaries": None if first.color_primaries in unset else first.color_primaries,
        "colour transfer": None if first.color_trc in unset else first.color_trc,
        "chapters": len(source.container.chapters()) or None,
    }
    present = _side_data(first)
    facts |= {words: True for kind, words in _OF_FRAMES.items() if kind in present}
    facts |= {f"metadata {key!r}": True for key in map(_word, source.container.metadata) if key not in _OF_THE_FILE}
    return {name: value for name, value in facts.items() if value is not None}


def _side_data(frame: av.VideoFrame) -> dict[Type, bytes]:
    found: Any = frame.side_data  # the stubs give it another type
    return {data.type: bytes(data) for data in found}


def _word(key: str) -> str:
    return key.casefold().replace(" ", "_")  # Matroska writes capitals and no blanks


def _is_rgb(pixels: av.VideoFormat) -> bool:
    return pixels.is_rgb or pixels.has_palette


def _is_full(frame: av.VideoFrame) -> bool:
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
