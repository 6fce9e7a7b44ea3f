"""Quiet for codecs: libpng, libjpeg and libtiff write to the process's stderr, and OpenCV has no switch for it."""

import contextlib
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_users = 0
_stderr: int | None = None
"""A copy of the process's own stderr while it leads nowhere."""


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send the process's stderr nowhere as long as any thread is in such a block; threads do not wait for each other.

    What others print there meanwhile is lost as well. Who must be heard writes to a copy (`os.dup`) made before.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _silence()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _restore()


def _silence() -> None:
    global _stderr
    try:
        _stderr = os.dup(2)
    except OSError:  # the process has no stderr
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _restore() -> None:
    global _stderr
    if _stderr is not None:
        os.dup2(_stderr, 2)
        os.close(_stderr)
        _stderr = None
