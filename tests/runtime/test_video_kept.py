"""What a denoised video keeps of its source besides the pictures: times, streams, metadata, codec, samples."""

import itertools
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.sidedata.sidedata import Type

from common.metrics import psnr
from runtime import Denoiser
from runtime.video import denoise_video
from runtime.video_encoders import choose, sampling
from runtime.video_source import Source
from tests.runtime.video_clips import Function, Read, add_cover, copied, make, same

HDR10 = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"


CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"audio": "aac", "rotation": 90, "sample_aspect_ratio": Fraction(4, 3), "chapters": True},
    "h264.mkv": {"audio": "aac", "tick": Fraction(1, 1000), "rotation": -90, "subtitles": True, "chapters": True},
    "hevc.mov": {"codec": "libx265", "pixels": "yuv422p10le", "audio": "pcm_s16le", "tick": Fraction(1, 30000)},
    "vp9.webm": {"codec": "libvpx-vp9", "audio": "libopus", "tick": Fraction(1, 1000), "size": (63, 47)},
    "av1.mp4": {"codec": "libsvtav1", "pixels": "yuv420p10le", "audio": "aac"},
    "full.m4v": {"color_range": 2, "pixels": "yuvj420p", "audio": "aac"},
    "gray.mkv": {"pixels": "gray10le", "tick": Fraction(1, 1000)},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "odd.mp4": {"pixels": "yuv444p", "size": (63, 47)},
}


@pytest.mark.parametrize("name", CLIPS)
def test_all_but_the_pictures_is_kept(tmp_path: Path, name: str) -> None:
    options = {"rate": Fraction(30000, 1001), "metadata": {"title": "Noise", "artist": "Nobody"}, **CLIPS[name]}
    tagged = {"colorspace": 9, "color_primaries": 9, "color_trc": 14, "color_range": 1, **options}
    clip, target = make(tmp_path / name, frames=12, **tagged), tmp_path / f"out_{name}"
    assert denoise_video(same, clip, target) == []
    before, after = Read(clip), Read(target)
    assert after.times == before.times
    assert after.rate == before.rate
    for field in ("codec", "pixels", "packets", "streams", "chapters", "rotation", "aspect", "colours"):
        assert getattr(after, field) == getattr(before, field), field
    assert after.duration == pytest.approx(before.duration, abs=25000)  # microseconds, an audio packet at most
    if name == "hevc.mov":
        assert after.tag == "hvc1"  # Apple's players take no other
    lower = {key.casefold(): value for key, value in after.metadata.items()}
    assert (lower["title"], lower["artist"]) == ("Noise", "Nobody")
    assert (after.frames[0].width, after.frames[0].height) == options.get("size", (64, 48))
    for old, new in zip(before.planes(), after.planes(), strict=True):  # visually lossless
        top = 1023 if old[0].dtype == np.uint16 else 255
        assert psnr(new[0] / top, old[0] / top) > 40


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_variable_frame_rates(tmp_path: Path, suffix: str) -> None:
    times = [0, 5, 60, 61, 100, 250, 255, 260, 400, 401]
    clip = make(tmp_path / f"clip{suffix}", times=times, frames=10, tick=Fraction(1, 1000))
    for end in {suffix, ".mp4", ".mkv"}:
        assert denoise_video(same, clip, tmp_path / f"out{end}") == []
        assert Read(tmp_path / f"out{end}").times == [Fraction(at, 1000) for at in times]


def test_a_video_that_starts_late_and_one_of_a_single_frame(tmp_path: Path) -> None:
    late = make(tmp_path / "late.mp4", times=itertools.count(30000, 512), audio="aac")
    denoise_video(same, late, tmp_path / "out.mp4")
    assert Read(tmp_path / "out.mp4").times == Read(late).times
    denoise_video(same, make(tmp_path / "one.mp4", frames=1), tmp_path / "out1.mp4")
    assert len(Read(tmp_path / "out1.mp4").frames) == 1


