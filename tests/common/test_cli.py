"""Exit codes, and lists after one flag."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from common.cli import _repeat_flags, _terminate, application, parse_size, run
from common.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def outcome(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    app = application("Adds numbers.")

    @app.command()
    def add(
        numbers: Annotated[list[int] | None, typer.Argument()] = None,
        sigma: Annotated[list[int], typer.Option()] = [],  # noqa: B006 - Typer copies it
        fail: str = "",
    ) -> None:
        if fail == "ours":
            raise InputError("expected this,\nfound that")
        if fail == "defect":
            raise ZeroDivisionError
        if fail == "interrupt":
            raise KeyboardInterrupt
        if fail == "some":
            raise typer.Exit(1)
        print(sum(numbers or []), sigma)

    with pytest.raises(SystemExit) as stopped:
        run(app, several={"--sigma"}, argv=argv)
    text = capsys.readouterr()
    return int(stopped.value.code or 0), text.out, text.err


def test_a_good_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "1", "2", "--sigma", "30", "50", "70") == (0, "3 [30, 50, 70]\n", "")


def test_values_may_follow_an_equals_sign(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--sigma=30", "50") == (0, "0 [30, 50]\n", "")


@pytest.mark.parametrize(("stdout", "code"), [("ascii", 0), ("full", 2), ("closed", 0)])
def test_a_stdout_that_cannot_take_it(stdout: str, code: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from common import cli\napp = cli.application('Shows a name.')\n"
        "@app.command()\ndef main() -> None:\n    print('\\u00fc.png')\n\ncli.run(app)\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    with open("/dev/full" if stdout == "full" else tmp_path / "out", "w") as out:
        command = [sys.executable, str(program)]
        if stdout == "closed":
            command = ["sh", "-c", '"$0" "$@" >&-', *command]
        result = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (code, code // 2), result.stderr
    if stdout == "ascii":
        assert (tmp_path / "out").read_text() == "\\xfc.png\n"


def test_a_users_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--fail", "ours") == (2, "", "error: expected this, found that\n")


@pytest.mark.parametrize("argv", [["one"], ["--sigma", "many"], ["--nonsense"]])
def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    code, _, text = outcome(capsys, *argv)
    assert (code, text.count("\n"), text[:7]) == (2, 1, "error: ")


def test_other_endings(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--fail", "some")[0] == 1
    assert outcome(capsys, "--fail", "interrupt") == (130, "", "interrupted\n")
    assert outcome(capsys, "--sigma", "30", "-h")[0] == 0
    with pytest.raises(ZeroDivisionError):
        outcome(capsys, "--fail", "defect")


words = st.text("abc1", min_size=1, max_size=3)


@given(st.lists(words, min_size=1), st.lists(words))
def test_values_after_one_flag_are_repeated(values: list[str], rest: list[str]) -> None:
    argv = ["x", "--many", *values, "--other", *rest]
    expected = ["x", *(part for value in values for part in ("--many", value)), "--other", *rest]
    assert _repeat_flags(argv, {"--many"}) == expected
    assert _repeat_flags(argv, set()) == argv


@given(st.lists(words))
def test_nothing_after_two_dashes_is_touched(rest: list[str]) -> None:
    assert _repeat_flags(["--many", "1", "2", "--", "--many", *rest], {"--many"}) == [
        *("--many", "1", "--many", "2", "--", "--many"),
        *rest,
    ]


SIZES = ["480", "480x", "x320", "0x320", "-8x8", "480x320x3", "wide", "99999x99999", "9" * 5000 + "x1", "٣x٣"]


@pytest.mark.parametrize("text", SIZES, ids=lambda text: text[:12])
def test_a_size_is_width_by_height(text: str) -> None:
    assert parse_size("--size", "480x320") == (480, 320)
    with pytest.raises(InputError, match="--size: expected WIDTHxHEIGHT"):
        parse_size("--size", text)


def test_a_second_sigterm_ends_it_at_once() -> None:
    """What hangs in a driver raises no KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
