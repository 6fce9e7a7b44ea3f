"""Kernels compile for every architecture without a GPU, spills are seen, and errors name their line."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import DependencyError, InputError
from plugins import launch, nvrtc

ROOT = Path(__file__).resolve().parents[2]
SPILLING = """
extern "C" __global__ void indexes_its_own_array(const int* from, int* to) {
  int local[64] = {0};
  for (int i = 0; i < 200; ++i) local[from[i] & 63] += i;
  to[threadIdx.x] = local[to[threadIdx.x] & 63];
}
"""


def test_every_kernel_compiles_for_every_architecture_without_spills() -> None:
    command = [sys.executable, "plugins/nvrtc.py", "--arch", "all"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    labels = [label for label, _ in nvrtc.every_kernel()]
    assert {label.split()[0] for label in labels} == {path.name for path in launch.KERNELS.glob("*.cu")}
    lines = [line.replace("│", "").split() for line in result.stdout.splitlines()]
    for label in labels:
        for arch in nvrtc.ARCHITECTURES:
            rows = sum(line[: len(label.split()) + 1] == [*label.split(), f"sm_{arch}"] for line in lines)
            assert rows == (2 if label.startswith("training.cu") else 1)  # forward and backward


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_ptx_is_for_the_architecture_and_for_driver_580(arch: int) -> None:
    compiled = nvrtc.compile_kernel(launch.teacher(launch.Layer(32, 32), "fp16"), arch)
    ptx = compiled.ptx.decode()
    assert f".target sm_{arch}" in ptx
    version = next(line.split()[1] for line in ptx.splitlines() if line.startswith(".version"))
    assert tuple(map(int, version.split("."))) <= (9, 0)
    assert ".entry modulated_deform_conv2d(" in ptx
    assert compiled.cubin.startswith(b"\x7fELF")
    (usage,) = compiled.usages
    assert usage.kernel == "modulated_deform_conv2d"
    assert 0 < usage.registers <= 255


def test_an_nvrtc_whose_ptx_older_drivers_refuse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _ = nvrtc.load_nvrtc()
    monkeypatch.setattr(bindings, "nvrtcVersion", lambda: (0, 13, 2))
    with pytest.raises(DependencyError, match=r"expected NVRTC 13\.0, .* found 13\.2"):
        nvrtc.load_nvrtc()


def test_an_error_names_file_and_line_and_shows_the_source() -> None:
    source = 'extern "C" __global__ void broken(float* y) {\n  y[0] = 1.f;\n  y[1] = nonsense;\n}\n'
    with pytest.raises(nvrtc.CompileError, match=r'broken\.cu\(3\): error: identifier "nonsense" is undefined'):
        nvrtc.compile_source("broken.cu", source, 80, {})


def test_a_stack_frame_is_seen_and_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (usage,) = nvrtc.compile_source("spilling.cu", SPILLING, 80, {}).usages
    assert usage.stack >= 256
    (tmp_path / "spilling.cu").write_text(SPILLING)
    kernel = launch.Kernel("spilling.cu", (), 32, 32, 1, 1, 1)
    monkeypatch.setattr(launch, "KERNELS", tmp_path)
    monkeypatch.setattr(nvrtc, "every_kernel", lambda: iter([("spilling.cu", kernel)]))
    with pytest.raises(nvrtc.CompileError, match=r"no stack frame, found some in spilling\.cu sm_80"):
        nvrtc.main(["80"])
    assert str(usage.stack) in capsys.readouterr().out


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="expected all, or one of 75"):
        nvrtc.main(["61"])
