"""A plan on disk: whether this machine runs it, told before the library sees it, and how to build it again if not."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DependencyError, InputError, ModelError
from common.files import sha256
from common.machine import Gpu, gpu
from common.plan_sidecar import AND_LATER, Sidecar, read_sidecar, sidecar_path
from common.tensorrt_library import NAMES, Backend, load_library, logger
from plugins import op
from runtime.engines.base import Io, Size, SizeRange
from runtime.engines.gpu import DEVICE

CHECKOUT = Path(__file__).resolve().parents[2]
ASSETS = CHECKOUT / "assets"
PLUGIN_FOLDER = CHECKOUT / "build" / "tensorrt_v3"
"""Where `make plugin` leaves the C++ plugin, which is looked for beside the plan first."""
_libraries: dict[Backend, str] = {}
"""The SHA-256 of the C++ plugin that was loaded here, whose code all plans with it run in this process."""
CURRENT = "current"
"""What `--compute-capability` calls the GPU at hand."""


@dataclass(frozen=True)
class PlanFile:
    """A plan that this machine runs; `open_plan` makes it."""

    path: Path
    sidecar: Sidecar
    gpu: Gpu

    @property
    def io(self) -> Io:
        """Type of its images."""
        return self.sidecar.inputs[0].type

    @property
    def kind(self) -> tuple[Any, ...]:
        """What plans must have in common to be run as one engine: library, images, and the network's weights."""
        model = self.sidecar.model
        weights = model.get("weights_sha256", self.sidecar.onnx["sha256"])
        return (self.sidecar.backend, self.io, self.sidecar.inputs[0].channels, weights)

    @property
    def sizes(self) -> SizeRange:
        """What it takes."""
        tensor = self.sidecar.inputs[0]
        return SizeRange(tensor.size(tensor.min), tensor.size(tensor.max))

    def describe(self) -> str:
        """The sizes that it takes, in a message."""
        least, most = self.sizes.least, self.sizes.most or self.sizes.least
        return f"{_text(least)} only" if least == most else f"{_text(least)} to {_text(most)}"

    def shape(self, size: Size) -> tuple[int, ...]:
        """Of one image of this size, as the plan takes it."""
        channels = self.sidecar.inputs[0].channels
        return (1, *size, channels) if self.io == "uint8" else (1, channels, *size)

    def deserialize(self) -> Any:
        """The library's ICudaEngine. Raises ModelError in the library's words."""
        trt = load_library(self.sidecar.backend)
        trt_logger, log = logger(self.sidecar.backend)
        log.clear()
        if self.sidecar.plugin is not None and "file" in self.sidecar.plugin:
            library, registry = self._plugin_library(), trt.get_plugin_registry()
            wanted = self.sidecar.plugin["sha256"]
            # A library whose plugins are known already is refused, so that a process has one.
            if registry.get_creator(op.NAME, str(op.VERSION), op.DOMAIN) is None:
                if registry.load_library(str(library)) is None:
                    raise log.failure(f"cannot load the plugins of {library}")
                _libraries[self.sidecar.backend] = wanted
            elif _libraries.get(self.sidecar.backend, wanted) != wanted:
                raise ModelError(
                    f"{self.path}: expected the plugin of {library}, found another loaded by this process before: open "
                    "the plan in a process of its own, or build all plans with one library"
                )
        engine = trt.Runtime(trt_logger).deserialize_cuda_engine(self.path.read_bytes())
        if engine is None:
            reason = log.failure(f"cannot load {self.path}")
            if "does not support this compute capability" in str(reason):  # an H100's, for one
                raise ModelError(f"{reason}; use --backend tensorrt, or the model's .safetensors or .onnx file")
            raise ModelError(f"{reason}; {rebuild(self.path, self.sidecar, here=True)}")
        return engine

    def _plugin_library(self) -> Path:
        plugin = self.sidecar.plugin or {}
        places = [folder / plugin.get("file", "") for folder in (self.path.parent, PLUGIN_FOLDER)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InputError(
                f"{self.path}: expected the plugin's library {plugin.get('file')} beside the plan or in "
                f"{PLUGIN_FOLDER}, found none: copy it there, or build it with make plugin"
            )
        if sha256(found) != plugin.get("sha256"):
            raise ModelError(
                f"{found}: expected the library that {self.path} was built with, found another of its name"
            )
        return found.resolve()


def open_plan(path: Path) -> PlanFile:
    """Check that plan and sidecar belong together, and that library version and GPU are those that the plan is for.

    A plan is a program: open none of a stranger, whatever its sidecar says. TensorRT's plans, and TensorRT-RTX's for
    the GPU at hand, are for the very model of GPU that they were built on.

    Raises InputError where a file is missing, ModelError where the plan is damaged or for another machine,
    DependencyError where library, driver or GPU are missing; each says what to do.
    """
    sidecar = read_sidecar(path)
    try:
        found = sha256(path)
    except OSError as error:
        raise InputError(f"{path}: expected a plan, cannot read it: {error.strerror}") from error
    if found != sidecar.plan_sha256:
        raise ModelError(
            f"{path}: expected the plan that {sidecar_path(path).name} describes, found another or a damaged file: "
            f"copy both again; {rebuild(path, sidecar)}"
        )
    name = NAMES[sidecar.backend]
    try:
        version = load_library(sidecar.backend).__version__
        device = gpu(DEVICE)
    except DependencyError as error:
        raise DependencyError(f"{path} is a plan of {name}: {error}") from error
    if version != sidecar.version:
        raise ModelError(
            f"{path}: expected {name} {sidecar.version}, which built this plan, found {version}: "
            f"{rebuild(path, sidecar)}"
        )
    built_on = sidecar.gpu.name if sidecar.gpu else device.name
    if built_on != device.name:
        raise ModelError(
            f"{path}: expected {built_on}, for which this plan was built, found {device.name}: "
            f"{rebuild(path, sidecar, here=True)}"
        )
    if not any(_covers(capability, device) for capability in sidecar.compute_capabilities):
        raise ModelError(
            f"{path}: expected a GPU of compute capability {' or '.join(sidecar.compute_capabilities)}, found "
            f"{device.name} of {device.compute_capability}: {rebuild(path, sidecar, here=True)}"
        )
    return PlanFile(path, sidecar, device)


def rebuild(path: Path, sidecar: Sidecar, *, size: Size | None = None, here: bool = False) -> str:
    """The command that builds the plan `path` again, for the GPU at hand if `here`; or a new one, for `size`."""
    tensor = sidecar.inputs[0]
    least, usual, most = (_text(tensor.size(shape)) for shape in (tensor.min, tensor.opt, tensor.max))
    if size is not None:
        sizes = ["--size", _text(size)]
    else:
        sizes = ["--size", most] if least == most else ["--min", least, "--opt", usual, "--max", most]
    command = ["python", "export/to_plan.py", "--backend", str(sidecar.backend), *sizes]
    command += ["--precision", sidecar.precision]
    if sidecar.backend is Backend.TENSORRT_RTX:
        wanted = [CURRENT] if here else [c for c in sidecar.compute_capabilities if AND_LATER not in c]
        command += ["--compute-capability", *wanted] if wanted else []
    if sidecar.plugin is not None and "file" in sidecar.plugin:
        command += ["--plugin", _found(sidecar.plugin, PLUGIN_FOLDER, path.parent)]
    if size is None:
        command += ["--output", os.path.relpath(path), "--overwrite"]
    command += ["--", _found(sidecar.onnx, ASSETS, path.parent)]
    return f"build {'it again' if size is None else 'one'}: {shlex.join(command)}"


def _found(file: dict[str, str], *folders: Path) -> str:
    """Where a file that the sidecar names lies, if it is in one of the folders; its name otherwise."""
    for folder in folders:
        if (place := folder / file["file"]).is_file() and sha256(place) == file["sha256"]:
            return os.path.relpath(place)
    return file["file"]


def _covers(capability: str, device: Gpu) -> bool:
    """Whether a plan for `capability` ("8.6", "8.0 and later") runs on the device."""
    least = float(capability.removesuffix(AND_LATER))
    found = float(device.compute_capability)
    return found >= least if capability.endswith(AND_LATER) else found == least


def _text(size: Size) -> str:
    height, width = size
    return f"{width}x{height}"
