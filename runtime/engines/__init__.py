"""The engines that run an exported model. Each is imported only when a file of its kind is opened."""

import os
from pathlib import Path

from common.errors import InputError
from runtime.engines.base import Engine

__all__ = ["Engine", "open_engine"]


def open_engine(path: str | os.PathLike[str], threads: int | None = None) -> Engine:
    """Load a model file with the engine that its name ending asks for: ONNX Runtime for `.onnx`.

    `threads` is how many CPU threads it uses; None leaves that to the engine.
    Raises InputError where the file is missing or of no known kind, ModelError where it holds no SADNet,
    DependencyError where the engine's package is not installed.
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise InputError(f"expected at least 1 thread, found {threads}")
    if path.suffix.lower() != ".onnx":
        raise InputError(f"{path}: expected a model file ending in .onnx, found {path.suffix or 'no ending'!r}")
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise InputError(f"{path}: expected an ONNX model file, found {found}")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{path}: expected an ONNX model file, cannot read it: {error.strerror}") from error
    from runtime.engines.ort import OrtEngine

    return OrtEngine(path, threads)
