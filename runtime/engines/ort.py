"""ONNX Runtime: on an NVIDIA GPU where the installed build has CUDA, on the CPU otherwise."""

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.contract import model_details
from common.errors import DependencyError, InputError, ModelError
from runtime.engines.base import Engine, Images, Io, SizeRange, size_of, to_io
from runtime.memory import device_bytes, pixels_in, pixels_in_host

WARM_UP = 5
"""Runs before those that are timed: cuDNN's algorithms are chosen in the first."""
_TYPES: dict[str, Io] = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OrtEngine(Engine):
    """A model written by `export/to_onnx.py`: N,C,H,W float images, or N,H,W,C uint8 ones (`--io`).

    Raises ModelError where the file is damaged or another network, DependencyError where ONNX Runtime is missing or
    installed twice. `details` is what the exporter wrote about the model.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self.path = Path(path)
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors are raised as exceptions too, and told once
        options.intra_op_num_threads = threads or 0
        options.enable_mem_pattern = False  # it plans ahead, in a block of its own beside the arena: 11 KB a pixel
        available = ort.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            if self.path.stat().st_size == 0:
                raise ModelError(f"{path}: expected an ONNX model, found an empty file: copy it again")
            # ONNX Runtime's own exceptions derive from Exception alone, one by one.
            session = ort.InferenceSession(os.fspath(path), options, providers=providers)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{path}: expected an ONNX model, found a file that cannot be loaded: {error}") from error
        self.details = self._check(session)
        self._session = session
        self._input = session.get_inputs()[0].name
        self.io = _TYPES[session.get_inputs()[0].type]
        _, self.channels, *sides = _planar_shape(session.get_inputs()[0])
        if all(isinstance(side, int) for side in sides):
            self.sizes = (SizeRange((sides[0], sides[1]), (sides[0], sides[1])),)
        provider = session.get_providers()[0].removesuffix("ExecutionProvider")
        self._device = "cuda" if provider == "CUDA" else None
        self.name = f"ONNX Runtime {ort.__version__}, {provider}"

    def _run(self, images: Images) -> Images:
        with self._told(images):
            (output,) = self._session.run(None, {self._input: images})
        result: Images = output
        return result

    def pixels_at_once(self) -> int | None:
        if self._device is None:
            return pixels_in_host()
        device = device_bytes()
        return None if device is None else pixels_in(device[0])

    def seconds_on_device(self, images: Images, repeat: int) -> Sequence[float] | None:
        """By the host's clock, from before a run until the device has done it: ONNX Runtime lends no other."""
        if self._device is None:
            return None
        images, seconds = to_io(images, self.io), []
        with self._told(images):
            binding = self._session.io_binding()
            given = load_onnxruntime().OrtValue.ortvalue_from_numpy(images, self._device, 0)
            binding.bind_ortvalue_input(self._input, given)
            binding.bind_output(self._session.get_outputs()[0].name, self._device, 0)
            for _ in range(WARM_UP + repeat):
                begun = time.perf_counter()
                self._session.run_with_iobinding(binding)
                binding.synchronize_outputs()
                seconds.append(time.perf_counter() - begun)
        return seconds[WARM_UP:]

    def close(self) -> None:
        self._session = None

    @contextlib.contextmanager
    def _told(self, images: Images) -> Iterator[None]:
        """Make a ModelError of what ONNX Runtime raises: its exceptions derive from Exception alone, one by one."""
        if self._session is None:
            raise InputError(f"expected an open engine, found {self.name} closed")
        try:
            yield
        except Exception as error:
            height, width = size_of(images)
            raise ModelError(
                f"{self.path}: cannot denoise {width}x{height} at once (--tile takes smaller pieces): {error}"
            ) from error

    def _check(self, session: Any) -> dict[str, Any]:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        fits = (
            len(inputs) == len(outputs) == 1
            and len(inputs[0].shape) == len(outputs[0].shape) == 4
            and _planar_shape(inputs[0])[1] == _planar_shape(outputs[0])[1]
            and _planar_shape(inputs[0])[1] in (1, 3)
            and inputs[0].type in _TYPES
            and outputs[0].type == inputs[0].type
        )
        if not fits:
            found = "; ".join(f"{side} {_describe(values)}" for side, values in (("in", inputs), ("out", outputs)))
            raise ModelError(
                f"{self.path} is another network: expected one input and one output N,C,H,W of one type "
                f"with 1 or 3 channels, found {found}"
            )
        return model_details(self.path, session.get_modelmeta().custom_metadata_map)


def _planar_shape(value: Any) -> list[Any]:
    """N, C, H, W of an input or output; 8-bit images are stored N, H, W, C."""
    n, *rest = value.shape
    return [n, rest[2], rest[0], rest[1]] if value.type == "tensor(uint8)" else [n, *rest]


def _describe(values: list[Any]) -> str:
    return " and ".join(f"{'x'.join(map(str, value.shape))} {value.type}" for value in values) or "nothing"


def load_onnxruntime() -> Any:
    """The package. Raises DependencyError where it is missing, does not load, or is installed twice."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise DependencyError(
            "expected one of onnxruntime and onnxruntime-gpu, found both, which overwrite each other's files: "
            "pip uninstall both, then pip install -e '.[cpu]' or '.[gpu]'"
        )
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it keeps an id of the machine and reports its runs
    try:
        import onnxruntime
    except ImportError as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):  # Ctrl-C while its library loads
            raise KeyboardInterrupt from error
        raise DependencyError(
            f"expected ONNX Runtime, found none that loads ({error}): pip install -e '.[cpu]', or '.[gpu]' for CUDA"
        ) from error
    return onnxruntime


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
