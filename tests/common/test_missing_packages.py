"""A script whose packages are not installed says which command installs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.tensorrt_library import MODULES, Backend, load_library

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("backend", Backend)
def test_ctrl_c_while_tensorrt_loads_is_no_missing_package(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library's initialization turns what Python raises in it into an ImportError."""
    (tmp_path / f"{MODULES[backend]}.py").write_text(
        "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULES[backend], raising=False)
    with pytest.raises(KeyboardInterrupt):
        load_library(backend)


SCRIPTS = ["train/run.py", "train/evaluate.py", "export/to_onnx.py", "export/release.py", "plugins/benchmark.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_pytorch_a_script_is_one_line(script: str) -> None:
    command = [sys.executable, "-c", BLOCKED + RUN, script, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "make dev" in result.stderr
