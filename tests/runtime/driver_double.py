"""NVIDIA's driver library on a machine without one: it tells of one GPU, as DOUBLE_* in the environment say.

DOUBLE_DRIVER      13000    the newest CUDA that it takes
DOUBLE_CAPABILITY  89       ten times the compute capability
DOUBLE_FAILS       0        what cuInit returns
"""

import subprocess
from pathlib import Path

import pytest

from tests.plugins.cpu_shim.build import compiler

SOURCE = r"""
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

static int setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

extern "C" {
int cuInit(unsigned) { return setting("DOUBLE_FAILS", 0); }
int cuDriverGetVersion(int* version) { *version = setting("DOUBLE_DRIVER", 13000); return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int) { std::strncpy(name, "NVIDIA Double", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  int capability = setting("DOUBLE_CAPABILITY", 89);
  *value = attribute == 75 ? capability / 10 : capability % 10;
  return 0;
}
int cuDeviceTotalMem_v2(std::size_t* bytes, int) { *bytes = std::size_t(24) << 30; return 0; }
int cuCtxGetDevice(int*) { return 201; }  // CUDA_ERROR_INVALID_CONTEXT
int cuGetErrorName(int status, const char** name) {
  *name = status == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
  return 0;
}
// cuda-bindings asks for all others by this one.
int cuGetProcAddress_v2(const char* name, void** function, int, std::uint64_t, int*) {
  *function = dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), name);
  return *function ? 0 : 500;
}
}
"""


def build_driver(folder: Path) -> Path:
    """Its file in `folder`, which LD_LIBRARY_PATH is to name. Skips the test where there is no C++ compiler."""
    program = compiler()
    if program is None:
        pytest.skip("no g++ 12 or later here: apt-get install g++")
    (folder / "driver.cpp").write_text(SOURCE)
    library = folder / "libcuda.so.1"
    subprocess.run([program, "-shared", "-fPIC", folder / "driver.cpp", "-o", library, "-ldl"], check=True)
    return library
