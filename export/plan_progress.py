"""A build's progress on the terminal, and Ctrl-C that cancels it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.errors import ModelError
from common.tensorrt_library import STDERR


@contextlib.contextmanager
def progress(trt: Any) -> Iterator[Any]:
    """An IProgressMonitor that draws bars on stderr, where that is a terminal.

    While it is open Ctrl-C cancels the build, at the end of a step; then KeyboardInterrupt is raised.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    cancelled = threading.Event()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library carries no types
        """The library calls it from threads of its own."""

        def __init__(self, bar: Progress) -> None:
            trt.IProgressMonitor.__init__(self)
            self.bar = bar
            self.tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.tasks[phase_name] = self.bar.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.tasks:
                self.bar.update(self.tasks[phase_name], completed=step + 1)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.tasks:
                self.bar.remove_task(self.tasks.pop(phase_name))

    try:
        with (
            Progress(*columns, console=STDERR, disable=not STDERR.is_terminal, transient=True) as bar,
            _on_interrupt(cancelled.set),
        ):
            yield Monitor(bar)
    except ModelError as error:
        if cancelled.is_set():  # the library calls that a failure
            raise KeyboardInterrupt from error
        raise
    if cancelled.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `act`: an exception cannot pass through the library."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: act()) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
