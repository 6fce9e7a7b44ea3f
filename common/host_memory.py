"""Memory of the host that is free now, as far as the system tells.

What the machine has is not what a process gets: containers and batch systems lend it less, through control groups.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUP_FILES = {
    "cgroup2": (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the kind of file system: limits, what is used, and what of that in memory.stat is given up without harm."""


def free_bytes(root: Path = Path("/")) -> int | None:
    """Of the host's memory, for this process: what the machine has available, or less where a control group that it is
    in, or one above, allows less. 0: none. None where the system does not tell, as others than Linux.

    root: where /proc and the paths in it lie.
    """
    found = [*_machine_bytes(root), *_group_bytes(root)]
    return max(0, min(found)) if found else None


def _machine_bytes(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.removesuffix("kB").strip().isdigit():
            yield 1024 * int(value.removesuffix("kB"))


def _group_bytes(root: Path) -> Iterator[int]:
    """What each limit leaves of the groups that this process is in."""
    for kind, top, folder in _groups(root):
        limits, used, spare = _GROUP_FILES[kind]
        for level in (folder, *folder.parents):
            if not level.is_relative_to(top):
                break
            try:
                usage = int((level / used).read_text()) - _spare(level, spare)
            except (OSError, ValueError):  # the root of version 2 has no such file
                continue
            for name in limits:
                text = _text(level / name)
                if text.isdigit():  # else "max": no limit
                    yield int(text) - usage


def _spare(folder: Path, name: str) -> int:
    """The figure of that name in memory.stat; 0 where there is none."""
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _groups(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Kind, mount point and folder of each hierarchy that counts memory."""
    paths: dict[str, PurePosixPath] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(), "", "", ""][:3]
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        _, _, _, inside, point = (_unescaped(part) for part in [*mount.split(), *[""] * 5][:5])
        top = root / point.lstrip("/")
        # In a container only the part below its own group is mounted, whose path may be told as the host sees it.
        below = paths[kind].relative_to(inside) if paths[kind].is_relative_to(inside) else PurePosixPath()
        yield kind, top, top / below if ".." not in below.parts else top


def _unescaped(text: str) -> str:
    """mountinfo has blanks and backslashes of paths as \\ and three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _text(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
