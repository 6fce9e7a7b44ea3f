"""NVIDIA's driver, asked by its own library: it tells of a GPU before any package is installed."""

from __future__ import annotations  # see common/probing.py

import ctypes
import os
from typing import Any

from common.machine import Gpu
from common.probing import FaultError

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def driver_version() -> int:
    """The newest CUDA that it takes: 13000 is 13.0. Raises FaultError where there is no driver."""
    return _number(_library(), "cuDriverGetVersion")


def gpus() -> list[tuple[Gpu, int]]:
    """Each with its bytes of memory, in the order in which the runtime knows them. Raises FaultError."""
    library = _library()
    _call(library, "cuInit", 0)
    name, out = ctypes.create_string_buffer(256), []
    for index in range(_number(library, "cuDeviceGetCount")):
        device = _number(library, "cuDeviceGet", index)
        _call(library, "cuDeviceGetName", name, len(name), device)
        major, minor = (_number(library, "cuDeviceGetAttribute", attribute, device) for attribute in _CAPABILITY)
        memory = _number(library, "cuDeviceTotalMem_v2", device, kind=ctypes.c_size_t)
        out.append((Gpu(name.value.decode(errors="replace"), f"{major}.{minor}"), memory))
    return out


def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError as error:
        raise FaultError("missing", f"no NVIDIA driver that loads ({error})") from error


def _number(library: ctypes.CDLL, function: str, *arguments: Any, kind: type[Any] = ctypes.c_int) -> int:
    """What the function writes to the place that its first argument is."""
    value = kind()
    _call(library, function, ctypes.byref(value), *arguments)
    return int(value.value)


def _call(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    if status := getattr(library, function)(*arguments):
        word = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(word))
        found = f"{function}: {(word.value or b'').decode()} ({status})"
        raise FaultError("missing" if status == _NO_DEVICE else "broken", found)
