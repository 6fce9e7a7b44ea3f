"""Training on 800 images of DIV2K's size keeps within host memory that does not grow with them (docs/training.md)."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GIB = 2**30
LIMIT = 3 * GIB
"""Of anonymous memory; pages of the bank come on top, as long as nothing else wants the room."""


@pytest.fixture
def photos(tmp_path: Path) -> Iterator[Path]:
    """800 images of 2040x1356, no two alike. The folder, with the bank, goes away: pytest would keep 8 GB."""
    (tmp_path / "photos").mkdir()
    small = np.random.default_rng(0).integers(0, 256, (68, 102, 3), dtype=np.uint8)
    image = cv2.resize(small, (2040, 1356), interpolation=cv2.INTER_CUBIC)
    for number in range(800):
        image[:16, :16] = number % 256, number // 256, 0
        assert cv2.imwrite(str(tmp_path / f"photos/{number:04}.jpg"), image)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_800_images_train_within_3_gib(photos: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    changes = [
        f"data.cache={photos / 'banks'}",
        "data.crop=64",
        "data.batch=4",
        "run.threads=1",
        "run.validation_crop=64",
    ]
    sets = [word for change in changes for word in ("--set", change)]
    paths = ["--data", str(photos / "photos"), "--output", str(photos / "run")]
    with subprocess.Popen(
        [sys.executable, "train/run.py", "--config", "train/configs/blind_color.toml", *paths, "--steps", "20", *sets],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
    ) as process:
        peak = {"RssAnon": 0, "RssFile": 0}
        while process.poll() is None:
            for name, value in memory(process.pid).items():
                peak[name] = max(peak[name], value)
            time.sleep(0.05)
    bank = max(path.stat().st_size for path in (photos / "banks").glob("*.u8"))
    print(f"peak: {peak['RssAnon'] / GIB:.2f} GiB of its own, {peak['RssFile'] / GIB:.2f} GiB mapped", end=" ")
    print(f"from files, of them a bank of {bank / GIB:.2f} GiB")
    assert process.returncode == 0
    assert bank > 760 * 2040 * 1356 * 3
    assert 0.1 * GIB < peak["RssAnon"] < LIMIT


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process in memory: its own, and pages of files, which the kernel drops where it needs room."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile") if name in values}
