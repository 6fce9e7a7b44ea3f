"""A video that is read: its frames, and between them the packets of the file's other streams. Needs PyAV."""

from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
from av.stream import Discard, Disposition, Stream

from common.errors import InputError

_READABLE = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska"}
"""No playlists, for whose entries FFmpeg would go out into the network."""

Packets = list["av.Packet[Stream]"]


class Piece(NamedTuple):
    """A frame, and the packets of other streams that stand before it in the file."""

    frame: av.VideoFrame
    packets: Packets


class Source:
    """A video file that is open: its first video stream is decoded, the packets of the others are handed on.

    Raises InputError where the file cannot be read or holds no video. `pieces` may run in another thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size == 0:
                raise InputError(f"{path}: expected a video, found an empty file")
            # Absolute, because FFmpeg takes what stands before a colon for a protocol.
            self.container = av.open(
                path.absolute(), mode="r", container_options=_READABLE, metadata_errors="surrogateescape"
            )
        except (OSError, av.FFmpegError) as error:
            raise InputError(f"{path}: expected an MP4 or Matroska video, cannot read it: {reason(error)}") from error
        videos = (
            stream for stream in self.container.streams.video if not stream.disposition & Disposition.attached_pic
        )
        video = next(videos, None)
        if video is None:
            raise InputError(f"{path}: expected a video, found a file without one")
        self.video = video
        if self.video.codec_context is None:
            raise InputError(f"{path}: expected a video that PyAV can decode, found another")
        self.video.thread_type = "AUTO"
        # MP4's chapter titles are a stream that FFmpeg discards: the chapters are written anew.
        self.others = [s for s in self.container.streams if s is not self.video and s.discard != Discard.all]
        self.rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        self.tick = self.video.time_base or 1 / self.rate
        self.total = self.video.frames or self._estimate()
        """Frames, as the file says or as its duration suggests."""
        self.rest: Packets = []
        """After `pieces`: the packets that stand after the last frame."""
        self._damaged = self._interlaced = self._moved = 0
        self._end = Fraction(0)

    def pieces(self) -> Generator[Piece]:
        """Every frame in the order of showing, its time in `tick`, increasing.

        What cannot be decoded is left out. Raises InputError for interlaced video, where the frames' size changes, and
        where no frame can be decoded.
        """
        first = last = None
        packets: Packets = []
        for packet in self._packets():
            if packet.stream is not self.video:
                if packet.size:  # the last ones are empty
                    packets.append(packet)
                continue
            try:
                frames = self.video.decode(packet)
            except av.FFmpegError:
                self._damaged += 1
                continue
            for frame in frames:
                first = first or frame
                self._check(frame, first)
                last = self._place(frame, last)
                yield Piece(frame, packets)
                packets = []
        if last is None:
            raise InputError(f"{self.path}: expected a video, found no frame that can be decoded")
        self.rest = packets

    def notes(self) -> Iterator[str]:
        """After `pieces`: what was found amiss."""
        if self._damaged:
            yield f"{self.path}: {self._damaged} frames are damaged or left out, because they cannot be decoded"
        if self._interlaced:
            yield f"{self.path}: {self._interlaced} frames are interlaced: they were denoised like whole pictures"
        if self._moved:
            yield f"{self.path}: the times of {self._moved} frames do not increase: they were set to the next possible"
        if self.container.duration:
            said = Fraction(self.container.duration, av.time_base)
            # Matroska's is that of its last frame's end, MP4's that of all frames
            began = 0 if "matroska" in self.container.format.name else self.container.start_time or 0
            found = self._end - Fraction(began, av.time_base)
            if said - found > max(2 / self.rate, said / 50):
                yield f"{self.path}: expected {float(said):.2f} s, found {float(found):.2f} s: is the file truncated?"

    def _packets(self) -> Iterator["av.Packet[Stream]"]:
        try:
            for packet in self.container.demux(self.video, *self.others):
                if packet.pts is not None:
                    self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                yield packet
        except av.FFmpegError as error:
            raise InputError(f"{self.path}: reading stops at {float(self._end):.2f} s: {reason(error)}") from error

    def _check(self, frame: av.VideoFrame, first: av.VideoFrame) -> None:
        if frame.interlaced_frame:
            if frame is first:
                raise InputError(
                    f"{self.path}: expected progressive video, found interlaced, whose frames are two pictures each: "
                    "deinterlace it first, say with ffmpeg -i IN -vf bwdif OUT"
                )
            self._interlaced += 1
        if (frame.width, frame.height) != (first.width, first.height):
            raise InputError(
                f"{self.path}: expected frames of one size, {first.width}x{first.height}, found one of "
                f"{frame.width}x{frame.height} too"
            )
        self._damaged += frame.is_corrupt

    def _place(self, frame: av.VideoFrame, last: int | None) -> int:
        """Give the frame a time after that of the one before, `last`; returns it."""
        if frame.pts is None:
            frame.pts = 0 if last is None else last + (frame.duration or max(1, round(1 / self.rate / self.tick)))
        elif last is not None and frame.pts <= last:
            frame.pts = last + 1
            self._moved += 1
        return frame.pts

    def _estimate(self) -> int | None:
        duration = self.container.duration
        return round(Fraction(duration, av.time_base) * self.rate) if duration else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()


def reason(error: Exception) -> str:
    """What the system or FFmpeg says of an error, without numbers and names."""
    return getattr(error, "strerror", None) or str(error)
