"""The plugin library and its harness, built once a session, and plugins from its creator."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins import op
from tests.plugins.v3.driver import BUILD, FINDS, Create, Field, Fields, Plugin, attributes, configure, load, one_line


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libsadnet_plugin.so and libv3_harness.so, for one GPU; SADNET_V3_BUILD names one from elsewhere."""
    if "SADNET_V3_BUILD" in os.environ:
        return Path(os.environ["SADNET_V3_BUILD"]).resolve()
    folder = tmp_path_factory.mktemp("tensorrt_v3")
    architecture = "native" if torch.cuda.is_available() else "86"
    result = configure(folder, "-DHARNESS=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}")
    for missing, message in (("headers", "expected TensorRT's headers"), ("nvcc", "expected nvcc")):
        if message in one_line(result.stderr):
            pytest.skip(f"not built: {missing} absent")
    assert result.returncode == 0, result.stderr
    made = subprocess.run(["cmake", "--build", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning" not in made.stderr
    return folder


@pytest.fixture(scope="session")
def library(build: Path) -> Path:
    return build / "libsadnet_plugin.so"


@pytest.fixture(scope="session")
def harness(build: Path, library: Path) -> Any:
    return load(build / "libv3_harness.so", library)


@pytest.fixture
def create(harness: Any) -> Iterator[Create]:
    """create(fields=attributes(), phase=BUILD, layer="dcn"): a Plugin, or None where the creator gives none."""

    def make(fields: Sequence[Field] | None = None, phase: int = BUILD, layer: str = "dcn") -> Plugin | None:
        given = attributes() if fields is None else fields
        collection = Fields(len(given), (Field * len(given))(*given))
        handle = harness.v3_create(layer.encode(), byref(collection), phase)
        return Plugin(harness, handle) if handle else None

    harness.v3_set_finder(FINDS)
    harness.v3_log()
    yield make
    harness.v3_set_finder(FINDS)


@pytest.fixture
def plugin(create: Create) -> Plugin:
    """With the op's default attributes."""
    made = create([])
    assert made is not None
    return made


@pytest.fixture
def make(create: Create) -> Callable[..., Plugin]:
    """make(groups=8, slope=0.2): a Plugin."""

    def made(groups: int = op.OFFSET_GROUPS, slope: float = op.NEGATIVE_SLOPE) -> Plugin:
        result = create(attributes(groups, slope))
        assert result is not None
        return result

    return made
