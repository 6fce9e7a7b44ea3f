"""Questions whose asking may crash or hang: each is asked in a process of its own, and always gets an answer.

Needs nothing but Python, as `runtime/doctor.py` does, which has to start where no package is installed.
"""

from __future__ import annotations  # the doctor tells an older Python so, which reads this file before

import contextlib
import json
import os
import re
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import NoReturn

from common.errors import SadnetError

LONGEST = 600
"""Characters of a line: some packages explain over a page why they do not load."""


@dataclass(frozen=True)
class Answer:
    """status: "ok", "missing" or "broken". found: versions, or the fault. todo: what mends it, or ""."""

    status: str
    found: str
    todo: str = ""


class FaultError(Exception):
    """What a probe raises where it knows the fault; see `Answer`."""

    def __init__(self, status: str, found: str, todo: str = "") -> None:
        super().__init__(found)
        self.answer = Answer(status, found, todo)


@dataclass(frozen=True)
class Probe:
    """look: returns what it finds where all is well, and raises anything where it is not.

    todo: what mends each fault that comes without a word of its own.
    after: probes whose faults make this one's answer worthless; it is asked once they are ok.
    """

    look: Callable[[], str | Answer]
    todo: str = ""
    after: tuple[str, ...] = ()

    def answer(self) -> Answer:
        """In this process: only a crash or a hang escapes."""
        try:
            found = self.look()
            answer = found if isinstance(found, Answer) else Answer("ok", found)
        except FaultError as error:
            answer = error.answer
        except ModuleNotFoundError as error:
            answer = Answer("missing", f"no package {error.name}")
        except SadnetError as error:
            status = "missing" if isinstance(error.__cause__, ModuleNotFoundError) else "broken"
            text = " ".join(str(error).split())
            command = re.fullmatch(r"(.+?): ((?:pip|python|make) .+)", text)
            answer = Answer(status, *command.groups()) if command else Answer(status, text)
        except Exception as error:  # a broken package raises what it likes when it is imported
            answer = Answer("broken", f"{type(error).__name__}: {error}")
        todo = answer.todo if answer.todo or answer.status == "ok" else self.todo
        return Answer(answer.status, textwrap.shorten(answer.found, LONGEST), todo)


def tell(probe: Probe) -> NoReturn:
    """Print the answer as the last line and end this process at once: some libraries hang while they are unloaded."""
    os.write(1, f"\n{json.dumps(asdict(probe.answer()))}".encode())
    os._exit(0)


def ask(command: Sequence[str], probe: Probe, limit: float) -> Answer:
    """The answer of a process that calls `tell`; "broken" where it crashes or takes more than `limit` seconds."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return Answer("broken", f"no process can be started: {error}")
    try:
        out, chatter = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # what hangs in a driver does not end when it is killed
            child.communicate(timeout=1)
        return Answer("broken", f"no answer within {limit:g} s", probe.todo)
    try:
        return Answer(**json.loads(out.rpartition(b"\n")[2]))  # before it, what libraries have printed
    except ValueError:
        code = child.returncode
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        said = chatter.decode(errors="replace").strip().rpartition("\n")[2]
        return Answer("broken", textwrap.shorten(f"ended by {end}: {said}".rstrip(": "), LONGEST), probe.todo)


class Answers:
    """What all `probes` find, as many of them asked at once as the machine has cores. Leave the context to stop asking.

    asking: the answer of the probe of that name.
    """

    def __init__(self, probes: Mapping[str, Probe], asking: Callable[[str], Answer]) -> None:
        self._probes, self._asking = probes, asking
        self._answers: dict[str, Future[Answer | None]] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)
        # A probe waits for earlier ones alone; these were begun before it, so that all waiting ends.
        for name in probes:
            self._answers[name] = self._pool.submit(self._ask, name)

    def answer(self, name: str) -> Answer | None:
        """None where the probe was not asked, because one that it comes after has a fault."""
        return self._answers[name].result()

    def faults(self, name: str) -> list[str]:
        """The probes that have to be mended for this one to be ok: itself, or some that it comes after."""
        answer = self.answer(name)
        if answer is None:
            return [fault for other in self._probes[name].after for fault in self.faults(other)]
        return [] if answer.status == "ok" else [name]

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, name: str) -> Answer | None:
        return None if any(map(self.faults, self._probes[name].after)) else self._asking(name)
