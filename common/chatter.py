"""What codecs say: libpng, libjpeg and libtiff write to the process's stderr, and OpenCV has no switch for it."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_changed = threading.Condition()
_users = 0
_to_be_alone = 0
"""How many are alone, or wait for it."""
_stderr: int | None = None
"""A copy of the process's own stderr while another file takes its place."""
_heard: int | None = None
"""That file, open."""


@contextlib.contextmanager
def quiet_stderr(*, alone: bool = False) -> Iterator[Callable[[], str]]:
    """Keep what is written to the process's stderr from it as long as any thread is in such a block.

    Yields a function that returns what has been written since the block began: by this thread's codecs, by those of
    others that are in such a block, and by whoever else prints there, all of which stderr never gets (nor does it get
    what a process prints that was started meanwhile). Who must be heard writes to a copy (`os.dup`) made before.

    alone: wait for the others to leave, and have them wait. Else threads do not wait for each other. Such a block must
    not stand in another one.
    """
    global _users, _to_be_alone
    with _changed:
        _to_be_alone += alone
        try:
            _changed.wait_for(lambda: not (_users if alone else _to_be_alone))
            if not _users:
                _begin()
            _users += 1
        except BaseException:
            _to_be_alone -= alone
            _changed.notify_all()
            raise
        since = _written()
    try:
        yield lambda: _since(since)
    finally:
        with _changed:
            _users -= 1
            _to_be_alone -= alone
            if not _users:
                _end()
            _changed.notify_all()


def _begin() -> None:
    global _stderr, _heard
    try:
        _heard = _unnamed_file()
    except OSError:  # no place for it: nothing is heard
        _heard = os.open(os.devnull, os.O_RDWR)
    with contextlib.suppress(OSError):  # the process has no stderr
        _stderr = os.dup(2)
    os.dup2(_heard, 2)


def _unnamed_file() -> int:
    if sys.platform == "win32":  # which has no pread, and seeking would move what is written
        return os.open(os.devnull, os.O_RDWR)
    if sys.platform == "linux":
        return os.memfd_create("stderr")
    file, path = tempfile.mkstemp()
    Path(path).unlink()
    return file


def _end() -> None:
    global _stderr, _heard
    if _stderr is None:
        os.close(2)
    else:
        os.dup2(_stderr, 2)
        os.close(_stderr)
    if _heard is not None:
        os.close(_heard)
    _stderr = _heard = None


def _written() -> int:
    return 0 if _heard is None else os.fstat(_heard).st_size


def _since(start: int) -> str:
    if sys.platform == "win32" or _heard is None:
        return ""
    return os.pread(_heard, _written() - start, start).decode(errors="replace")


def _alone_after_fork() -> None:
    """In a child there is none of the threads that are in such a block, or wait."""
    global _changed, _users, _to_be_alone
    _changed, _to_be_alone = threading.Condition(), 0
    if _users:
        _users = 0
        _end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone_after_fork)
