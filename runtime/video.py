"""Videos, frame by frame, with all else that is in their files.

    notes = denoise_video(denoiser, Path("clip.mp4"), Path("clip_denoised.mp4"))

Every frame is denoised on its own. Noise that is left differs from frame to frame, and so does what the network takes
for noise: flat areas may flicker or seem to boil where the noise is strong. A lower strength hides it. Denoisers that
look at neighbouring frames avoid it; this one does not.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import DependencyError, InputError, OutputError
from common.files import ending, whole_file
from runtime.denoiser import Denoiser, check_strength

if TYPE_CHECKING:  # PyAV is an extra, and this module is imported where no video is
    from av import VideoFrame

    from runtime.video_source import Packets, Piece, Source
    from runtime.video_target import Target

VIDEO_SUFFIXES = frozenset({".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""Of the files that are read and written. AVI is not: it holds no times of frames, and not every sound."""

AHEAD = 2
"""Frames that are decoded before they are asked for."""
BEHIND = 2
"""Denoised frames that wait for the encoder."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Shot:
    frame: "VideoFrame"
    packets: "Packets"
    seen: NDArray[Any]
    """The frame's picture, float32 in [0, 1]."""
    given: NDArray[Any]
    """`seen` in the type that suits the engine."""


def denoise_video(
    denoiser: Denoiser,
    source: Path,
    target: Path,
    *,
    strength: float = 1.0,
    overwrite: bool = False,
    report: Callable[[int, int | None], None] = lambda done, total: None,
    quality: int = 95,
) -> list[str]:
    """Denoise a video, each frame on its own, and keep what else is in the file.

    Frames keep their times, size, depth, chroma sampling, colours (their coding, HDR metadata) and rotation. Audio,
    subtitles and other streams are copied packet by packet; chapters and metadata are kept. The codec is the source's
    where the container holds it and PyAV encodes it with the same depth and chroma (FFmpeg reads ProRes 4444 as 12
    bits, and writes 10). A few frames are in memory at once, besides those that the encoder looks ahead.

    Args:
        denoiser: used by this thread; others decode and encode.
        source, target: the target's suffix, one of `VIDEO_SUFFIXES`, tells its container.
        strength: 0 to 1, see `Denoiser.denoise`.
        overwrite: replace `target` where it exists.
        report: called with the frames denoised so far and those in all, where that is known, which may be a guess.
        quality: 1 to 100; 95 is visually lossless, H.264 at a constant rate factor of 16. FFV1 and ProRes have no
            choice of it.

    Returns lines for the user: what could not be kept or was amiss in the source.

    `target` appears whole or not at all. An error, Ctrl-C or SIGTERM midway leaves the frames done so far, with their
    sound, in a playable file of its own, `clip.partial.mp4` beside `clip.mp4`, which the text of the error names, that
    of a KeyboardInterrupt too; a full disk leaves nothing.

    Raises InputError where the source cannot be read, is interlaced or has more bits than the model takes, or an
    argument is out of range; OutputError where the target exists or cannot be written; DependencyError where PyAV is
    missing; and what `Denoiser.denoise` raises.
    """
    check_strength(strength)
    if not 1 <= quality <= 100:
        raise InputError(f"quality: expected 1 to 100, found {quality}")
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        kinds = ", ".join(sorted(VIDEO_SUFFIXES))
        raise InputError(f"{target}: expected a video file ({kinds}), found {ending(target.suffix)}")
    try:
        from runtime.video_source import Source
        from runtime.video_target import Target
    except ModuleNotFoundError as error:
        raise DependencyError(f"expected the package {error.name}, found none: pip install -e '.[video]'") from error
    with Source(source) as clip, contextlib.closing(clip.pieces()) as pieces:
        if os.path.realpath(source) == os.path.realpath(target):
            raise OutputError(f"{source} would be written over {target}, its input: choose another --output")
        with _interrupted_once(), whole_file(target, overwrite=overwrite) as temporary:
            first = next(pieces)
            with Target(temporary, target, clip, first.frame, quality) as written:
                try:
                    _denoise(denoiser, clip, itertools.chain([first], pieces), written, strength, report)
                    written.finish()
                    written.check()
                except BaseException as error:
                    if kept := _keep_partial(written, error):
                        error.args = (f"{error}; {kept}" if str(error) else kept,)
                    raise
            return [*clip.notes(), *(f"{target}: {note}" for note in written.notes)]


def _denoise(
    denoiser: Denoiser,
    clip: "Source",
    pieces: Iterator["Piece"],
    written: "Target",
    strength: float,
    report: Callable[[int, int | None], None],
) -> None:
    """Decode, denoise and encode, each in a thread of its own. When it is left no thread of it runs."""
    as_bytes = denoiser.engine.io == "uint8"
    if as_bytes and written.coding.depth > 8:
        raise InputError(
            f"{clip.path}: expected an 8-bit video, because the model's images have 8 bits, found "
            f"{written.coding.depth}: use a model exported with --io float32"
        )
    on_way: deque[_Shot] = deque()

    def given() -> Iterator[NDArray[Any]]:
        for shot in shots:
            on_way.append(shot)
            yield shot.given

    with (
        contextlib.closing(_ahead(_shots(pieces, written, as_bytes), AHEAD)) as shots,
        ThreadPoolExecutor(1) as encoding,
        contextlib.closing(denoiser.denoise_stream(given(), strength)) as results,
    ):
        waiting: deque[Future[None]] = deque()
        for done, clean in enumerate(results, 1):
            waiting.append(encoding.submit(_write, written, on_way.popleft(), clean))
            if len(waiting) > BEHIND:
                waiting.popleft().result()
            report(done, clip.total)
        for future in waiting:
            future.result()


def _shots(pieces: Iterator["Piece"], written: "Target", as_bytes: bool) -> Iterator[_Shot]:
    from runtime.video_colour import to_rgb
    from runtime.video_target import planes_of

    for frame, packets in pieces:
        frame = written.fit(frame)
        seen = to_rgb(planes_of(frame), written.coding)
        yield _Shot(frame, packets, seen, np.rint(seen * 255).astype(np.uint8) if as_bytes else seen)


def _write(written: "Target", shot: _Shot, clean: NDArray[Any]) -> None:
    if clean.dtype == np.uint8:
        clean = np.divide(clean, 255, dtype=np.float32)
    written.write(shot.frame, clean - shot.seen, shot.packets)


def _ahead(items: Iterator[T], count: int) -> Generator[T]:
    """`items`, taken by another thread, up to `count` before they are asked for."""
    thread = ThreadPoolExecutor(1)
    try:
        waiting = deque(thread.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _keep_partial(written: "Target", error: BaseException) -> str:
    """Make a playable file of the frames so far; says where it is, or nothing where there is none."""
    if not written.frames or isinstance(error, OutputError):
        return ""
    names = (f"{written.name.stem}.partial{number or ''}{written.name.suffix}" for number in itertools.count())
    partial = next(path for path in map(written.name.with_name, names) if not os.path.lexists(path))
    try:
        written.finish()
        written.path.replace(partial)
    except (OutputError, OSError):
        return ""
    return f"the first {written.frames} frames are kept in {partial}"


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """Makes one KeyboardInterrupt of SIGINT and SIGTERM, unless the caller has other plans for them.

    Those after the first count for nothing: threads are to end, and the frames so far to be kept.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    ours = {number: handler for number, handler in usual.items() if main and signal.getsignal(number) == handler}
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
