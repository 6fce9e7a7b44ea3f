"""What NVIDIA's driver tells without a package: by a double of its library, and without any."""

import ctypes

import pytest

from common.driver import driver_version, gpus
from common.machine import Gpu
from common.probing import FaultError
from tests.runtime.driver_double import build_driver


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_driver(tmp_path_factory.mktemp("driver"))))


@pytest.fixture
def present(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": library}[name])


@pytest.mark.usefixtures("present")
def test_driver_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_DRIVER", "12040")
    monkeypatch.setenv("DOUBLE_CAPABILITY", "120")
    assert driver_version() == 12040
    assert gpus() == [(Gpu("NVIDIA Double", "12.0"), 24 * 2**30)]


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("100", "missing", r"cuInit: CUDA_ERROR_NO_DEVICE \(100\)"),
        ("803", "broken", r"cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH \(803\)"),
    ],
)
@pytest.mark.usefixtures("present")
def test_the_drivers_own_words(code: str, status: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_FAILS", code)
    with pytest.raises(FaultError, match=words) as caught:
        gpus()
    assert caught.value.answer.status == status


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    for question in (driver_version, gpus):
        with pytest.raises(FaultError, match=r"no NVIDIA driver that loads \(libcuda\.so\.1: cannot open") as caught:
            question()
        assert caught.value.answer.status == "missing"
