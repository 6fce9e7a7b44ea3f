"""Videos that are refused, damaged or interrupted: what is said, and what is left."""

import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from common.errors import DependencyError, InputError, OutputError, SadnetError
from runtime import Denoiser
from runtime.engines.base import Images
from runtime.video import VIDEO_SUFFIXES, denoise_video
from runtime.video_encoders import CONTAINERS
from runtime.video_source import Piece, Source
from runtime.video_target import Target
from tests.runtime.video_clips import Function, Read, add_cover, copied, files, make, noise, same

ASSETS = Path(__file__).parents[2] / "assets"


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", audio="aac")
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with av.open(clip) as file, av.open(tmp_path / "song.m4v", "w", format="mp4") as out:
        stream = out.add_stream_from_template(file.streams.audio[0])
        out.mux(add_cover(out, png))
        for packet in file.demux(audio=0):
            if packet.size:
                out.mux(copied(packet, stream))
    data = clip.read_bytes()
    others = {
        "empty.mp4": (b"", "found an empty file"),
        "text.mkv": (b"a film about nothing\n" * 99, "cannot read it: Invalid data"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "cannot read it"),
        "list.mp4": (f"ffconcat version 1.0\nfile '{clip}'\n".encode(), "cannot read it"),
        "picture.mov": (png, "cannot read it"),
        "without_index.mp4": (data[: len(data) // 2], "cannot read it: Invalid data"),
        "song.m4v": ((tmp_path / "song.m4v").read_bytes(), "found a file without one"),
    }
    for name, (content, words) in others.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: expected .*{words}"):
            denoise_video(same, tmp_path / name, tmp_path / "out" / name)
    with pytest.raises(InputError, match="No such file"):
        denoise_video(same, tmp_path / "missing.mp4", tmp_path / "out" / "x.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        denoise_video(same, tmp_path / "folder.mp4", tmp_path / "out" / "x.mp4")
    assert not (tmp_path / "out").exists() or not files(tmp_path / "out")


def test_videos_that_are_refused(tmp_path: Path) -> None:
    woven = make(tmp_path / "woven.mp4", options={"flags": "+ilme+ildct"})
    with pytest.raises(InputError, match="expected progressive video, found interlaced"):
        denoise_video(same, woven, tmp_path / "out.mp4")
    deep = make(tmp_path / "deep.mp4", pixels="yuv420p10le")
    with pytest.raises(InputError, match=r"expected an 8-bit video, .* found 10"):
        denoise_video(Denoiser(Function(io="uint8")), deep, tmp_path / "out.mp4")
    assert files(tmp_path) == ["deep.mp4", "woven.mp4"]


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    clip, link = make(tmp_path / "clip.mp4"), tmp_path / "link.mp4"
    link.symlink_to(clip)
    data = clip.read_bytes()
    for target, options, error, words in (
        ("out.avi", {}, InputError, "expected a video file .*found '.avi'"),
        ("out", {}, InputError, "found no ending"),
        ("out.mp4", {"quality": 0}, InputError, "quality: expected 1 to 100, found 0"),
        ("out.mp4", {"strength": 2}, InputError, "strength"),
        ("clip.mp4", {}, OutputError, "written over"),
        ("link.mp4", {"overwrite": True}, OutputError, "written over"),
        ("clip.mp4/out.mp4", {}, OutputError, "cannot write"),
    ):
        with pytest.raises(error, match=words):
            denoise_video(same, clip, tmp_path / target, **options)
    (tmp_path / "old.mp4").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        denoise_video(same, clip, tmp_path / "old.mp4")
    assert (tmp_path / "old.mp4").read_bytes() == b"old"
    assert denoise_video(same, clip, tmp_path / "old.mp4", overwrite=True) == []
    assert clip.read_bytes() == data
    assert files(tmp_path) == ["clip.mp4", "link.mp4", "old.mp4"]


def test_suffixes_are_those_of_the_containers() -> None:
    assert set(CONTAINERS) == VIDEO_SUFFIXES


def test_names_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = make(Path("clip.mp4"))
    for name in ("http:x.mp4", "12:30.mp4", "new\nline.mp4", "äöü 影片.mkv", "%d.mkv", os.fsdecode(b"\xff\xfe.mp4")):
        clip = clip.rename(name)
        denoise_video(same, clip, Path(f"pipe:{name}"))
        assert len(Read(tmp_path / f"pipe:{name}").frames) == 5


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("encoders", "source", "target"):
        monkeypatch.delitem(sys.modules, f"runtime.video_{name}")
    with pytest.raises(DependencyError, match=r"expected the package av, found none: pip install -e '.\[video\]'"):
        denoise_video(same, tmp_path / "clip.mp4", tmp_path / "out.mp4")


def fails_at(number: int, error: BaseException) -> Denoiser:
    counter = itertools.count(1)

    def engine(images: Images) -> Images:
        if next(counter) == number:
            raise error
        return images

    return Denoiser(Function(engine))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SadnetError("the GPU is gone"), ZeroDivisionError("ours")])
def test_what_is_done_before_an_error_is_kept(tmp_path: Path, suffix: str, error: BaseException) -> None:
    codec, audio = ("libvpx-vp9", "libopus") if suffix == ".webm" else ("libx264", "aac")
    clip = make(tmp_path / f"clip{suffix}", codec, frames=20, audio=audio)
    error.args = error.args[:1]
    for attempt in ("", "1"):  # nor does a second partial result replace the first
        with pytest.raises(type(error)) as raised:
            denoise_video(fails_at(13, type(error)(*error.args)), clip, tmp_path / f"out{suffix}")
        partial = tmp_path / f"out.partial{attempt}{suffix}"
        assert str(raised.value).endswith(f"the first 12 frames are kept in {partial}")
        before, after = Read(clip), Read(partial)
        assert after.times == before.times[:12]
        assert 5 < len(after.packets[1]) < len(before.packets[1])
        assert [data for data, _ in after.packets[1]] == [data for data, _ in before.packets[1]][
            : len(after.packets[1])
        ]
    assert files(tmp_path) == sorted([clip.name, f"out.partial{suffix}", f"out.partial1{suffix}"])


def test_an_interrupt_of_the_last_moment_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(target: Target) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Target, "check", interrupted)
    clip = make(tmp_path / "clip.mp4", audio="aac")
    with pytest.raises(KeyboardInterrupt, match="the first 5 frames"):
        denoise_video(same, clip, tmp_path / "out.mp4")
    after = Read(tmp_path / "out.partial.mp4")
    assert (len(after.frames), after.packets) == (5, Read(clip).packets)


