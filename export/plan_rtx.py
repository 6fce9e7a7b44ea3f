"""Plans for TensorRT-RTX: built without a GPU, for any of a list of them; it compiles its kernels on the user's."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import onnx

from common.errors import InputError
from common.machine import gpu
from common.plan_sidecar import AND_LATER
from common.tensorrt_library import Backend, Log, load_library
from export.plan_build import Sizes, Target
from export.plan_graph import with_grid_sample
from export.plan_types import Precision

CURRENT = "current"
DEFAULT = f"8.0{AND_LATER}"
"""What the library builds for where nothing is asked: Ampere, Ada, Blackwell and what follows."""
TURING = "7.5"


class RtxTarget(Target):
    """The op by GridSample: this library has no plugins.

    capabilities: compute capabilities such as "8.9", or "current" alone, the GPU at hand; none means DEFAULT. Raises
    InputError for one that the library does not know, and for Turing among others: it would slow them down.
    """

    backend = Backend.TENSORRT_RTX

    def __init__(self, capabilities: Sequence[str] = ()) -> None:
        known = self._known(load_library(self.backend))
        for capability in capabilities:
            if capability not in known:
                listed = ", ".join(known)
                raise InputError(f"--compute-capability: expected one of {listed}, found {capability!r}")
        for alone in (TURING, CURRENT):
            if alone in capabilities and len(set(capabilities)) > 1:
                raise InputError(
                    f"--compute-capability: expected {alone} alone, found {' '.join(capabilities)}: build another plan"
                )
        self.capabilities = tuple(dict.fromkeys(capabilities))
        self.gpu = gpu() if CURRENT in capabilities else None

    def state_op(self, model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
        width, height = sizes.most
        return with_grid_sample(model, height, width)

    def opened(self, trt: Any, log: Log) -> AbstractContextManager[None]:
        return nullcontext()

    def configure(self, trt: Any, config: Any, log: Log) -> None:
        if self.capabilities:
            known = self._known(trt)
            config.num_compute_capabilities = len(self.capabilities)
            for index, capability in enumerate(self.capabilities):
                if not config.set_compute_capability(known[capability], index):
                    raise log.failure(f"cannot build for compute capability {capability}")

    def finish(self, trt: Any, config: Any, data: Any, precision: Precision) -> int | None:
        return None  # an engine loads on a GPU alone; the builder's log tells the memory

    def facts(self) -> dict[str, Any]:
        capabilities = (self.gpu.compute_capability,) if self.gpu else self.capabilities or (DEFAULT,)
        return {"compute_capabilities": capabilities, "gpu": self.gpu, "plugin": None, "kernels_sha256": None}

    @staticmethod
    def _known(trt: Any) -> dict[str, Any]:
        """The library's targets by their usual names: SM86 is 8.6."""
        members = trt.ComputeCapability.__members__.items()
        known = {f"{name[2:-1]}.{name[-1]}": member for name, member in members if name.startswith("SM")}
        return known | {CURRENT: trt.ComputeCapability.CURRENT}
