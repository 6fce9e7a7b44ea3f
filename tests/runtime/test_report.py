"""The JSON line, the tables and the picture say what was measured, and no more."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from common.errors import OutputError
from runtime.measure import Result
from runtime.report import draw, remarks, tables, to_rows
from runtime.roofline import KNOWN, layers

H200 = KNOWN["NVIDIA H200"]
EAGER = "PyTorch eager fp32"


def result(label: str, milliseconds: float, *, on_device: bool = True) -> Result:
    """Of 21 runs around a median, from 10 % below to 10 % above."""
    seconds = [milliseconds * 1e-3 * (0.9 + i / 100) for i in range(21)]
    return Result(
        label,
        f"what runs {label}",
        latency=[2 * s for s in seconds],
        on_device=seconds if on_device else [],
        frames_per_second=100.0,
        device_bytes=5_000_000 if on_device else None,
        host_bytes=7_000_000,
    )


def text(*shown: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        for one in shown:
            console.print(one, highlight=False)
    return captured.get()


def test_a_row_holds_times_memory_work_and_roofline() -> None:
    (row,) = to_rows([result("a", 4.0)], 1920, 1080, H200, [])
    assert row == {
        "engine": "a",
        "runs_on": "what runs a",
        "size": "1920x1080",
        "io": "float32",
        **{"median_ms": 8.0, "p5_ms": 7.28, "p95_ms": 8.72},
        **{"device_median_ms": 4.0, "device_p5_ms": 3.64, "device_p95_ms": 4.36},
        "frames_per_s": 100.0,
        **{"device_mb": 5.0, "host_mb": 7.0},
        "gflop": pytest.approx(2 * 47.0 * 13.5, rel=2e-3),
        "moved_mb": pytest.approx(8152, rel=1e-3),
        "roofline_ms": pytest.approx(1.965, abs=1e-3),
        "of_roofline": pytest.approx(1.965 / 4, abs=1e-3),
        "faster_than": {},
    }


def test_work_is_that_of_the_padded_image_and_of_the_network() -> None:
    gray = result("a", 1.0)
    gray.config = {"channels": 1, "variant": "official"}
    (row,) = to_rows([gray], 481, 321, H200, [])
    work = layers(328, 488, gray.config)
    assert row["gflop"] == round(sum(layer.flop for layer in work) / 1e9, 2)
    assert row["roofline_ms"] == round(H200.seconds(work) * 1e3, 4)


def test_an_engine_without_a_device_has_no_roofline() -> None:
    for rates, on_device in ((H200, False), (None, True)):
        (row,) = to_rows([result("a", 1.0, on_device=on_device)], 64, 64, rates, [])
        assert "roofline_ms" not in row
        assert ("device_median_ms" in row) == on_device
        assert row["gflop"] > 0


def test_rows_are_compared_with_each_peer_that_ran() -> None:
    broken = result("broken", 1.0)
    broken.note = "out of memory"
    results = [result("plan", 2.0), result("cpu", 40.0, on_device=False), broken, result(EAGER, 9.0)]
    plan, cpu, failed, eager = to_rows(results, 64, 64, H200, [EAGER, "broken"])
    assert plan["faster_than"] == {EAGER: {"engine_only": 4.5, "end_to_end": 4.5}}
    assert cpu["faster_than"] == {EAGER: {"end_to_end": 0.23}}
    assert eager["faster_than"] == {}
    assert failed == {"engine": "broken", "runs_on": "what runs broken", "size": "64x64", "note": "out of memory"}


def test_tables_show_the_rows() -> None:
    broken = result("broken", 1.0)
    broken.note = "needs [more] memory"
    alone = result("[plan]", 2.0)
    alone.alone = True
    rows = to_rows([alone, broken, result(EAGER, 90.0)], 1920, 1080, H200, [EAGER])
    assert rows[0]["alone"] is True
    times, work, faster = tables(rows, [EAGER])
    shown = [line.split("│")[1:-1] for line in text(times).splitlines() if "1920x1080" in line]
    assert [[cell.strip() for cell in line] for line in shown] == [
        ["[plan]", "1920x1080", "2.000 (1.820 to 2.180)", "4.000 (3.640 to 4.360)", "100", "1.965", "98%"],
        ["broken", "1920x1080", "-", "-", "-", "-", "-"],
        [EAGER, "1920x1080", "90.0 (81.9 to 98.1)", "180.0 (163.8 to 196.2)", "100", "1.965", "2%"],
    ]
    assert all(word in text(work) for word in ("1269", "8152", "GPU memory MB", "host memory MB"))
    assert text(faster).count("45.00") == 2
    assert remarks(rows)[-1] == "broken at 1920x1080: needs [more] memory"
    assert remarks(rows)[0] == "[plan]: what runs [plan]"


def test_columns_that_nobody_fills_are_left_out() -> None:
    rows = to_rows([result("a", 2.0, on_device=False)], 64, 64, None, [])
    shown = tables(rows, [])
    assert len(shown) == 2  # without peers nothing is faster
    for word in ("engine only", "roofline", "GPU memory"):
        assert word not in text(*shown)


def test_picture_is_drawn_whole_and_replaces_nothing(tmp_path: Path) -> None:
    slow, fast = result(EAGER, 9.0), result("plan", 2.0)
    slow.note = "out of memory"
    rows = [*to_rows([fast], 64, 64, H200, []), *to_rows([slow, fast], 128, 64, H200, [])]
    path = tmp_path / "speed.png"
    draw(rows, "a GPU", path, overwrite=False)
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.std() > 5
    with pytest.raises(OutputError, match="exists already"):
        draw(rows, "a GPU", path, overwrite=False)
    draw(rows, "a GPU", tmp_path / "speed.svg", overwrite=False)
    drawn = (tmp_path / "speed.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["speed.png", "speed.svg"]