def test_what_cannot_be_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(target: Target) -> None:
        raise OutputError("cannot be read")

    monkeypatch.setattr(Target, "check", unreadable)
    with pytest.raises(OutputError, match=r"^cannot be read$"):
        denoise_video(same, make(tmp_path / "clip.mp4"), tmp_path / "out.mp4")
    assert files(tmp_path) == ["clip.mp4"]


def test_a_second_interrupt_waits_for_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "check", lambda target: signal.raise_signal(signal.SIGINT))
    finish, calls = Target.finish, itertools.count()

    def interrupted(target: Target) -> None:
        if next(calls) == 1:  # for the partial file
            signal.raise_signal(signal.SIGINT)
        finish(target)

    monkeypatch.setattr(Target, "finish", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="the first 5 frames"):
            denoise_video(same, make(tmp_path / "clip.mp4"), tmp_path / "out.mp4")
    finally:
        signal.signal(signal.SIGINT, before)
    assert next(calls) == 2
    assert len(Read(tmp_path / "out.partial.mp4").frames) == 5


def test_a_second_interrupt_waits_for_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(target: Target, *args: Any, write: Any = Target.write) -> None:
        time.sleep(0.1)
        write(target, *args)

    class Interrupted(ThreadPoolExecutor):
        def shutdown(self, *args: Any, **options: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            super().shutdown(*args, **options)

    monkeypatch.setattr(Target, "write", slow)
    monkeypatch.setattr("runtime.video.ThreadPoolExecutor", Interrupted)
    clip = make(tmp_path / "clip.mp4")
    with pytest.raises(KeyboardInterrupt, match="the first 3 frames"):
        denoise_video(
            same, clip, tmp_path / "out.mp4", report=lambda n, _: signal.raise_signal(signal.SIGINT) if n == 3 else None
        )
    assert len(Read(tmp_path / "out.partial.mp4").frames) == 3


def test_an_error_at_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4")
    with pytest.raises(KeyboardInterrupt) as raised:
        denoise_video(fails_at(1, KeyboardInterrupt()), clip, tmp_path / "out.mp4")
    assert not str(raised.value)
    assert files(tmp_path) == ["clip.mp4"]


SIGNALLED = """
import signal, sys, time
from pathlib import Path
from runtime import Denoiser
from runtime.engines import Engine
from runtime.video import denoise_video

class Slow(Engine):
    name, channels = "slow", 3
    def _run(self, images):
        time.sleep(0.1)
        return images

def report(done, total):
    if done == 5:
        print("ready", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's parent may have it ignored
try:
    denoise_video(Denoiser(Slow()), Path(sys.argv[1]), Path(sys.argv[2]), report=report)
except KeyboardInterrupt as interrupt:
    print(interrupt, flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_playable_file(tmp_path: Path, number: signal.Signals) -> None:
    clip = make(tmp_path / "clip.mp4", frames=300, audio="aac")
    command = [sys.executable, "-c", SIGNALLED, str(clip), str(tmp_path / "out.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ASSETS.parent) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    after = Read(tmp_path / "out.partial.mp4")
    assert f"the first {len(after.frames)} frames are kept in {tmp_path / 'out.partial.mp4'}" in output
    assert 5 <= len(after.frames) < 200
    assert after.times == Read(clip).times[: len(after.frames)]
    assert files(tmp_path) == ["clip.mp4", "out.partial.mp4"]


def test_the_signal_handlers_are_the_callers_again(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    denoise_video(same, make(tmp_path / "clip.mp4"), tmp_path / "out.mp4")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("room", [0, 30000])  # with none FFmpeg would crash, if it were given more than the header
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, suffix: str, room: int) -> None:
    clip = make(tmp_path / f"clip{suffix}", frames=60, draw=noise)
    (tmp_path / "other.txt").write_text("mine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match=rf"^cannot write {tmp_path}/out{suffix}: File too large$"):
            denoise_video(same, clip, tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == [f"clip{suffix}", "other.txt"]


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
@pytest.mark.parametrize("part", [0.3, 0.6])
def test_truncated_videos_are_done_as_far_as_they_go(tmp_path: Path, name: str, part: float) -> None:
    faststart = {"movflags": "faststart"} if name == "clip.mp4" else {}
    clip = make(tmp_path / name, frames=60, audio="aac", container=faststart)
    clip.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * part)])
    notes = denoise_video(same, clip, tmp_path / f"out_{name}")
    assert "is the file truncated?" in notes[0]
    assert 60 * part / 2 < len(Read(tmp_path / f"out_{name}").frames) < 60


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.mov"])
def test_damaged_videos(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Flipped bits anywhere: a file that plays, or one clear error and no file; and no chatter of FFmpeg's."""
    codecs = {"clip.webm": ("libvpx-vp9", "libopus"), "clip.mov": ("libx265", "aac")}
    codec, audio = codecs.get(name, ("libx264", "aac"))
    clip = make(tmp_path / name, codec, frames=8, audio=audio)
    whole, target, outcomes = clip.read_bytes(), tmp_path / f"out_{name}", set()
    capfd.readouterr()
    for seed in range(25):
        chance, data = random.Random(seed), bytearray(whole)
        for _ in range(chance.choice([1, 5, 30])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        clip.write_bytes(data)
        try:
            denoise_video(same, clip, target)
        except SadnetError:
            outcomes.add("error")
        else:
            assert Read(target).frames
            target.unlink()
            outcomes.add("played")
        for partial in tmp_path.glob("*.partial*"):
            partial.unlink()
        assert files(tmp_path) == [name]
    assert outcomes == {"error", "played"}
    assert capfd.readouterr() == ("", "")


def test_damaged_frames_are_counted(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", frames=30, options={"g": "5", "bf": "0"})
    data = bytearray(clip.read_bytes())
    for place in range(len(data) // 2, len(data) * 3 // 4, 40):
        data[place] ^= 0x55
    clip.write_bytes(data)
    notes = denoise_video(same, clip, tmp_path / "out.mp4")
    assert "frames are damaged or left out" in notes[0]
    assert 20 < len(Read(tmp_path / "out.mp4").frames) <= 30
    clip = make(tmp_path / "clip.mov", "prores_ks", "yuv422p10le", frames=40)  # more than a decoder has threads
    data = bytearray(clip.read_bytes())
    middle = data.find(b"icpf", len(data) // 2)
    data[middle + 4 : middle + 200] = bytes(196)
    clip.write_bytes(data)
    (note,) = denoise_video(same, clip, tmp_path / "out.mov")
    assert note.endswith("1 frames are damaged or left out, because they cannot be decoded")
    assert len(Read(tmp_path / "out.mov").frames) == 39


def test_packets_that_the_container_refuses_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make(tmp_path / "clip.mp4", frames=10, audio="aac")
    expected = Read(clip).packets
    pieces = Source.pieces

    def with_late_ones(source: Source) -> Iterator[Piece]:
        first: Any = None
        for frame, packets in pieces(source):
            late = [copied(first, first.stream)] if first else []
            first = first or next(iter(packets), None)
            yield Piece(frame, [*packets, *late])

    monkeypatch.setattr(Source, "pieces", with_late_ones)
    notes = denoise_video(same, clip, tmp_path / "out.mp4")
    assert any("packets of other streams are left out" in note for note in notes)
    assert Read(tmp_path / "out.mp4").packets == expected
