"""Many files: what is denoised, in which memory, how fast, and what an error or Ctrl-C leaves."""

import _thread
import errno
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ModelError, OutputError
from common.images import Picture, decode_picture, decoded_size, read_picture, write_picture
from runtime import lookahead, pipeline
from runtime.denoiser import Denoiser
from runtime.engines.base import Engine, Images, Io
from runtime.jobs import Job
from runtime.pipeline import Outcome, Settings, denoise_files


class Negative(Engine):
    """What is denoised is the negative; `before` is called with every batch."""

    name, channels = "double", 3

    def __init__(self, before: Callable[[Images], object] = lambda images: None, io: Io = "float32") -> None:
        self.before, self.io = before, io

    def _run(self, images: Images) -> Images:
        self.before(images)
        return 255 - images if self.io == "uint8" else 1 - images


class Overlapping(Negative):
    """Takes a batch or two more before it gives a result, as engines with a device do."""

    def _stream(self, batches: Any) -> Iterator[Images]:
        waiting: list[Images] = []
        for images in batches:
            waiting.append(self._run(images))
            if len(waiting) > 2:
                yield waiting.pop(0)
        yield from waiting


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (24, 40), dtype: Any = np.uint8) -> Path:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (*size, 3), dtype, endpoint=True)
    write_picture(path, Picture(pixels), overwrite=True)
    return path


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [Job(photo(tmp_path / "in" / f"{i:02}.png", i), tmp_path / "out" / f"{i:02}.png") for i in range(20)]


def check(job: Job) -> None:
    np.testing.assert_array_equal(read_picture(job.target).pixels, 255 - read_picture(job.source).pixels)


@pytest.mark.parametrize("engine", [Negative(), Overlapping(), Overlapping(io="uint8")])
def test_every_file_is_denoised_and_told_in_order(jobs: list[Job], engine: Engine) -> None:
    outcomes: list[Outcome] = []
    counts: list[float] = []
    summary = denoise_files(Denoiser(engine), jobs, report=outcomes.append, progress=counts.append)
    assert (summary.done, summary.faults, summary.interrupted) == (20, [], None)
    assert outcomes == [Outcome(job) for job in jobs]
    assert counts == sorted(counts)
    assert counts[-1] == 20
    for job in jobs:
        check(job)


@pytest.mark.parametrize("engine", [Negative, Overlapping])
def test_a_fault_anywhere_stops_nothing_else(jobs: list[Job], engine: type[Negative]) -> None:
    """At reading, decoding, denoising (for ever, or once), encoding and writing."""
    bad = {1: "missing", 3: "damaged", 6: "network", 7: "network", 11: "alpha", 12: "exists", 15: "memory"}
    jobs[1].source.unlink()
    jobs[3].source.write_bytes(jobs[3].source.read_bytes()[:-30])
    marked = {}
    for number in (6, 7, 15):
        pixels = read_picture(jobs[number].source).pixels.copy()
        pixels[0, 0] = marked[number] = (number, 99, 98)
        write_picture(jobs[number].source, Picture(pixels), overwrite=True)
    write_picture(jobs[11].source, Picture(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)), overwrite=True)
    jobs[11] = Job(jobs[11].source, jobs[11].target.with_suffix(".jpg"))
    jobs[12].target.parent.mkdir(parents=True)
    jobs[12].target.write_bytes(b"the user's")
    spoiled = [9]  # this one only while it is with others

    def failing(images: Images) -> None:
        first = tuple(np.rint(images[0, :, 0, 0] * 255).astype(int))
        if first == marked[15]:
            raise MemoryError
        if first in (marked[6], marked[7]):
            raise ModelError("the network cannot be run")
        if spoiled and first == tuple(read_picture(jobs[9].source).pixels[0, 0]):
            spoiled.clear()
            raise ModelError("once")

    outcomes: list[Outcome] = []
    summary = denoise_files(Denoiser(engine(failing)), jobs, report=outcomes.append)
    assert [outcome.job for outcome in outcomes] == jobs
    assert [number for number, outcome in enumerate(outcomes) if outcome.fault] == list(bad)
    assert (summary.done, len(summary.faults)) == (13, 7)
    words = ("nothing of that name", "cannot be decoded", "be run", "be run", "transparency", "exists already", "fits")
    for number, word in zip(bad, words, strict=True):
        text = str(outcomes[number].fault)
        assert word in text
        assert text.count(str(jobs[number].source)) == 1
    for number in set(range(20)) - set(bad):
        check(jobs[number])
    assert jobs[12].target.read_bytes() == b"the user's"
    assert len(list(jobs[0].target.parent.iterdir())) == 14