def test_a_late_matroska_video_is_no_truncated_one(tmp_path: Path) -> None:
    """Its duration is the time of its end."""
    late = make(tmp_path / "late.mkv", times=itertools.count(60000, 512), frames=60)
    assert denoise_video(same, late, tmp_path / "out.mkv") == []


def test_a_late_video_is_known_to_be_truncated(tmp_path: Path) -> None:
    times = itertools.count(60000, 512)
    clip = make(tmp_path / "late.mp4", times=times, frames=60, container={"movflags": "faststart"})
    assert denoise_video(same, clip, tmp_path / "whole.mp4") == []
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    assert "is the file truncated?" in denoise_video(same, clip, tmp_path / "part.mp4")[-1]


def test_frames_whose_times_are_missing_or_do_not_increase(tmp_path: Path) -> None:
    with Source(make(tmp_path / "clip.mp4")) as source:
        last, times = None, []
        for given_time, duration in ((None, 0), (None, 0), (2000, 0), (2000, 0), (1500, 0), (None, 0), (None, 700)):
            frame: Any = SimpleNamespace(pts=given_time, duration=duration)
            last = source._place(frame, last)
            times.append(last)
        assert times == [0, 512, 2000, 2001, 2002, 2514, 3214]
        assert any("times of 2 frames do not increase" in note for note in source.notes())


