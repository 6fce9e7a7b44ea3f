"""What machine this is: for the figures that are measured on it, and for the plans that it runs."""

import platform
from dataclasses import dataclass
from pathlib import Path

from common.errors import DependencyError


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. compute_capability: such as "8.9"."""

    name: str
    compute_capability: str

    @property
    def number(self) -> int:
        """Ten times the compute capability."""
        return int(self.compute_capability.replace(".", ""))


def gpu(device: int | None = None) -> Gpu:
    """The GPU of this number, or this thread's current one, or the first where none is; asks cuda-bindings alone.

    Raises DependencyError where there is no driver or no GPU.
    """
    try:
        from cuda.bindings import driver

        found = driver.cuInit(0)
    except (ImportError, RuntimeError) as error:  # RuntimeError: cuda.pathfinder finds no libcuda
        raise DependencyError(f"expected an NVIDIA driver, found none that loads ({error})") from error
    if not int(found[0]):
        found = driver.cuDeviceGet(device or 0)
        if device is None:
            current = driver.cuCtxGetDevice()
            found = found if int(current[0]) else current  # an error: no context is current
    if int(found[0]):
        raise DependencyError(f"expected an NVIDIA GPU, found none ({found[0].name})")
    _, name = driver.cuDeviceGetName(256, found[1])
    wanted = driver.CUdevice_attribute
    _, major = driver.cuDeviceGetAttribute(wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, found[1])
    _, minor = driver.cuDeviceGetAttribute(wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, found[1])
    return Gpu(name.partition(b"\0")[0].decode(), f"{major}.{minor}")  # what follows is anything


def cpu_name() -> str:
    """The processor's model name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
