"""Programs of `runtime/` as people run them, and the files that they are run on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from common.images import Picture, write_picture

ROOT = Path(__file__).resolve().parents[2]


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "runtime" / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def photo(
    path: Path, seed: int = 0, dtype: type[np.unsignedinteger] = np.uint8, size: tuple[int, int] = (37, 53)
) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(dtype)
    write_picture(path, Picture(pixels), overwrite=False)
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
