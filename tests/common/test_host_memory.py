"""What is read of the host's memory that is free for a process."""

import sys
from pathlib import Path

import pytest

from common.host_memory import free_bytes

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


def test_systems_that_do_not_tell(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    for name in ("meminfo", "self/cgroup", "self/mountinfo"):
        (tmp_path / "proc" / name).write_bytes(b"MemAvailable: much\n\xff:\n - \n0::")
    assert free_bytes(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_this_machine_tells() -> None:
    """Its other programs take and give memory back meanwhile: no more than bounds can be asked for."""
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    found = free_bytes()
    assert found is not None
    assert 0 < found <= 1024 * int(total.split()[1])
