"""Tiles that are chosen by the memory that is free, and the bound that no picture breaks."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import Denoiser, lookahead, memory
from runtime.engines import ort
from runtime.engines.base import Engine, Images, SizeRange
from runtime.lookahead import LookAhead
from runtime.memory import BYTES_A_PIXEL, HOST_PIXELS, SHARE, device_bytes, pixels_in_host
from runtime.tiles import SIDES, TILE, choose_side

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9


def test_what_the_system_does_not_tell_is_not_known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    assert pixels_in_host() is None


def test_a_devices_memory_is_the_drivers_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: tuple[Any, ...] = (0, 3_000, 10_000)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", SimpleNamespace(cudaMemGetInfo=lambda: answer))
    import cuda.bindings

    monkeypatch.setattr(cuda.bindings, "runtime", sys.modules["cuda.bindings.runtime"], raising=False)
    assert device_bytes() == (3_000, 10_000)
    answer = (35, None, None)  # no driver
    assert device_bytes() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert device_bytes() is None


class Blurs(Engine):
    """Remembers what it was given; has room for `pixels`."""

    name, channels = "double", 3

    def __init__(self, pixels: int | None, sizes: tuple[SizeRange, ...] = (SizeRange(),)) -> None:
        self.pixels, self.sizes = pixels, sizes
        self.asked = 0
        self.shapes: set[tuple[int, ...]] = set()

    def pixels_at_once(self) -> int | None:
        self.asked += 1
        return self.pixels

    def _run(self, images: Images) -> Images:
        self.shapes.add(images.shape)
        return images


@pytest.mark.parametrize(
    ("free", "side"),
    [(None, TILE), (0, 256), (GB, 256), (4.1 * GB, 256), (4.3 * GB, 512), (500 * GB, 512)],
)
def test_tiles_on_a_cpu(monkeypatch: pytest.MonkeyPatch, free: float | None, side: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: free if free is None else int(free))
    assert choose_side(pixels_in_host()) == side


def test_few_sizes_of_tiles() -> None:
    """Where other programs take a little more or less, pictures come out the same."""
    chosen = [choose_side(pixels) for pixels in range(0, 2_000_000, 1000)]
    assert sorted(set(chosen), reverse=True) == list(SIDES)
    assert chosen == sorted(chosen)


def test_memory_chooses_the_tiles_once_a_run() -> None:
    engine = Blurs(256 * 256)
    denoiser = Denoiser(engine)
    image = np.zeros((600, 700, 3), np.uint8)
    for engine.pixels in (256 * 256, 10**9):
        denoiser.denoise(image)
    assert denoiser.side == 256
    assert engine.asked == 1
    assert {max(shape[2:]) for shape in engine.shapes} <= {248, 256}
    assert Denoiser(Blurs(10**9)).side == 1024
    roomy = Blurs(10**9)
    Denoiser(roomy).denoise(image)
    assert roomy.shapes == {(1, 3, 600, 704)}


def test_memory_is_not_asked_for_where_the_choice_is_made() -> None:
    asked = Blurs(0)
    assert Denoiser(asked, tile=640).side == 640
    plan = Blurs(0, (SizeRange((64, 64), (640, 640)),))
    Denoiser(plan).denoise(np.zeros((600, 640, 3), np.uint8))
    assert (asked.asked, plan.asked) == (0, 0)
    assert plan.shapes == {(1, 3, 600, 640)}


def test_onnx_runtime_asks_for_the_memory_that_it_computes_in(
    tmp_path: Path, write_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ort.OrtEngine(write_model(tmp_path / "m.onnx"))
    monkeypatch.setattr(memory, "free_bytes", lambda: 100 * GB)
    assert engine.pixels_at_once() == HOST_PIXELS
    engine._device = "cuda"
    answers = iter([None, (20 * GB, 24 * GB)])
    monkeypatch.setattr(ort, "device_bytes", lambda: next(answers))
    assert [engine.pixels_at_once() for _ in range(2)] == [None, 20 * GB // SHARE // BYTES_A_PIXEL]


def test_pictures_on_their_way_leave_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, room in ((None, lookahead.MOST_BYTES), (10**12, lookahead.MOST_BYTES), (4000, 1000)):
        monkeypatch.setattr(lookahead, "free_bytes", lambda free=free: free)
        ahead = LookAhead([], lambda job, data: pytest.fail("nothing to decode"), 1)
        assert ahead._room == room
        ahead.close()
