"""Every probe gets an answer, whatever it does; a fault is told once, where its root is."""

import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DependencyError, ModelError
from common.probing import LONGEST, Answer, Answers, FaultError, Probe, ask

TODO = "pip install it"


def raising(error: BaseException, cause: BaseException | None = None) -> Probe:
    def look() -> str:
        raise error from cause

    return Probe(look, TODO)


def absent(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("probe", "answer"),
    [
        (Probe(lambda: "1.2", TODO), Answer("ok", "1.2")),
        (Probe(lambda: Answer("ok", "1.2", "but")), Answer("ok", "1.2", "but")),
        (raising(FaultError("missing", "none")), Answer("missing", "none", TODO)),
        (raising(FaultError("broken", "one", "mend it")), Answer("broken", "one", "mend it")),
        (raising(absent("numpy")), Answer("missing", "no package numpy", TODO)),
        (
            raising(ImportError("libfoo.so:\n cannot open")),
            Answer("broken", "ImportError: libfoo.so: cannot open", TODO),
        ),
        (raising(OSError("libfoo.so")), Answer("broken", "OSError: libfoo.so", TODO)),
        (raising(RuntimeError("built for NumPy 1")), Answer("broken", "RuntimeError: built for NumPy 1", TODO)),
        (
            raising(DependencyError("expected X, found none (No module: x): pip install x"), absent("x")),
            Answer("missing", "expected X, found none (No module: x)", "pip install x"),
        ),
        (
            raising(DependencyError("expected X, found half"), OSError()),
            Answer("broken", "expected X, found half", TODO),
        ),
        (
            raising(ModelError("a: found 1: build it again: python export/to_plan.py a: b")),
            Answer("broken", "a: found 1: build it again", "python export/to_plan.py a: b"),
        ),
    ],
)
def test_what_a_probe_raises_is_its_answer(probe: Probe, answer: Answer) -> None:
    assert probe.answer() == answer


def test_a_page_of_an_error_is_cut() -> None:
    assert len(raising(ImportError("x " * 9999)).answer().found) <= LONGEST


ROOT = Path(__file__).resolve().parents[2]
TELLING = f"""
import atexit, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from common.probing import Answer, Probe, tell
"""


def child(code: str, limit: float = 60) -> Answer:
    return ask([sys.executable, "-c", TELLING + code], Probe(lambda: "", TODO), limit)


def test_an_answer_comes_out_of_its_process() -> None:
    """Though a library prints what it likes, and would hang when it is unloaded."""
    answer = Answer("ok", "\udcff 1.2 \N{SNOWMAN}", "x")
    code = f"""
print("chatter", flush=True)
def look():
    atexit.register(time.sleep, 600)
    print("chatter", flush=True)
    os.write(1, b"chatter")
    return Answer(**{asdict(answer)!r})
tell(Probe(look))
"""
    assert child(code) == answer


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("os.abort()", r"ended by signal 6"),
        ("import ctypes; ctypes.string_at(0)", r"ended by signal 11"),
        ("tell(Probe(lambda: sys.exit('no licence')))", r"ended by exit code 1: no licence"),
        ("print('{')", r"ended by exit code 0"),
        ("os._exit(3)", r"ended by exit code 3"),
    ],
)
def test_a_crash_is_an_answer(code: str, found: str) -> None:
    assert child(code) == Answer("broken", found, TODO)


def test_a_hang_is_an_answer() -> None:
    """Of the process, and of one that it has started and that keeps its pipes open."""
    for code in ("time.sleep(600)", "import subprocess; subprocess.run(['sleep', '20'])"):
        began = time.monotonic()
        assert child(code, limit=1) == Answer("broken", "no answer within 1 s", TODO)
        assert time.monotonic() - began < 15


def test_what_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def popen(*arguments: Any, start: Any = subprocess.Popen, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert child("time.sleep(60)", limit=0.1).found == "no answer within 0.1 s"
    assert [process.wait(10) for process in started] == [-signal.SIGKILL]


def test_a_process_that_cannot_be_started(tmp_path: Path) -> None:
    answer = ask([str(tmp_path / "python")], Probe(lambda: "", TODO), 1)
    assert answer.status == "broken"
    assert answer.found.startswith("no process can be started: ")


@given(after=st.lists(st.sets(st.integers(0, 7)), min_size=8, max_size=8), bad=st.sets(st.integers(0, 7)))
def test_a_fault_is_told_once_and_at_its_root(after: list[set[int]], bad: set[int]) -> None:
    """Whatever comes after what: who is asked, and which faults each probe stands for."""
    befores = [{other for other in others if other < index} for index, others in enumerate(after)]
    probes = {str(i): Probe(lambda: "", after=tuple(map(str, sorted(others)))) for i, others in enumerate(befores)}
    asked, lock = list[str](), threading.Lock()

    def asking(name: str) -> Answer:
        with lock:
            asked.append(name)
        return Answer("missing" if int(name) in bad else "ok", name)

    roots: list[set[int]] = []
    for index, others in enumerate(befores):
        above = set().union(*(roots[other] for other in others))
        roots.append(above or ({index} & bad))
    with Answers(probes, asking) as answers:
        for index, expected in enumerate(roots):
            answer = answers.answer(str(index))
            assert {int(name) for name in answers.faults(str(index))} == expected
            assert (answer is None) == bool(expected - {index})
            assert answer is None or answer.found == str(index)
    assert sorted(asked) == sorted(str(index) for index, expected in enumerate(roots) if expected <= {index})


def test_leaving_asks_no_more() -> None:
    """As Ctrl-C does: what has begun ends, the rest is not begun."""
    begun = list[str]()

    def asking(name: str) -> Answer:
        begun.append(name)
        time.sleep(0.2)
        return Answer("ok", "")

    probes = {str(index): Probe(lambda: "") for index in range(1000)}
    with pytest.raises(KeyboardInterrupt), Answers(probes, asking):
        raise KeyboardInterrupt
    assert len(begun) < len(probes)
