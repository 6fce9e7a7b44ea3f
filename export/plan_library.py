"""TensorRT and TensorRT-RTX, whose Python APIs are the same but for plugins: their import, log and progress."""

import contextlib
import functools
import importlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.errors import DependencyError, ModelError

STDERR = Console(stderr=True)
LISTED = 3
"""Of the library's errors, how many a message shows."""


class Backend(StrEnum):
    """Who runs the plan."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


MODULES = {Backend.TENSORRT: "tensorrt", Backend.TENSORRT_RTX: "tensorrt_rtx"}
NAMES = {Backend.TENSORRT: "TensorRT", Backend.TENSORRT_RTX: "TensorRT-RTX"}
INSTALL = {
    Backend.TENSORRT: "pip install --extra-index-url https://pypi.nvidia.com -e '.[tensorrt,kernels]'",
    Backend.TENSORRT_RTX: "pip install -e '.[rtx]'",
}


def load_library(backend: Backend) -> Any:
    """The backend's Python module. Raises DependencyError where it is not installed or does not load."""
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:  # OSError where a shared library is missing
        name = NAMES[backend]
        raise DependencyError(f"expected {name}'s Python package, found none ({error}): {INSTALL[backend]}") from error


class Log:
    """What the library says: warnings go to stderr at once, errors are kept for `failure`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[str] = []
        self.activation_bytes: int | None = None
        """Device memory that a context of the last plan needs for its activations, as the builder counts it."""

    def clear(self) -> None:
        """Forget the errors and the memory of the plan before."""
        self.errors, self.activation_bytes = [], None

    def take(self, severity: str, message: str) -> None:
        """One message; severity is INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""
        if severity.endswith("ERROR"):
            self.errors.append(message)
        elif severity == "WARNING":
            STDERR.print(f"{self.name}: {message}", style="yellow", markup=False, highlight=False)
        elif found := re.search(r"Total Activation Memory: (\d+) bytes", message):
            self.activation_bytes = int(found[1])

    def failure(self, what: str) -> ModelError:
        """An error that says what failed and why, in the library's words."""
        shown = "; ".join(self.errors[:LISTED]) or "it gave no reason"
        more = f" (and {len(self.errors) - LISTED} more)" if len(self.errors) > LISTED else ""
        return ModelError(f"{self.name} {what}: {shown}{more}")


@functools.cache  # the library keeps the first logger of a process, whatever it is given later
def logger(backend: Backend) -> tuple[Any, Log]:
    """The process's logger for the library, as the library wants it, and the log that it fills."""
    log = Log(NAMES[backend])
    return _logger(load_library(backend), log), log


def _logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(severity.name, message)

    return Logger()


@contextlib.contextmanager
def progress(trt: Any) -> Iterator[Any]:
    """An IProgressMonitor that draws bars on stderr, where that is a terminal.

    While it is open Ctrl-C cancels the build, at the end of a step; then KeyboardInterrupt is raised.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    cancelled = threading.Event()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
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


def gpu() -> dict[str, str]:
    """Name and compute capability of the first GPU, for which TensorRT builds.

    Raises DependencyError where there is no driver or no GPU.
    """
    try:
        from cuda.bindings import driver

        status, *_ = driver.cuInit(0)
    except (ImportError, RuntimeError) as error:  # RuntimeError: cuda.pathfinder finds no libcuda
        raise DependencyError(f"expected an NVIDIA driver, found none that loads: {error}") from error
    if int(status):
        raise DependencyError(f"expected an NVIDIA GPU, found none ({status.name})")
    _, device = driver.cuDeviceGet(0)
    _, name = driver.cuDeviceGetName(256, device)
    kinds = driver.CUdevice_attribute
    _, major = driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    _, minor = driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    return {"name": name.rstrip(b"\0").decode(), "compute_capability": f"{major}.{minor}"}


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `act`: an exception cannot pass through the library."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
