"""Files that appear whole or not at all."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import OutputError, TakenError

TEMPORARY = ".tmp-"
"""How the names of unfinished files begin; a killed process leaves them behind."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving the block without an error it becomes `path`, in one step.

    Without `overwrite` an existing `path` is never replaced, not even one that appears while the block runs; with it a
    link stays, and what it leads to is replaced. Raises TakenError where the file exists, OutputError where it cannot
    be written; then nothing is left behind.
    """
    target = Path(path)
    check_free(target, overwrite=overwrite)
    if overwrite:
        target = Path(os.path.realpath(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{target.suffix}")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield temporary
        _publish(temporary, target, overwrite)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is there no more; or the disk is gone, or read-only now
            temporary.unlink()


def check_free(path: Path, *, overwrite: bool, option: str = "--output") -> None:
    """Before hours of work, too. Raises TakenError, which names `option`, where `path` exists and is to stay, and
    OutputError where it is no file, or its folder is none that can be written to or made."""
    if not overwrite and os.path.lexists(path):
        raise TakenError(f"{path} exists already: pass --overwrite to replace it, or choose another {option}")
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 (a name may be too long for Path's)
        found = "a folder" if path.is_dir() else "a device or pipe"
        raise OutputError(f"cannot write {path}: expected a file there, or nothing, found {found}")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write into {folder}")


def make_folder(path: Path) -> None:
    """With its parents, where it is missing: before hours of work, as for some folders nothing else shows that it
    cannot be made. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        there = next(part for part in (path.absolute(), *path.absolute().parents) if os.path.lexists(part))
        reason = error.strerror if there.is_dir() else f"{there} is not a folder"
        raise OutputError(f"cannot make the folder {path}: {reason}") from error


def write_whole(path: str | os.PathLike[str], data: bytes | str, *, overwrite: bool) -> None:
    """Write `data` to `path` so that a reader sees all of it or nothing; see `whole_file`."""
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def ending(suffix: str) -> str:
    """A file name's ending in words, for what is raised."""
    return repr(suffix) if suffix else "no ending"


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    # On disk before its name is: a power cut must not leave an empty file. Windows syncs only what may be written to.
    with open(temporary, "r+b") as file:
        os.fsync(file.fileno())
    if overwrite:
        temporary.replace(target)
        return
    try:
        _link_new(temporary, target)
    except FileExistsError:
        raise TakenError(f"{target} appeared meanwhile: it was not replaced") from None


def _link_new(temporary: Path, target: Path) -> None:
    link: Callable[[Path, Path], None] = os.link
    try:
        link(temporary, target)  # unlike a rename, fails where the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        temporary.replace(target)