def test_reading_and_writing_go_on_beside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture is denoised for as long as it takes to decode the third and to write the first."""
    decoded, written, runs = threading.Event(), threading.Event(), list[bool]()

    def decoding(data: bytes, name: str, **options: Any) -> Picture:
        picture = decode_picture(data, name, **options)
        if Path(name).stem == "2":
            decoded.set()
        return picture

    def writing(path: Path, *arguments: Any, **options: Any) -> Any:
        result = write_picture(path, *arguments, **options)
        if path.stem == "0":
            written.set()
        return result

    def network(_: Any) -> None:
        runs.append(len(runs) != 1 or (decoded.wait(30) and written.wait(30)))

    monkeypatch.setattr(pipeline, "decode_picture", decoding)
    monkeypatch.setattr(pipeline, "write_picture", writing)
    jobs = [Job(photo(tmp_path / f"{i}.png", i), tmp_path / "out" / f"{i}.png") for i in range(5)]
    assert denoise_files(Denoiser(Negative(network)), jobs).done == 5
    assert runs == [True] * 5


@pytest.mark.parametrize("engine", [Negative, Overlapping])
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: type[Negative]) -> None:
    """No more pictures are decoded than there is room for; one that is too large for the bound is done alone."""
    size = 4 * 64 * 64
    large = 5
    monkeypatch.setattr(lookahead, "COPIES", 1)
    monkeypatch.setattr(lookahead, "MOST_BYTES", 3 * (size + 20_000))  # of a file there are its bytes too
    held: dict[str, int] = {}
    most: list[tuple[int, set[str]]] = []
    lock = threading.Lock()

    def decoding(data: bytes, name: str, **options: Any) -> Picture:
        with lock:
            held[Path(name).stem] = len(data)
            most.append((sum(held.values()), set(held)))
        return decode_picture(data, name, **options)

    def writing(path: Path, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.005)
        result = write_picture(path, *arguments, **options)
        with lock:
            del held[path.stem]
        return result

    monkeypatch.setattr(pipeline, "decode_picture", decoding)
    monkeypatch.setattr(pipeline, "write_picture", writing)
    sizes = [(512, 512) if i == large else (64, 64) for i in range(15)]
    jobs = [Job(photo(tmp_path / f"{i}.png", i, size), tmp_path / "out" / f"{i}.png") for i, size in enumerate(sizes)]
    assert denoise_files(Denoiser(engine()), jobs).done == 15
    assert max(len(names) for _, names in most) in (2, 3)
    assert all(names == {str(large)} for _, names in most if str(large) in names)


def test_few_files_are_ahead_of_a_slow_network(tmp_path: Path) -> None:
    """However small the pictures are, a folder of a million is not read into memory."""
    jobs = [Job(tmp_path / f"{i}.png", tmp_path / "out" / f"{i}.png") for i in range(lookahead.MOST_FILES * 3)]
    begun = []

    def counted() -> Iterator[Job]:
        for job in jobs:
            begun.append(job)
            yield job

    ahead = lookahead.LookAhead(counted(), lambda job, data: Picture(np.zeros((1, 1), np.uint8)), 1000)
    ahead.start()
    time.sleep(0.2)
    assert len(begun) == lookahead.MOST_FILES + 1  # the last waits for a place
    given = []
    while item := ahead.next():
        given.append(item.job)
        ahead.give_back(item)
    ahead.close()
    assert given == jobs


def test_a_picture_borrows_for_all_of_its_copies(jobs: list[Job]) -> None:
    ahead = lookahead.LookAhead(jobs[:1], lambda job, data: Picture(np.zeros((1, 1), np.uint8)), 1000)
    ahead.start()
    item = ahead.next()
    ahead.close()
    data = jobs[0].source.read_bytes()
    assert item
    assert item.size == len(data) + 4 * decoded_size(data)


@pytest.mark.parametrize("suffix", [".png", ".mp4"])
def test_what_fails_and_videos_give_their_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Or a folder with more of them than there are places would never end."""
    given: list[Job] = []
    monkeypatch.setattr(lookahead.LookAhead, "give_back", lambda _, item: given.append(item.job))
    monkeypatch.setattr(pipeline, "denoise_video", lambda *_, **__: [])
    jobs = [Job(tmp_path / f"{i}{suffix}", tmp_path / "out" / f"{i}{suffix}") for i in range(3)]
    summary = denoise_files(Denoiser(Negative()), jobs)
    assert (summary.done, len(summary.faults)) == ((0, 3) if suffix == ".png" else (3, 0))  # no such pictures
    assert given == jobs


