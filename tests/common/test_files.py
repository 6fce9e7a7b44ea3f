"""A file appears whole or not at all, and nothing of the user's is replaced unasked."""

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from common.errors import OutputError, TakenError
from common.files import sha256, whole_file, write_whole


def test_writes_bytes_and_text_and_makes_folders(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.bin", b"\x00\xff", overwrite=False)
    write_whole(tmp_path / "a" / "b.txt", "grün", overwrite=False)
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "grün"
    assert sha256(tmp_path / "a" / "b.bin") == hashlib.sha256(b"\x00\xff").hexdigest()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.bin", "b.txt"]


def test_results_have_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "x", b"", overwrite=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        write_whole(target, b"new", overwrite=False)
    assert target.read_bytes() == b"old"
    write_whole(target, b"new", overwrite=True)
    assert target.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(OutputError, match="meanwhile"), whole_file(target, overwrite=False) as temporary:  # noqa: PT012
        temporary.write_bytes(b"ours")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "x"
    if overwrite:
        target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(target, overwrite=overwrite) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"old"] if overwrite else [])


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left"):
        write_whole(tmp_path / "x", b"data", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / "file" / "x", b"", overwrite=False)


def test_a_read_only_folder_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:  # root, as in many containers, may write anywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(OutputError, match="Permission denied"):
        write_whole(tmp_path / "x", b"", overwrite=False)


def test_a_disk_that_is_gone_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unfinished file cannot be removed then either."""

    def gone(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", gone)
    monkeypatch.setattr(Path, "unlink", gone)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_whole(tmp_path / "x", b"", overwrite=False)


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/x").write_bytes(b"old")
    (tmp_path / "link").symlink_to("store/x")
    with pytest.raises(TakenError):
        write_whole(tmp_path / "link", b"new", overwrite=False)
    write_whole(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store/x").read_bytes() == b"new"


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, found in (("pipe", "a device or pipe"), ("folder", "a folder")):
        with pytest.raises(OutputError, match=f"expected a file there, or nothing, found {found}"):
            write_whole(tmp_path / name, b"", overwrite=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    def no_links(*_: Any) -> None:
        if taken:
            (tmp_path / "x").write_bytes(b"theirs")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    if taken:
        with pytest.raises(OutputError, match="meanwhile"):
            write_whole(tmp_path / "x", b"ours", overwrite=False)
    else:
        write_whole(tmp_path / "x", b"ours", overwrite=False)
    assert (tmp_path / "x").read_bytes() == (b"theirs" if taken else b"ours")
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_synced_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses others."""
    synced: list[int] = []

    def fsync(number: int) -> None:
        os.write(number, b"")  # fails where it may only be read
        synced.append(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "x", b"new", overwrite=False)
    assert len(synced) == 1
    assert (tmp_path / "x").read_bytes() == b"new"
