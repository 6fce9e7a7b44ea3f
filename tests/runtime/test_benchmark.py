"""The benchmark's figures are of the engines that it names, and its JSON line is the table's."""

import json
import subprocess
import sys
from pathlib import Path

from runtime.benchmark import time_in_turn
from runtime.engines import Engine
from runtime.engines.base import Images

ROOT = Path(__file__).resolve().parents[2]


class CountingEngine(Engine):
    """Remembers what it was given."""

    name = "counting"

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.shapes: list[tuple[int, ...]] = []

    def _run(self, images: Images) -> Images:
        self.shapes.append(images.shape)
        return images


def test_every_engine_gets_the_same_images_in_turn() -> None:
    colour, gray = CountingEngine(3), CountingEngine(1)
    seconds = time_in_turn({"a": colour, "b": gray}, width=37, height=50, repeat=4)
    assert colour.shapes == [(1, 3, 56, 40)] * 6  # two warm-up runs, four that count
    assert gray.shapes == [(1, 1, 56, 40)] * 6
    assert [len(values) for values in seconds.values()] == [4, 4]


def test_json_line_holds_the_model_and_its_peer(tmp_path: Path) -> None:
    command = [sys.executable, "runtime/benchmark.py", "--repeat", "1", "--size", "64x48", "--threads", "1"]
    command += ["--peer", "assets/blind_color.safetensors", "--json", str(tmp_path / "out.jsonl")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    line = result.stdout.splitlines()[-1]
    assert (tmp_path / "out.jsonl").read_text() == line + "\n"
    rows = json.loads(line)["rows"]
    assert [("ONNX" in row["runs_on"], "PyTorch" in row["runs_on"]) for row in rows] == [(True, False), (False, True)]
    assert all(0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"] for row in rows)
