"""The engines that run an exported model. Each is imported only when a file of its kind is opened."""

import os
from pathlib import Path

from common.errors import DependencyError, InputError
from common.files import ending
from runtime.engines.base import Engine
from runtime.models import ASSETS

__all__ = ["Engine", "open_engine"]

KINDS = ".onnx, .plan or .safetensors, or a folder of plans"


def open_engine(path: str | os.PathLike[str], threads: int | None = None) -> Engine:
    """Load a model with the engine that its name asks for.

    a name         of a bundled model, such as real_color
    .onnx          ONNX Runtime, on a GPU where the installed build has CUDA
    .plan          TensorRT or TensorRT-RTX, whichever built it
    a folder       all plans in it, of one network; each picture goes to the one that suits its size best
    .safetensors   PyTorch, for who trains; in half precision on a GPU

    `threads` is how many CPU threads it uses; None leaves that to the engine.
    Raises InputError where the file is missing or of no known kind, ModelError where it holds no SADNet or the plan is
    for another machine, DependencyError where the engine's package or its GPU is missing.
    """
    path = Path(path)
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:  # more than the cores only get in each other's way
        raise InputError(f"--threads: expected 1 to {most}, the cores of this machine, found {threads}")
    try:
        if path.name == str(path) and not path.exists() and (bundled := ASSETS / f"{path}.onnx").is_file():
            path = bundled
        is_folder, is_file = path.is_dir(), path.is_file()
        plans = sorted(path.glob("*.plan")) if is_folder else [path]
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{path}: expected a model file, cannot read it: {error.strerror}") from error
    kind = path.suffix.lower()
    if is_folder:
        if not plans:
            raise InputError(
                f"{path}: expected a folder of plans, found none ending in .plan: export/to_plan.py builds them"
            )
        kind = ".plan"
    elif kind not in (".onnx", ".plan", ".safetensors"):
        raise InputError(
            f"{path}: expected a bundled model's name or a model file ending in {KINDS}, found {ending(path.suffix)}"
        )
    elif not is_file:
        raise InputError(f"{path}: expected a model file, found no such file")
    if kind == ".plan":
        from runtime.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(plans)
    if kind == ".onnx":
        from runtime.engines.ort import OrtEngine

        return OrtEngine(path, threads)
    try:
        # The one place where runtime knows of training: nobody else has the network that the weights are of.
        from runtime.engines.torch import open_weights
    except ImportError as error:
        raise DependencyError(f"{path}: expected PyTorch to run weights, found none ({error}): run make dev") from error
    return open_weights(path, threads)
