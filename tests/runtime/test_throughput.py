"""Folders beside the engine alone: what is timed, on which pictures, and what the figures are."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError, ModelError
from common.images import Picture, write_picture
from runtime import benchmark, throughput
from runtime.engines.base import Engine, Images
from runtime.measure import Contender
from runtime.report import folder_table
from runtime.throughput import Folder, folder_row, measure_folder

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Sleeps(Engine):
    """Takes `seconds` for a batch, and remembers how many batches each stream had."""

    name, channels = "double", 3

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self.streams: list[int] = []
        self.closed = False

    def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
        self.streams.append(0)
        for images in batches:
            self.streams[-1] += 1
            yield self._run(images)

    def _run(self, images: Images) -> Images:
        time.sleep(self.seconds)
        return images

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures, one of them in two tiles' breadth and one in a folder below."""
    folder = tmp_path / "photos"
    for number in range(6):
        path = folder / ("below" if number == 5 else "") / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (600 if number == 3 else 40, 600, 3), np.uint8)
        write_picture(path, Picture(pixels), overwrite=False)
    return folder


def test_rounds_of_a_folder(photos: Path) -> None:
    engine = Sleeps()
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    told: list[int] = []
    found = measure_folder(Contender("label", lambda: engine), photos, 2, told.append)
    assert told == [1, 2]
    tiles = 5 + 4
    assert (found.label, found.name, found.path) == ("label", "double", photos)
    assert (found.images, found.pixels) == (6, 600 * (5 * 40 + 600))
    assert [len(times) for times in (found.engine, found.files, found.pipeline)] == [2, 2, 2]
    for alone, files, pipeline in zip(found.engine, found.files, found.pipeline, strict=True):
        assert alone[0] >= tiles * engine.seconds
        assert pipeline[0] >= tiles * engine.seconds
        assert alone[1] < tiles * engine.seconds  # it sleeps
        assert files.min() > 0
    assert sum(engine.streams) == (1 + 2 * 2) * tiles  # with a round of all shapes to warm up
    assert max(engine.streams) == tiles  # alone it is given all at once
    assert engine.closed
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before


def test_the_engine_alone_is_given_no_more_than_memory_holds(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "TOGETHER", 3 * 600 * 40 + 1)  # two of the small ones
    engine = Sleeps(0)
    found = measure_folder(Contender("label", lambda: engine), photos, 1)
    assert engine.streams[:6] == 2 * [2, 5, 2]  # to warm up, then measured
    assert found.images == 6


def test_figures_of_a_row() -> None:
    times = [np.array([(8, 7), (9, 8), (9.5, 9)]), np.array([(2, 1)] * 3), np.array([(10, 10)] * 3)]
    found = Folder("a.onnx", "double", Path("photos"), 10, 5_000_000, *map(list, times))
    assert folder_row(found) == {
        "engine": "a.onnx",
        "runs_on": "double",
        "folder": "photos",
        "images": 10,
        "megapixels": 5.0,
        "engine_s": 9.0,
        "files_s": 2.0,
        "pipeline_s": 10.0,
        "engine_images_per_s": 1.111,
        "pipeline_images_per_s": 1.0,
        "of_engine": 0.9,
        "of_engine_range": [0.8, 0.95],
        "of_processor_time": 0.8,
    }
    cells = [next(iter(column.cells)) for column in folder_table([folder_row(found)]).columns]
    assert cells == ["a.onnx", "photos", "10", "5.0", "9.00", "2.00", "10.00", "1.00", "90.0%", "80.0%"]


def test_the_documented_figures_are_the_result_files() -> None:
    """And those that issue 6 asks for."""
    (row,) = json.loads((DOCS / "results" / "pipeline_cpu.json").read_text())["folders"]
    low, high = row["of_engine_range"]
    cells = (f"{row['engine_s']:.2f} s", f"{row['files_s']:.2f} s", f"{row['pipeline_s']:.2f} s")
    shares = (f"{row['of_engine']:.1%} ({low:.1%} to {high:.1%} in three rounds)", f"{row['of_processor_time']:.1%}")
    line = " | ".join((*cells, *shares)).replace("%", " %")
    assert f"| {line} |" in (DOCS / "benchmarks.md").read_text()
    assert row["of_engine"] >= 0.9


def test_what_cannot_be_measured_is_one_error(photos: Path, tmp_path: Path) -> None:
    contender = Contender("label", lambda: Sleeps(0))
    with pytest.raises(
        InputError, match=r"^--pipeline .*missing: expected a folder of pictures, found nothing of that name$"
    ):
        measure_folder(contender, tmp_path / "missing", 1)
    with pytest.raises(InputError, match=r"^--pipeline .*0\.png: expected a folder of pictures, found a file$"):
        measure_folder(contender, photos / "0.png", 1)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    with pytest.raises(InputError, match="expected images, found only videos"):
        measure_folder(contender, tmp_path / "films", 1)
    (photos / "9.png").write_text("no picture")
    with pytest.raises(InputError, match=r"9\.png: expected an image"):
        measure_folder(contender, photos, 1)


def test_the_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "open_engine", lambda path, threads: Sleeps(0.001))
    defaults: dict[str, Any] = dict.fromkeys(("engine", "peer", "compile_", "threads", "plot", "size"))
    options = defaults | {"repeat": 1, "overwrite": False, "json_": tmp_path / "out.json", "pipeline": [photos]}
    benchmark.main(**options)
    shown = capsys.readouterr().out
    assert "of CPU time" in shown.partition("{")[0]  # the table
    assert shown.splitlines()[-1] + "\n" == (tmp_path / "out.json").read_text()
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(row["engine"], row["images"]) for row in found["folders"]] == [("assets/real_color.onnx", 6)]
    assert found["usable_cores"] >= 1
    for wrong in ({"size": ["64x64"]}, {"peer": Path("a")}, {"plot": Path("a.png")}):
        with pytest.raises(InputError, match="--pipeline: expected it without"):
            benchmark.main(**options | {"json_": None} | wrong)


def test_a_network_that_fails_is_told(photos: Path) -> None:
    class Fails(Sleeps):
        def _run(self, images: Images) -> Images:
            raise ModelError("cannot")

    with pytest.raises(ModelError, match="cannot"):
        measure_folder(Contender("label", Fails), photos, 1)
