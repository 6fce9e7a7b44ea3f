"""A script whose packages are not installed says which command installs them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"


SCRIPTS = ["train/run.py", "train/evaluate.py", "export/to_onnx.py", "export/release.py", "plugins/benchmark.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_pytorch_a_script_is_one_line(script: str) -> None:
    command = [sys.executable, "-c", BLOCKED + RUN, script, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "make dev" in result.stderr