@pytest.mark.parametrize(("codec", "end"), [("libx265", ".mp4"), ("libx265", ".webm")])
def test_hdr_metadata(tmp_path: Path, codec: str, end: str) -> None:
    """From HEVC to HEVC, and to AV1, which counts in other units."""
    tags: dict[str, Any] = {"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": 16}
    options = {"x265-params": f"log-level=none:{HDR10}"}
    clip = make(tmp_path / "clip.mp4", codec, "yuv420p10le", options=options, **tags)
    denoise_video(same, clip, tmp_path / f"out{end}")
    before, after = Read(clip), Read(tmp_path / f"out{end}")
    assert after.colours == before.colours
    assert after.side_data[Type.CONTENT_LIGHT_LEVEL] == before.side_data[Type.CONTENT_LIGHT_LEVEL]
    packed = [file.side_data[Type.MASTERING_DISPLAY_METADATA] for file in (before, after)]
    numbers = [np.frombuffer(data, np.int32)[:20].reshape(10, 2) for data in packed]
    given, kept = (pairs[:, 0] / pairs[:, 1] for pairs in numbers)
    np.testing.assert_allclose(kept, given, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_closed_captions(tmp_path: Path, codec: str) -> None:
    """H.264 carries them in front of a picture, as SEI; HEVC gets them from there."""
    plain, clip = make(tmp_path / "plain.mp4"), tmp_path / "h264.mp4"
    caption = bytes([0xB5, 0, 0x31, *b"GA94", 3, 0x42, 0xFF, 0xFC, 0x94, 0x2C, 0xFC, 0x41, 0x42, 0xFF])
    sei = bytes([6, 4, len(caption)]) + caption + b"\x80"
    with av.open(plain) as file, av.open(clip, "w") as out:
        stream = out.add_stream_from_template(file.streams.video[0], opaque=True)
        for packet in file.demux():
            if packet.size:
                out.mux(copied(packet, stream, before=len(sei).to_bytes(4, "big") + sei))
    if codec == "hevc":
        h264, clip = clip, tmp_path / "hevc.mp4"
        with av.open(h264) as file, av.open(clip, "w") as out:
            options = {"a53cc": "1", "x265-params": "log-level=none"}
            video: Any = out.add_stream("libx265", rate=30, options=options, width=64, height=48)
            for frame in file.decode(video=0):
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
    assert denoise_video(same, clip, tmp_path / "out.mp4") == []
    assert Read(tmp_path / "out.mp4").side_data[Type.A53_CC] == Read(clip).side_data[Type.A53_CC]
    assert "closed captions is not kept" in denoise_video(same, clip, tmp_path / "out.webm")[1]


def test_metadata_of_an_iphone(tmp_path: Path) -> None:
    names = {"com.apple.quicktime.make": "Apple", "com.apple.quicktime.location.ISO6709": "+48.1+011.5/", "title": "x"}
    clip = make(tmp_path / "clip.mov", metadata=names, container={"movflags": "use_metadata_tags"})
    assert denoise_video(same, clip, tmp_path / "out.mov") == []
    assert names.items() <= Read(tmp_path / "out.mov").metadata.items()


def test_the_encoder_chooses_its_key_frames(tmp_path: Path) -> None:
    """Not every frame is one where the source has no others, as those of cameras and editors do."""
    clip = make(tmp_path / "clip.mkv", "ffv1", options={"g": "1"})
    denoise_video(same, clip, tmp_path / "out.mp4")
    kinds = [[frame.key_frame for frame in Read(tmp_path / name).frames] for name in ("clip.mkv", "out.mp4")]
    assert kinds == [[True] * 5, [True] + [False] * 4]


REPLACED: dict[str, tuple[dict[str, Any], str, str]] = {  # clip -> how it is made, format of the output, note
    "a.mkv": ({"codec": "mjpeg", "pixels": "yuvj422p"}, "out.mp4", "mjpeg 4:2:2 8-bit is written as h264 4:2:2 8-bit"),
    "b.mkv": ({"codec": "mjpeg", "pixels": "yuvj420p", "size": (63, 47)}, "out.mp4", "written as h264 4:4:4 8-bit"),
    "c.mkv": ({"codec": "libvpx-vp9"}, "out.mov", "vp9 4:2:0 8-bit is written as h264 4:2:0 8-bit"),
    "d.mp4": ({"pixels": "yuv422p10le"}, "out.webm", "h264 4:2:2 10-bit is written as av1 4:2:0 10-bit"),
    "e.mkv": (
        {"codec": "ffv1", "pixels": "yuv420p10le"},
        "out.mp4",
        "ffv1 4:2:0 10-bit is written as hevc 4:2:0 10-bit",
    ),
    "f.mkv": ({"codec": "ffv1", "pixels": "yuv420p16le"}, "out.mkv", ""),
    "g.mov": ({"codec": "qtrle", "pixels": "rgb24"}, "out.mp4", "qtrle 4:4:4 8-bit is written as h264 4:4:4 8-bit"),
    "h.mkv": ({"codec": "ffv1", "pixels": "bgra"}, "out.mkv", "transparency is left out"),
    "i.mov": (
        {"codec": "rawvideo", "pixels": "uyvy422"},
        "out.mov",
        "rawvideo 4:2:2 8-bit is written as h264 4:2:2 8-bit",
    ),
    "j.mkv": (  # libx265 breaks the heap at this width
        {"codec": "ffv1", "pixels": "yuv420p10le", "size": (48, 40)},
        "out.mp4",
        "ffv1 4:2:0 10-bit is written as av1 4:2:0 10-bit",
    ),
    "k.webm": ({"codec": "libvpx-vp9", "pixels": "yuva420p"}, "out.webm", "transparency is left out"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_codecs_and_samples_that_cannot_be_written_are_replaced(tmp_path: Path, name: str) -> None:
    options, output, note = REPLACED[name]
    clip, target = make(tmp_path / name, **options), tmp_path / output
    notes = denoise_video(same, clip, target, quality=100)
    assert any(note in line for line in notes) if note else not notes
    for before, after in zip(Read(clip).frames, Read(target).frames, strict=True):  # the colours are the same
        shown = [frame.to_ndarray(format="rgb24").astype(float) for frame in (before, after)]
        assert psnr(shown[0] / 255, shown[1] / 255) > 33
        np.testing.assert_allclose(shown[1].mean((0, 1)), shown[0].mean((0, 1)), atol=2)


def test_an_odd_height_alone_keeps_its_last_row() -> None:
    source = sampling(av.VideoFormat("yuv420p"))
    assert choose(".mp4", "h264", source, (64, 48)) == ("libx264", "yuv420p")
    assert choose(".mp4", "h264", source, (64, 47)) == ("libx264", "yuv422p")


def test_a_palette_is_no_gray() -> None:
    assert str(sampling(av.VideoFormat("pal8"))) == "4:4:4 8-bit"
    assert str(sampling(av.VideoFormat("gray10le"))) == "gray 10-bit"


def test_streams_that_a_container_does_not_hold_are_named(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mkv", audio="libopus", subtitles=True, metadata={"odd key": "1"})
    notes = denoise_video(same, clip, tmp_path / "out.mov")
    assert [note.partition(": ")[2] for note in notes] == [
        "audio stream 1 (opus) is left out, because .mov files do not hold it",
        "subtitle stream 2 (srt) is left out, because .mov files do not hold it",
        "attachment stream 3 (font.ttf) is left out, because .mov files do not hold it",
        "metadata 'odd_key' is not kept",
    ]


def test_times_that_a_container_rounds_are_told(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4")
    assert "rounded to 1/1000 s" in denoise_video(same, clip, tmp_path / "out.mkv")[0]


def test_more_than_one_video(tmp_path: Path) -> None:
    """The second one is copied, as a cover picture is, and named, as that is not."""
    one, clip = make(tmp_path / "one.mp4"), tmp_path / "clip.mp4"
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with av.open(one) as file, av.open(clip, "w") as out:
        cover = add_cover(out, png)
        streams = [out.add_stream_from_template(file.streams.video[0], opaque=True) for _ in range(2)]
        out.mux(cover)
        for packet in file.demux(video=0):
            for stream in streams if packet.size else []:
                out.mux(copied(packet, stream))
    (note,) = denoise_video(Denoiser(Function(lambda images: images / 2)), clip, tmp_path / "out.mp4")
    assert note.endswith("out.mp4: video stream 1 (h264) is copied as it is: one video is denoised")
    before, after = Read(clip), Read(tmp_path / "out.mp4")
    assert after.streams == before.streams
    assert [data for packets in after.packets.values() for data, _ in packets].count(png) == 1
    assert after.packets == before.packets
    assert after.planes()[0][0].mean() < before.planes()[0][0].mean() - 30


def test_full_range_video_keeps_the_name_of_its_matrix(tmp_path: Path) -> None:
    """As phones write it. Of the two names of one matrix, BT.470BG and SMPTE 170M, FFmpeg's scaler knows the second."""
    clip = make(
        tmp_path / "phone.mp4", "libx264", "yuvj420p", color_range=2, colorspace=5, color_primaries=5, color_trc=6
    )
    assert denoise_video(same, clip, tmp_path / "out.mp4") == []
    assert [frame.colorspace for frame in Read(tmp_path / "out.mp4").frames] == [
        frame.colorspace for frame in Read(clip).frames
    ]


def test_sound_that_goes_on_after_the_last_frame(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mov", "rawvideo", "uyvy422", audio="pcm_s16le", longer=5)
    denoise_video(same, clip, tmp_path / "out.mov")
    assert Read(tmp_path / "out.mov").packets == Read(clip).packets


def test_quality_is_size(tmp_path: Path) -> None:
    """Of VP9, because x264's output for so small a picture is not the same every time."""
    clip = make(tmp_path / "clip.webm", "libvpx-vp9", frames=10)
    sizes = []
    for quality in (1, 50, 95, 100):
        denoise_video(same, clip, tmp_path / f"{quality}.webm", quality=quality)
        sizes.append((tmp_path / f"{quality}.webm").stat().st_size)
    assert sizes == sorted(set(sizes))
    denoise_video(same, clip, tmp_path / "default.webm")
    assert (tmp_path / "default.webm").stat().st_size == sizes[2]
