"""What is timed, how often, in which order and on what; and that a contender's failure is its own alone."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import pytest

from common.errors import InputError, ModelError
from common.images import read_picture
from runtime import measure
from runtime.engines import Engine
from runtime.engines.base import Images, Io, SizeRange
from runtime.measure import PHOTO, ROUNDS, WARM_UP, Contender, Result, picture

Events = list[tuple[str, str, int]]
"""Who, what, how often."""


class Double(Engine):
    """Notes in `events` what it is asked for. fails: (what, which time it is asked for that) ends in `error`."""

    name = "double"

    def __init__(
        self,
        label: str,
        events: Events,
        *,
        io: Io = "float32",
        channels: int = 3,
        on_device: bool = False,
        fails: tuple[str, int] | None = None,
        error: Exception | None = None,
    ) -> None:
        self.label, self.events, self.io, self.channels = label, events, io, channels
        self.on_device, self.fails, self.error = on_device, fails, error or ModelError("out of\nmemory")
        self.asked: Counter[str] = Counter()
        self.given: list[Images] = []

    def note(self, what: str, count: int = 1) -> None:
        self.events.append((self.label, what, count))
        self.asked[what] += 1
        if self.fails == (what, self.asked[what]):
            raise self.error

    def run(self, images: Images) -> Images:
        self.note("run")
        self.given.append(images)
        return images

    def _run(self, images: Images) -> Images:
        raise AssertionError("not called")

    def stream(self, batches: Iterable[Images]) -> Generator[Images]:
        for images in batches:
            self.note("frame")
            time.sleep(0.1 if self.asked["frame"] <= WARM_UP else 0.005)
            yield images

    def seconds_on_device(self, images: Images, repeat: int) -> Sequence[float] | None:
        self.given.append(images)
        if not self.on_device:
            return None
        self.note("device", repeat)
        return [0.25] * repeat

    def close(self) -> None:
        self.note("close")


def run(*opens: Callable[[], Engine], width: int = 37, height: int = 50, repeat: int = 4) -> list[Result]:
    contenders = [Contender(f"contender {i}", opened) for i, opened in enumerate(opens)]
    return measure.measure(contenders, width, height, repeat)


def test_every_engine_gets_the_same_picture_in_turn() -> None:
    events: Events = []
    colour, gray = Double("a", events), Double("b", events, channels=1)
    results = run(lambda: colour, lambda: gray)
    runs = [who for who, what, _ in events if what == "run"]
    assert runs == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * (1 + 4)
    assert sorted(events[-2:]) == [("a", "close", 1), ("b", "close", 1)]
    assert [result.label for result in results] == ["contender 0", "contender 1"]
    for result in results:
        assert len(result.latency) == 4
        assert (result.name, result.on_device, result.note, result.alone) == ("double", [], None, False)
        assert result.frames_per_second == pytest.approx(4 / sum(result.latency))
    assert [result.config for result in results] == [{"channels": 3}, {"channels": 1}]
    for images in (*colour.given[:WARM_UP], colour.given[-1]):
        np.testing.assert_array_equal(images, picture(37, 50, 3))
    np.testing.assert_array_equal(gray.given[-1], picture(37, 50, 1))


@pytest.mark.parametrize("repeat", [1, 2, 7])
def test_times_on_the_device_are_taken_in_turn_on_images_of_the_engines_type(repeat: int) -> None:
    events: Events = []
    floats, bytes_ = Double("a", events, on_device=True), Double("b", events, on_device=True, io="uint8")
    results = run(lambda: floats, lambda: bytes_, repeat=repeat)
    assert [result.on_device for result in results] == [[0.25] * repeat] * 2
    asked = [(who, count) for who, what, count in events if what == "device"]
    rounds = min(ROUNDS, repeat)
    assert [who for who, _ in asked] == ["a", "b"] * rounds
    assert sum(count for who, count in asked if who == "a") == repeat
    kinds = [(images.dtype, images.shape) for images in (floats.given[WARM_UP], bytes_.given[WARM_UP])]
    assert kinds == [(np.dtype("f4"), (1, 3, 56, 40)), (np.dtype("u1"), (1, 56, 40, 3))]


def test_frames_a_second_are_those_of_a_stream_after_its_first_frames() -> None:
    events: Events = []
    (result,) = run(lambda: Double("a", events, on_device=True), repeat=10)
    assert sum(what == "frame" for _, what, _ in events) == WARM_UP + 10
    assert result.frames_per_second is not None
    assert 20 < result.frames_per_second <= 200  # 5 ms a frame, after three of 100 ms


@pytest.mark.parametrize("fails", [("run", 1), ("run", WARM_UP + 2), ("device", 2), ("frame", 3)])
def test_who_fails_is_noted_and_the_others_are_timed(fails: tuple[str, int]) -> None:
    events: Events = []
    failed, timed = run(
        lambda: Double("a", events, on_device=True, fails=fails), lambda: Double("b", events, on_device=True)
    )
    assert (failed.note, timed.note) == ("out of memory", None)
    assert (len(timed.latency), len(timed.on_device)) == (4, 4)
    of_a = [what for who, what, _ in events if who == "a"]
    asked = of_a[: len(of_a) // 2]
    assert of_a == asked * 2  # once beside the other, once alone
    assert (asked[-2:], asked.count("close")) == ([fails[0], "close"], 1)


def test_who_cannot_run_beside_the_others_is_timed_alone() -> None:
    events: Events = []
    fails = iter([("run", 2), None])
    first, second = run(lambda: Double("a", events, fails=next(fails)), lambda: Double("b", events))
    assert (first.note, first.alone, len(first.latency)) == (None, True, 4)
    assert (second.note, second.alone, len(second.latency)) == (None, False, 4)
    last_of_b = max(i for i, event in enumerate(events) if event[0] == "b")
    assert [what for _, what, _ in events[last_of_b + 1 :]] == ["run"] * (WARM_UP + 1 + 4) + ["close"]


def test_memory_error_of_the_host_is_noted() -> None:
    (result,) = run(lambda: Double("a", [], fails=("run", 1), error=MemoryError()))
    assert result.note == "out of memory"


def test_a_size_that_is_not_taken_is_noted_and_never_run() -> None:
    events: Events = []
    engine = Double("a", events)
    engine.sizes = (SizeRange((320, 480), (320, 480)), SizeRange((8, 8), (48, 40)))
    (refused,) = run(lambda: engine, height=50)
    assert (refused.note, refused.name) == ("does not take this size", "double")
    assert [what for _, what, _ in events] == ["close"]
    (taken,) = run(lambda: engine, height=48)
    assert taken.note is None


def test_a_missing_file_ends_it_all_with_everything_closed() -> None:
    events: Events = []

    def missing() -> Engine:
        raise InputError("no such file")

    with pytest.raises(InputError, match="no such file"):
        run(lambda: Double("a", events), missing)
    assert events[-1] == ("a", "close", 1)


def test_an_engine_that_cannot_be_loaded_is_noted() -> None:
    def damaged() -> Engine:
        raise ModelError("damaged")

    results = run(damaged, lambda: Double("b", []))
    assert [result.note for result in results] == ["damaged", None]


@pytest.mark.parametrize(("width", "height"), [(480, 320), (501, 7), (1921, 1080)])
def test_picture_is_the_photo_at_any_size(width: int, height: int) -> None:
    photo = read_picture(PHOTO).pixels
    made = picture(width, height, 3)
    assert made.shape == (1, -(-height // 8) * 8, -(-width // 8) * 8, 3)
    assert made.dtype == np.uint8
    assert made.flags.c_contiguous
    known = made[0, :500, :500]
    np.testing.assert_array_equal(known, photo[: known.shape[0], : known.shape[1]])
    np.testing.assert_array_equal(picture(width, height, 1), made[..., :1])


class Greedy(Double):
    """Holds 64 MiB, and while it first runs another 64."""

    def __init__(self) -> None:
        super().__init__("a", [])
        self.held = np.ones(2**26, np.uint8)

    def run(self, images: Images) -> Images:
        np.ones(2**26, np.uint8).sum()
        return images


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("hole", [False, True], ids=["as it is", "after what was freed in the heap"])
def test_host_memory_is_the_peak_of_loading_and_running(hole: bool) -> None:
    found = []
    if hole:  # glibc would give it to the contender, and nobody would see that it takes any
        np.ones(2**24, np.uint8)  # freed, and from then on smaller blocks are of the heap
        blocks = [np.ones(2**23, np.uint8) for _ in range(11)]
        del blocks[:10]
    for _ in range(3):  # a system short of memory may take back pages of libraries meanwhile
        (result,) = run(Greedy)
        found.append(result.host_bytes)
        if found[-1] == pytest.approx(2**27, abs=2**23):
            return
    pytest.fail(f"expected {2**27} bytes once, found {found}")


def test_device_memory_is_what_loading_and_running_took(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([(15_000, 20_000), (8_000, 20_000)])
    monkeypatch.setattr(measure, "device_bytes", lambda: next(told))
    (result,) = run(lambda: Double("a", []))
    assert result.device_bytes == 7_000
