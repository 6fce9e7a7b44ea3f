"""What is read of the memory that is free, tiles that are chosen by it, and the bound that no picture breaks."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.host_memory import free_bytes
from runtime import Denoiser, lookahead, memory
from runtime.engines import ort
from runtime.engines.base import Engine, Images, SizeRange
from runtime.lookahead import LookAhead
from runtime.memory import BYTES_A_PIXEL, HOST_PIXELS, SHARE, device_bytes, pixels_in_host
from runtime.tiles import SIDES, TILE, choose_side

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
UNLIMITED = 9223372036854771712


def machine(root: Path, groups: str = "", mounts: str = "", **files: str) -> Path:
    """A root with 8 GB available, and control groups; `files`: their text by their path, a `__` for each slash."""
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable:    {8 * GB // 1000} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    (proc / "self" / "mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(limit: object, used: int, spare: int, group: str, high: object = "max") -> dict[str, str]:
    return {
        f"{group}memory_max": f"{limit}\n",
        f"{group}memory_high": f"{high}\n",
        f"{group}memory_current": f"{used}\n",
        f"{group}memory_stat": f"anon 5\ninactive_file {spare}\n",
    }


def version_1(limit: int, used: int, spare: int, group: str) -> dict[str, str]:
    return {
        f"{group}memory_limit_in_bytes": f"{limit}\n",
        f"{group}memory_usage_in_bytes": f"{used}\n",
        f"{group}memory_stat": f"inactive_file 1\ntotal_inactive_file {spare}\n",
    }


MOUNT_2 = "30 24 0:26 {} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_1 = (
    "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "32 30 0:28 {} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
)


def test_memory_that_the_machine_has_available(tmp_path: Path) -> None:
    assert free_bytes(machine(tmp_path)) == pytest.approx(8 * GB * 1.024)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (version_2(4 * GB, 2 * GB, GB, "job__"), 3 * GB),  # a file cache is given up
        (version_2("max", 2 * GB, 0, "job__") | version_2(5 * GB, 4 * GB, 0, ""), GB),  # the group above
        (version_2("max", GB, 0, "job__", high=3 * GB), 2 * GB),
        (version_2(GB, 2 * GB, 0, "job__"), 0),  # more than it may: the kernel is about to end it
        (version_2("max", 2 * GB, 0, "job__"), 8.192 * GB),
        (version_2(100 * GB, 2 * GB, 0, "job__"), 8.192 * GB),
        ({"job__memory_max": f"{4 * GB}", "job__memory_current": f"{GB}"}, 3 * GB),  # no memory.stat
        (version_2(4 * GB, GB, 0, "job__") | {"job__memory_stat": "an odd line\n\nalone\n"}, 3 * GB),
        ({"job__memory_max": "nonsense", "job__memory_current": "0", "job__memory_stat": "x"}, 8.192 * GB),
    ],
)
def test_control_groups_of_version_2(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    root = machine(tmp_path, "0::/job\n", MOUNT_2.format("/"), **files)
    assert free_bytes(root) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (version_1(4 * GB, 2 * GB, GB, "memory__docker__x__"), 3 * GB),
        (version_1(UNLIMITED, 2 * GB, GB, "memory__docker__x__"), 8.192 * GB),
        (
            version_1(UNLIMITED, 2 * GB, 0, "memory__docker__x__") | version_1(2 * GB, GB, 0, "memory__docker__"),
            GB,
        ),
    ],
)
def test_control_groups_of_version_1(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    groups = "9:name=systemd:/\n5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n"
    assert free_bytes(machine(tmp_path, groups, MOUNT_1.format("/"), **files)) == pytest.approx(expected)


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = version_1(2 * GB, GB, 0, "memory__")
    root = machine(tmp_path, "4:memory:/docker/x\n", MOUNT_1.format("/docker/x"), **files)
    assert free_bytes(root) == GB


def test_paths_with_blanks(tmp_path: Path) -> None:
    mount = r"30 24 0:26 /my\040job /sys/fs/cgroup/a\040b\134c rw shared:4 - cgroup2 cgroup2 rw"
    files = version_2(2 * GB, GB, 0, "a b\\c__below__")
    assert free_bytes(machine(tmp_path, "0::/my job/below\n", mount, **files)) == GB


def test_a_group_outside_of_the_mount_leads_nowhere_else(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/../../elsewhere\n", MOUNT_2.format("/"), **version_2(2 * GB, GB, 0, ""))
    assert free_bytes(root) == GB


def test_systems_that_do_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(tmp_path) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    for name in ("meminfo", "self/cgroup", "self/mountinfo"):
        (tmp_path / "proc" / name).write_bytes(b"MemAvailable: much\n\xff:\n - \n0::")
    assert free_bytes(tmp_path) is None
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    assert pixels_in_host() is None


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_this_machine_tells() -> None:
    """Its other programs take and give memory back meanwhile: no more than bounds can be asked for."""
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    found = free_bytes()
    assert found is not None
    assert 0 < found <= 1024 * int(total.split()[1])


def test_a_devices_memory_is_the_drivers_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: tuple[Any, ...] = (0, 3_000, 10_000)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", SimpleNamespace(cudaMemGetInfo=lambda: answer))
    import cuda.bindings

    monkeypatch.setattr(cuda.bindings, "runtime", sys.modules["cuda.bindings.runtime"], raising=False)
    assert device_bytes() == (3_000, 10_000)
    answer = (35, None, None)  # no driver
    assert device_bytes() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert device_bytes() is None


class Blurs(Engine):
    """Remembers what it was given; has room for `pixels`."""

    name, channels = "double", 3

    def __init__(self, pixels: int | None, sizes: tuple[SizeRange, ...] = (SizeRange(),)) -> None:
        self.pixels, self.sizes = pixels, sizes
        self.asked = 0
        self.shapes: set[tuple[int, ...]] = set()

    def pixels_at_once(self) -> int | None:
        self.asked += 1
        return self.pixels

    def _run(self, images: Images) -> Images:
        self.shapes.add(images.shape)
        return images


@pytest.mark.parametrize(
    ("free", "side"),
    [(None, TILE), (0, 256), (GB, 256), (3.3 * GB, 256), (3.5 * GB, 512), (500 * GB, 512)],
)
def test_tiles_on_a_cpu(monkeypatch: pytest.MonkeyPatch, free: float | None, side: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: free if free is None else int(free))
    assert choose_side(pixels_in_host()) == side


def test_few_sizes_of_tiles() -> None:
    """Where other programs take a little more or less, pictures come out the same."""
    chosen = [choose_side(pixels) for pixels in range(0, 2_000_000, 1000)]
    assert sorted(set(chosen), reverse=True) == list(SIDES)
    assert chosen == sorted(chosen)


def test_memory_chooses_the_tiles_once_a_run() -> None:
    engine = Blurs(256 * 256)
    denoiser = Denoiser(engine)
    image = np.zeros((600, 700, 3), np.uint8)
    for engine.pixels in (256 * 256, 10**9):
        denoiser.denoise(image)
    assert denoiser.side == 256
    assert engine.asked == 1
    assert {max(shape[2:]) for shape in engine.shapes} <= {248, 256}
    assert Denoiser(Blurs(10**9)).side == 1024
    roomy = Blurs(10**9)
    Denoiser(roomy).denoise(image)
    assert roomy.shapes == {(1, 3, 600, 704)}


def test_memory_is_not_asked_for_where_the_choice_is_made() -> None:
    asked = Blurs(0)
    assert Denoiser(asked, tile=640).side == 640
    plan = Blurs(0, (SizeRange((64, 64), (640, 640)),))
    Denoiser(plan).denoise(np.zeros((600, 640, 3), np.uint8))
    assert (asked.asked, plan.asked) == (0, 0)
    assert plan.shapes == {(1, 3, 600, 640)}


def test_onnx_runtime_asks_for_the_memory_that_it_computes_in(
    tmp_path: Path, write_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ort.OrtEngine(write_model(tmp_path / "m.onnx"))
    monkeypatch.setattr(memory, "free_bytes", lambda: 100 * GB)
    assert engine.pixels_at_once() == HOST_PIXELS
    engine._device = "cuda"
    answers = iter([None, (20 * GB, 24 * GB)])
    monkeypatch.setattr(ort, "device_bytes", lambda: next(answers))
    assert [engine.pixels_at_once() for _ in range(2)] == [None, 20 * GB // SHARE // BYTES_A_PIXEL]


def test_pictures_on_their_way_leave_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, room in ((None, lookahead.MOST_BYTES), (10**12, lookahead.MOST_BYTES), (4000, 1000)):
        monkeypatch.setattr(lookahead, "free_bytes", lambda free=free: free)
        ahead = LookAhead([], lambda job, data: pytest.fail("nothing to decode"), 1)
        assert ahead._room == room
        ahead.close()
