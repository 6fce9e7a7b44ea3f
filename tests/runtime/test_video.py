"""Videos against engines whose every sample is known; the clips are made here, of 64x48 and a few frames."""

import itertools
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.metrics import psnr
from runtime import Denoiser
from runtime.engines.base import Images, Io
from runtime.video import denoise_video
from runtime.video_colour import Coding, add_change
from runtime.video_source import Source
from runtime.video_target import Target, planes_of
from tests.runtime.video_clips import Function, Read, make, noise, picture, same

ASSETS = Path(__file__).parents[2] / "assets"


def assert_same_pictures(path: Path, other: Path) -> None:
    for frame, expected in zip(Read(path).planes(), Read(other).planes(), strict=True):
        for plane, wanted in zip(frame, expected, strict=True):
            np.testing.assert_array_equal(plane, wanted)


# --- Denoiser.denoise_stream ---


class Greedy(Function):
    """Takes three batches before it gives the first result."""

    def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
        on_way: list[Images] = []
        for batch in batches:
            on_way.append(batch)
            if len(on_way) > 3:
                yield self._run(on_way.pop(0))
        yield from map(self._run, on_way)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150), st.sampled_from(["u1", "u2", "f4"]), st.booleans())),
    st.sampled_from([None, 64]),
    st.booleans(),
)
def test_a_stream_of_pictures_is_each_of_them(
    kinds: list[tuple[int, int, str, bool]], tile: int | None, greedy: bool
) -> None:
    rng = np.random.default_rng(0)
    images = [
        (rng.random((h, w, 3) if rgb else (h, w)) * (1 if t == "f4" else 255)).astype(t) for h, w, t, rgb in kinds
    ]
    denoiser = Denoiser((Greedy if greedy else Function)(lambda x: 1 - x * x), tile=tile)
    results = list(denoiser.denoise_stream(iter(images), 0.5))
    assert len(results) == len(images)
    for result, image in zip(results, images, strict=True):
        np.testing.assert_array_equal(result, denoiser.denoise(image, 0.5))


def test_a_stream_that_is_left_closes_the_engines() -> None:
    closed = []

    class Holds(Function):
        def stream(self, batches: Iterable[Images]) -> Generator[Images]:
            self.held = super().stream(batches)  # which keeps it from being closed by nobody's using it
            return self.held

        def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
            try:
                yield from batches
            finally:
                closed.append(True)

    stream = Denoiser(Holds()).denoise_stream(itertools.repeat(np.zeros((8, 8), np.uint8)))
    next(stream)
    assert not closed
    stream.close()
    assert closed


# --- colours ---

LOSSLESS = ["yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "gray", "yuv420p10le", "yuv422p10le"]
LOSSLESS += ["yuv444p12le", "yuv420p16le", "gray10le"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(16, 70),  # FFV1 takes no fewer for all of these formats
    st.integers(16, 70),
    st.integers(1, 6),
    st.sampled_from(LOSSLESS),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 5, 9]),
)
def test_what_the_network_leaves_alone_keeps_every_sample(
    tmp_path: Path, width: int, height: int, frames: int, pixels: str, color_range: int, matrix: int
) -> None:
    """FFV1 is lossless, so that this holds of the whole way; of codes that no display shows, too."""
    clip, target = tmp_path / "clip.mkv", tmp_path / "same.mkv"
    size = (width, height)
    make(clip, "ffv1", pixels, frames=frames, size=size, draw=noise, color_range=color_range, colorspace=matrix)
    assert denoise_video(same, clip, target, overwrite=True) == []
    assert_same_pictures(target, clip)
    assert Read(target).colours[:2] == Read(clip).colours[:2]


