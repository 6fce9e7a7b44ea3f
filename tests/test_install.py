"""What the Makefile installs with: a .venv that works, whatever an earlier run left."""

import subprocess
import sys
from pathlib import Path

import pytest

import install

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(install, "HERE", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "PYTHON", tmp_path / ".venv/bin/python")
    (tmp_path / "pyproject.toml").write_text("not TOML")
    return tmp_path


@pytest.mark.parametrize("left", ["nothing", "no pip", "dangling"])
def test_a_broken_venv_is_made_again_and_pips_failure_is_shown(
    place: Path, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if left == "no pip":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / ".venv"], check=True)
    if left == "dangling":
        (place / ".venv/bin").mkdir(parents=True)
        (place / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert not install.has_pip()
    assert install.main("cpu") != 0  # there is nothing to install here
    assert install.has_pip()
    assert "could not install .[cpu]" in capsys.readouterr().err


def test_a_venv_that_cannot_be_made_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "full").touch()
    install.VENV = place / "full" / ".venv"
    assert install.main("cpu") == 2
    assert capsys.readouterr().err.startswith(f"error: cannot make {install.VENV}: Not a directory")


def test_wrong_call_is_one_line() -> None:
    result = subprocess.run([sys.executable, "install.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "usage" in result.stderr
