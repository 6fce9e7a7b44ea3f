"""Denoise many files: reading, decoding, encoding and writing go on beside the network, in bounded memory.

    summary = denoise_files(denoiser, [Job(Path("photo.jpg"), Path("clean.jpg"))])

Pictures pass through three hands: threads read and decode those that come next, the calling thread denoises, threads
encode and write those that are done. Videos are `runtime.video`'s, whole.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, SadnetError, TakenError
from common.files import check_free
from common.images import (
    MOST_PIXELS,
    Picture,
    check_encodable,
    decode_picture,
    eight_bits,
    write_picture,
)
from runtime.denoiser import Denoiser, check_strength
from runtime.jobs import Job
from runtime.lookahead import THREADS, Item, LookAhead
from runtime.video import denoise_video


@dataclass(frozen=True)
class Settings:
    """What is done with every file. Raises InputError where one is out of range.

    strength     0 to 1, see `Denoiser.denoise`
    depth        8: pictures of 16 bits are rounded to 8; None: they keep theirs
    quality      1 to 100, of JPEG, WebP and video
    overwrite    replace targets that exist
    skip_existing
                 leave them, also those that another run has written meanwhile
    most_pixels  of a picture; larger ones are refused before they are decoded
    """

    strength: float = 1.0
    depth: int | None = None
    quality: int = 95
    overwrite: bool = False
    skip_existing: bool = False
    most_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.depth not in (None, 8):
            raise InputError(f"depth: expected 8, or none to keep the picture's own, found {self.depth}")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality: expected 1 to 100, found {self.quality}")


@dataclass(frozen=True)
class Outcome:
    """Of one file. `fault` None: its target is written; `notes` say what that does not hold; `gray`: it is a picture
    without colours."""

    job: Job
    fault: SadnetError | None = None
    notes: tuple[str, ...] = ()
    gray: bool = False


@dataclass
class Summary:
    """Of a run; files that it had not come to when it was interrupted are neither done nor faults."""

    done: int = 0
    skipped: int = 0
    """Whose targets appeared meanwhile, where those are to be left."""
    faults: list[SadnetError] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: str | None = None
    """Ctrl-C ended it; the text is what there is to say of that, often nothing."""


def denoise_files(
    denoiser: Denoiser,
    jobs: Sequence[Job],
    settings: Settings | None = None,
    *,
    report: Callable[[Outcome], None] = lambda outcome: None,
    progress: Callable[[float], None] = lambda files: None,
) -> Summary:
    """Denoise every job's source into its target, which appears whole or not at all; one that fails stops no other.

    Ctrl-C ends the run early: what is denoised is still written, and `Summary.interrupted` is set.

    report: called with each file's outcome, in the order of `jobs`.
    progress: called with the number of files that the network is done with; fractions are of a video.
    Both are called by the calling thread.
    """
    began = time.perf_counter()
    run = _Run(denoiser, jobs, settings or Settings(), report, progress)
    try:
        run.all_of()
    except KeyboardInterrupt as interrupt:
        run.summary.interrupted = str(interrupt)
    finally:
        run.close()
    run.summary.seconds = time.perf_counter() - began
    return run.summary


class _Run:
    def __init__(
        self,
        denoiser: Denoiser,
        jobs: Iterable[Job],
        settings: Settings,
        report: Callable[[Outcome], None],
        progress: Callable[[float], None],
    ) -> None:
        self.summary = Summary()
        self._denoiser, self._settings, self._report, self._progress = denoiser, settings, report, progress
        self._ahead = LookAhead(jobs, self._decode, settings.most_pixels)
        self._encoders = ThreadPoolExecutor(THREADS)
        self._untold: deque[Item] = deque()  # in the order of the jobs
        self._denoised = 0

    def all_of(self) -> None:
        # All threads start now: Ctrl-C while a thread starts would lose sight of what it is to write.
        started = threading.Barrier(THREADS, timeout=1)
        for _ in range(THREADS):
            self._encoders.submit(started.wait)
        self._ahead.start()
        while item := self._take(self._ahead.next()):
            if item.job.video:
                self._denoise_video(item)
            else:
                self._denoise_pictures(item)
        while self._untold:
            self._untold[0].writing.exception()  # waits for it
            self._tell()

    def close(self) -> None:
        """End all threads; what is denoised is written first, and Ctrl-C changes nothing of that."""
        while True:
            try:
                self._ahead.close()
                self._encoders.shutdown()
                self._tell()
            except KeyboardInterrupt:
                self.summary.interrupted = self.summary.interrupted or ""
            else:
                return

    def _decode(self, job: Job, data: bytes) -> Picture:
        """In a thread. What cannot be written is refused here, before the minutes that a large picture takes."""
        check_free(job.target, overwrite=self._settings.overwrite)
        picture = decode_picture(data, str(job.source), most_pixels=self._settings.most_pixels)
        if self._settings.depth == 8 and self._denoiser.engine.io == "uint8":
            picture = eight_bits(picture)  # the engine takes no others
        if self._denoiser.engine.channels == 1 and picture.gray and picture.pixels.ndim == 3:
            picture = replace(picture, pixels=picture.pixels[..., 0].copy())
        depth = np.dtype(np.uint8) if self._settings.depth == 8 else picture.pixels.dtype
        height, width = picture.pixels.shape[:2]
        check_encodable(job.target.suffix, depth, picture.transparent, (height, width))
        return picture

    def _take(self, item: Item | None) -> Item | None:
        if item:
            self._untold.append(item)
        return item

    def _denoise_pictures(self, first: Item) -> None:
        """The first and those that are decoded behind it, as one stream for the engine."""
        on_way: deque[tuple[Item, Picture]] = deque()
        strength = self._settings.strength

        def given() -> Iterator[NDArray[Any]]:
            item: Item | None = first
            while item:
                try:
                    picture = item.take()
                except (SadnetError, MemoryError) as error:
                    self._fail(item, error)
                else:
                    on_way.append((item, picture))
                    yield picture.pixels
                    del picture  # nothing but `on_way` is to hold it
                item = self._take(self._ahead.next_decoded())

        try:
            with contextlib.closing(self._denoiser.denoise_stream(given(), strength)) as results:
                for pixels in results:
                    self._write(*on_way.popleft(), pixels)
                    del pixels  # or it would be held until the next is there
                    self._advance()
        except (SadnetError, MemoryError):
            while on_way:  # it is one of these: alone, each shows whether it is
                item, picture = on_way.popleft()
                try:
                    pixels = self._denoiser.denoise(picture.pixels, strength)
                except (SadnetError, MemoryError) as error:
                    self._fail(item, error)
                else:
                    self._write(item, picture, pixels)
        self._advance()

    def _write(self, item: Item, picture: Picture, pixels: NDArray[Any]) -> None:
        self._encoders.submit(self._encode_item, item, replace(picture, pixels=pixels))
        self._denoised += 1

    def _encode_item(self, item: Item, picture: Picture) -> None:
        """In a thread."""
        try:
            item.writing.set_result(self._encode(item.job, picture))
        except BaseException as error:
            item.writing.set_exception(error)
        finally:
            self._ahead.give_back(item)

    def _encode(self, job: Job, picture: Picture) -> tuple[str, ...]:
        settings = self._settings
        if settings.depth == 8:
            picture = eight_bits(picture)
        overwrite, quality = settings.overwrite, settings.quality
        lost = write_picture(job.target, picture, overwrite=overwrite, quality=quality, consume=True)
        return (f"{job.target} does not keep the metadata of {job.source} ({', '.join(lost)})",) if lost else ()

    def _denoise_video(self, item: Item) -> None:
        def frames(done: int, total: int | None) -> None:
            self._tell()
            self._progress(self._denoised + (min(done / total, 1) if total else 0))

        settings = self._settings
        try:
            notes = denoise_video(
                self._denoiser,
                item.job.source,
                item.job.target,
                strength=settings.strength,
                overwrite=settings.overwrite,
                report=frames,
                quality=settings.quality,
            )
        except (SadnetError, MemoryError) as error:
            self._fail(item, error)
        else:
            self._ahead.give_back(item)
            item.writing.set_result(tuple(notes))
            self._denoised += 1
        self._advance()

    def _fail(self, item: Item, error: SadnetError | MemoryError) -> None:
        self._ahead.give_back(item)
        item.writing.set_exception(error)
        self._denoised += 1

    def _advance(self) -> None:
        self._tell()
        self._progress(self._denoised)

    def _tell(self) -> None:
        """Report the outcomes that are known, in order. Raises what is no fault of a file."""
        while self._untold and self._untold[0].writing.done():
            item = self._untold[0]
            error = item.writing.exception()
            if isinstance(error, TakenError) and self._settings.skip_existing:
                self.summary.skipped += 1
                del self._untold[0]
                continue
            if error is None:
                outcome = Outcome(item.job, notes=item.writing.result(), gray=item.gray)
            elif isinstance(error, SadnetError | MemoryError):
                outcome = Outcome(item.job, _named(error, item.job.source))
            else:
                raise error
            # No call from here to `del`: at a call Ctrl-C might come in, and the file be counted twice or not at all.
            if outcome.fault:
                self.summary.faults += [outcome.fault]
            else:
                self.summary.done += 1
            del self._untold[0]
            self._report(outcome)


def _named(error: BaseException, source: Path) -> SadnetError:
    """The error as one of that file."""
    if isinstance(error, SadnetError):
        return error if str(source) in str(error) else type(error)(f"{source}: {error}")
    return InputError(f"{source}: expected a picture that fits into memory, found a larger one")