@pytest.mark.parametrize("matrix", [1, 5, 7, 9])
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("pixels", ["yuv444p", "yuv444p10le", "yuv420p"])
def test_the_network_sees_the_colours_that_are_shown(
    tmp_path: Path, pixels: str, color_range: int, matrix: int
) -> None:
    """Red, green and blue change places; swscale, which knows nothing of ours, sees the same."""
    clip, target = tmp_path / "clip.mkv", tmp_path / "turned.mkv"
    tags: dict[str, Any] = {"color_range": color_range, "colorspace": matrix}

    def flat(pixels: str, size: tuple[int, int], seed: int) -> av.VideoFrame:
        colours = np.random.default_rng(seed).integers(40, 215, (3, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        frame = av.VideoFrame.from_ndarray(colours, "rgb24")
        return frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=color_range)

    make(clip, "ffv1", pixels, frames=2, draw=flat, **tags)
    denoise_video(Denoiser(Function(lambda images: images[:, [2, 0, 1]])), clip, target)
    shown = [[frame.to_ndarray(format="rgb24") for frame in Read(path).frames] for path in (clip, target)]
    for before, after in zip(*shown, strict=True):
        np.testing.assert_allclose(after.astype(int), before[..., [2, 0, 1]], atol=3)


@pytest.mark.parametrize(("lines", "matrix"), [(48, 5), (720, 1)])
def test_the_matrix_of_an_untagged_file_is_the_one_that_players_guess(tmp_path: Path, lines: int, matrix: int) -> None:
    results = []
    for tag in (2, matrix):  # 2: unspecified
        clip, target = tmp_path / f"{tag}.mkv", tmp_path / f"{tag}_turned.mkv"
        make(clip, "ffv1", "yuv444p", frames=1, size=(8, lines), draw=picture, colorspace=tag)
        denoise_video(Denoiser(Function(lambda images: images[:, [2, 0, 1]])), clip, target)
        results.append(target)
    assert_same_pictures(*results)


def test_samples_below_black_and_above_white_are_denoised_too(tmp_path: Path) -> None:
    """The mean of noise around black is black: what is clipped before the network would lighten it."""

    def dark(pixels: str, size: tuple[int, int], seed: int) -> av.VideoFrame:
        frame = av.VideoFrame(*size, pixels)
        for plane, middle in zip(planes_of(frame), (16, 128, 128), strict=True):
            plane[...] = middle + np.random.default_rng(seed).integers(-8, 9, plane.shape)
        return frame

    clip, target = tmp_path / "clip.mkv", tmp_path / "mean.mkv"
    make(clip, "ffv1", "yuv444p", frames=1, draw=dark)
    mean = Function(lambda images: np.broadcast_to(images.mean((2, 3), keepdims=True), images.shape))
    denoise_video(Denoiser(mean), clip, target)
    for plane, middle in zip(Read(target).planes()[0], (16, 128, 128), strict=True):
        assert np.abs(plane.astype(int) - middle).mean() < 1


@pytest.mark.parametrize("io", ["float32", "uint8"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_the_change_is_what_the_network_makes_of_it(tmp_path: Path, size: tuple[int, int], io: Io) -> None:
    """A negative: of Y and chroma alike, with no more error than rounding, for engines of bytes too."""
    clip, target = tmp_path / "clip.mkv", tmp_path / "negative.mkv"
    make(clip, "ffv1", "yuv420p", frames=2, size=size)
    types = []

    def negative(images: Images) -> Images:
        types.append(images.dtype)
        return 255 - images if io == "uint8" else 1 - images

    denoise_video(Denoiser(Function(negative, io)), clip, target)
    assert set(types) == {np.dtype(io)}
    for before, after in zip(Read(clip).planes(), Read(target).planes(), strict=True):
        for old, new, total in zip(before, after, (255, 256, 256), strict=True):
            np.testing.assert_allclose(new.astype(int), total - old.astype(int), atol=1)


def test_codes_stay_within_their_bits() -> None:
    planes = [np.array([[1000, 20]], np.uint16)]
    add_change(planes, np.array([[0.5, -0.5]], np.float32), Coding(10, 1, 1, full_range=True, matrix=1, lines=1))
    assert planes[0].tolist() == [[1023, 0]]


def test_chroma_changes_by_the_mean_over_its_pixels(tmp_path: Path) -> None:
    clip, target = make(tmp_path / "clip.mkv", "ffv1", "yuv420p", frames=1), tmp_path / "chequered.mkv"

    def chequered(images: Images) -> Images:
        """Blue is lighter and darker in turn."""
        result = images.copy()
        result[:, 2] += np.where(np.indices(images.shape[2:]).sum(0) % 2, 0.1, -0.1).astype(np.float32)
        return result

    denoise_video(Denoiser(Function(chequered)), clip, target)
    (luma, *chroma), (changed, *same_chroma) = Read(clip).planes()[0], Read(target).planes()[0]
    assert np.abs(changed.astype(int) - luma).min() > 0
    np.testing.assert_array_equal(chroma, same_chroma)


def test_frames_that_the_decoder_still_needs_are_not_written_to(tmp_path: Path) -> None:
    """Every eighth frame is the same noise, which H.264 takes from eight frames before."""

    def again(pixels: str, size: tuple[int, int], seed: int) -> av.VideoFrame:
        return noise(pixels, size, seed % 8)

    options = {"bf": "0", "refs": "16", "sc_threshold": "0"}
    clip = make(tmp_path / "clip.mp4", pixels="gray", frames=32, options=options, draw=again)
    target = tmp_path / "negative.mp4"
    denoise_video(Denoiser(Function(lambda images: 1 - images)), clip, target, quality=100)
    for before, after in zip(Read(clip).planes(), Read(target).planes(), strict=True):
        assert psnr(after[0] / 255, 1 - before[0] / 255) > 35


def test_strength_blends(tmp_path: Path) -> None:
    clip, target = make(tmp_path / "clip.mkv", "ffv1", "gray", frames=1), tmp_path / "half.mkv"
    denoise_video(Denoiser(Function(lambda images: images * 0)), clip, target, strength=0.25)
    (before,), (after,) = Read(clip).planes()[0], Read(target).planes()[0]
    np.testing.assert_allclose(after, before * 0.75, atol=0.51)


# --- memory and speed ---


@pytest.mark.parametrize("slow", ["engine", "encoder"])
def test_few_frames_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    decoded, written, most = itertools.count(1), itertools.count(1), []
    pieces, write = Source.pieces, Target.write
    counts = {"decoded": 0, "written": 0}

    def counted_pieces(source: Source) -> Iterator[Any]:
        for piece in pieces(source):
            counts["decoded"] = next(decoded)
            most.append(counts["decoded"] - counts["written"])
            yield piece

    def counted_write(target: Target, *arguments: Any) -> None:
        time.sleep(0.01 * (slow == "encoder"))
        write(target, *arguments)
        counts["written"] = next(written)

    def engine(images: Images) -> Images:
        time.sleep(0.01 * (slow == "engine"))
        return images

    clip = make(tmp_path / "clip.mp4", frames=30)
    monkeypatch.setattr(Source, "pieces", counted_pieces)
    monkeypatch.setattr(Target, "write", counted_write)
    denoise_video(Denoiser(Function(engine)), clip, tmp_path / "out.mp4")
    assert counts == {"decoded": 31, "written": 30}  # the first frame of the output is read back
    # Two wait before the network and two after it, one is in each of the three stages.
    assert max(most[:30]) <= 7


def test_decoding_denoising_and_encoding_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame waits until the stage before has begun the next one: in one thread none would ever go on."""
    frames = 6
    decoded, denoised = ([threading.Event() for _ in range(frames + 2)] for _ in range(2))
    pieces, write, numbers = Source.pieces, Target.write, itertools.count()

    def told_pieces(source: Source) -> Iterator[Any]:
        for number, piece in enumerate(pieces(source)):
            decoded[number].set()
            yield piece
        decoded[frames].set()

    def engine(images: Images) -> Images:
        number = next(numbers)
        denoised[number].set()
        assert decoded[number + 1].wait(10)
        if number == frames - 1:
            denoised[frames].set()
        return images

    def waiting_write(target: Target, *arguments: Any) -> None:
        assert denoised[target.frames + 1].wait(10)
        write(target, *arguments)

    clip = make(tmp_path / "clip.mp4", frames=frames)
    monkeypatch.setattr(Source, "pieces", told_pieces)
    monkeypatch.setattr(Target, "write", waiting_write)
    denoise_video(Denoiser(Function(engine)), clip, tmp_path / "out.mp4")
    assert len(Read(tmp_path / "out.mp4").frames) == frames


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    for name in ("clip.mp4", "clip.mkv"):  # Matroska holds no count: it is a guess from the duration
        seen.clear()
        clip = make(tmp_path / name, frames=7)
        denoise_video(same, clip, tmp_path / f"out{clip.suffix}", report=lambda *numbers: seen.append(numbers))
        assert seen == [(done, 7) for done in range(1, 8)]


# --- the whole way ---


def test_the_bundled_model_denoises_a_clip(tmp_path: Path) -> None:
    clean = np.asarray(cv2.imread(str(ASSETS / "astronaut_clean.png")))[100:148, 200:264]

    def noisy(pixels: str, size: tuple[int, int], seed: int) -> av.VideoFrame:
        sample = clean + np.random.default_rng(seed).normal(0, 25, clean.shape)
        return av.VideoFrame.from_ndarray(np.clip(sample, 0, 255).astype(np.uint8), "bgr24").reformat(format=pixels)

    clip, target = (
        make(tmp_path / "clip.mp4", pixels="yuv444p", frames=3, draw=noisy, audio="aac"),
        tmp_path / "out.mp4",
    )
    with Denoiser(ASSETS / "blind_color.onnx", threads=1) as denoiser:
        assert denoise_video(denoiser, clip, target) == []
    gains = []
    for before, after in zip(Read(clip).frames, Read(target).frames, strict=True):
        levels = [psnr(frame.to_ndarray(format="bgr24") / 255, clean / 255) for frame in (before, after)]
        gains.append(levels[1] - levels[0])
    print(f"PSNR rises by {min(gains):.2f} to {max(gains):.2f} dB")
    assert all(gain > 5 for gain in gains)
    assert Read(target).packets == Read(clip).packets
