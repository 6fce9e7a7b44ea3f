"""TensorRT and TensorRT-RTX, whose Python APIs are the same but for plugins: their names, import and log."""

import functools
import importlib
import re
from enum import StrEnum
from typing import Any

from rich.console import Console

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
    Backend.TENSORRT: "pip install --extra-index-url https://pypi.nvidia.com -e '.[tensorrt]'",
    Backend.TENSORRT_RTX: "pip install -e '.[rtx]'",
}
OLDEST = (11, 4)
"""TensorRT that plans are built with, as in pyproject.toml. With NumPy 2.4 older ones fail to read a plugin's
attributes, 11.1 and 11.2 leak memory (NVIDIA/TensorRT issue 4849), and 10's networks have the file's types only if
asked to."""


def load_library(backend: Backend) -> Any:
    """The backend's Python module. Raises DependencyError where it is not installed or does not load."""
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:  # OSError where a shared library is missing
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):  # Ctrl-C while it loads
            raise KeyboardInterrupt from error
        name = NAMES[backend]
        raise DependencyError(f"expected {name}'s Python package, found none ({error}): {INSTALL[backend]}") from error


def load_builder() -> Any:
    """TensorRT's, to build plans with. Raises DependencyError where it is too old, too."""
    module = load_library(Backend.TENSORRT)
    if tuple(map(int, module.__version__.split(".")[:2])) < OLDEST:
        text = f"expected TensorRT {'.'.join(map(str, OLDEST))} or later, found {module.__version__}"
        raise DependencyError(f"{text}: {INSTALL[Backend.TENSORRT]}")
    return module


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
    class Logger(trt.ILogger):  # type: ignore[misc]  # the library carries no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(severity.name, message)

    return Logger()