def test_ctrl_c_leaves_whole_files_only(jobs: list[Job]) -> None:
    seen = 0

    def interrupt(images: Images) -> None:
        nonlocal seen
        seen += 1
        if seen == 7:
            _thread.interrupt_main()

    outcomes: list[Outcome] = []
    summary = denoise_files(Denoiser(Negative(interrupt)), jobs, report=outcomes.append)
    assert summary.interrupted == ""
    assert 0 < summary.done < 20
    assert summary.faults == []
    assert [outcome.job for outcome in outcomes] == jobs[: summary.done]
    written = sorted(jobs[0].target.parent.iterdir())
    assert written == [job.target for job in jobs[: summary.done]]
    for job in jobs[: summary.done]:
        check(job)
    rest = [job for job in jobs if not job.target.exists()]
    assert denoise_files(Denoiser(Negative()), rest).done == 20 - summary.done
    assert threading.active_count() == 1


def test_ctrl_c_at_any_time(jobs: list[Job]) -> None:
    """Between any two steps of the calling thread: what is counted is there, and no thread stays."""
    ended = []
    for milliseconds in range(0, 60, 2):
        timer = threading.Timer(milliseconds / 1000, _thread.interrupt_main)
        summary = None
        try:
            timer.start()
            summary = denoise_files(Denoiser(Overlapping()), jobs)
            timer.join()
            time.sleep(0.01)  # where it was too late
        except KeyboardInterrupt:  # before it began, or when it was over
            timer.join()
        deadline = time.monotonic() + 10
        while threading.active_count() > 1:
            assert time.monotonic() < deadline
            gc.collect()  # idle threads end with their pool
            time.sleep(0.001)
        written = sorted(jobs[0].target.parent.glob("*")) + sorted(jobs[0].target.parent.glob(".*"))
        assert written == [job.target for job in jobs[: len(written)]]
        if summary:
            assert len(written) == summary.done
            ended.append(summary.done)
        for path in written:
            path.unlink()
    assert len(set(ended)) > 2


@pytest.mark.parametrize("where", ["pipeline.decode_picture", "pipeline.write_picture", "lookahead.read_file"])
def test_a_defect_of_ours_is_not_told_as_a_bad_file(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"runtime.{where}", defect)
    with pytest.raises(ZeroDivisionError):
        denoise_files(Denoiser(Negative()), jobs)
    assert threading.active_count() == 1


def test_a_full_disk_fails_one_file_and_leaves_nothing(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    summary = denoise_files(Denoiser(Negative()), jobs[:3])
    assert (summary.done, [type(fault) for fault in summary.faults]) == (0, [OutputError] * 3)
    assert all("No space left" in str(fault) for fault in summary.faults)
    assert list(jobs[0].target.parent.iterdir()) == []


def test_what_cannot_be_written_costs_no_time_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, wide = photo(tmp_path / "a.png", dtype=np.uint16), photo(tmp_path / "b.png", size=(1, 16_384))
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    ran: list[Images] = []
    jobs = [Job(source, tmp_path / target) for target in ("a.jpg", "file/a.png", "locked/below/a.png")]
    jobs.append(Job(wide, tmp_path / "b.webp"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "locked")  # root may write anywhere
    summary = denoise_files(Denoiser(Negative(ran.append)), jobs)
    told = ("JPEG holds 8 bits", "is not a folder", "no permission", "WebP holds 16383 pixels a side")
    for fault, words in zip(summary.faults, told, strict=True):
        assert words in str(fault)
    assert not ran


@pytest.mark.parametrize("skip", [False, True])
def test_what_another_run_has_written_meanwhile_is_not_made_again(jobs: list[Job], skip: bool) -> None:
    """It is there before the picture is decoded, or appears while the network has it."""
    jobs = jobs[:2]
    write_picture(jobs[0].target, Picture(np.zeros((2, 2, 3), np.uint8)), overwrite=False)
    theirs = jobs[0].target.read_bytes()
    ran: list[int] = []

    def appears(images: Images) -> None:
        ran.append(len(images))
        jobs[1].target.write_bytes(theirs)

    told: list[Outcome] = []
    summary = denoise_files(Denoiser(Negative(appears)), jobs, Settings(skip_existing=skip), report=told.append)
    assert (summary.done, summary.skipped, len(summary.faults)) == ((0, 2, 0) if skip else (0, 0, 2))
    assert len(told) == len(summary.faults)
    assert ran == [1]
    assert [job.target.read_bytes() for job in jobs] == [theirs, theirs]
