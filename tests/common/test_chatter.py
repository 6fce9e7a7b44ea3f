"""Codecs say nothing, and what others say comes through."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.chatter import quiet_stderr
from common.images import Picture, encode_picture


def test_codecs_say_nothing_and_stderr_comes_back(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg, png = (bytearray(encode_picture(Picture(noise), suffix)[0]) for suffix in (".jpg", ".png"))
    jpeg[len(jpeg) // 2 : len(jpeg) // 2 + 20] = bytes(20)
    png[png.index(b"IDAT") + 10] ^= 1
    (tmp_path / "damaged.jpg").write_bytes(jpeg)
    (tmp_path / "damaged.png").write_bytes(png)
    code = """
import os, sys
import cv2, numpy as np
from common.errors import InputError
from common.images import read_picture
for name in sys.argv[2:]:
    if sys.argv[1] == "ours":
        try:
            read_picture(name)
        except InputError:
            pass
    else:
        cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_UNCHANGED)
os.write(2, b"heard")
"""

    def said(reader: str, name: str) -> bytes:
        command = [sys.executable, "-c", code, reader, str(tmp_path / name)]
        return subprocess.run(command, capture_output=True, check=True).stderr

    for name in ("damaged.jpg", "damaged.png"):
        assert len(said("OpenCV", name)) > len(b"heard"), "the file is to make the codec speak"
        assert said("ours", name) == b"heard"


def test_threads_do_not_wait_for_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    both = threading.Barrier(2, timeout=10)  # breaks where one block keeps the other out

    def quiet(first: bool) -> None:
        with quiet_stderr():
            both.wait()
            os.write(2, b"chatter")
            if first:
                both.wait()
        if not first:
            os.write(2, b"chatter")  # the other block is still open
            both.wait()

    threads = [threading.Thread(target=quiet, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_who_is_alone_hears_no_other_thread() -> None:
    beside, alone = threading.Event(), threading.Event()
    order = []

    def other() -> None:
        with quiet_stderr():
            beside.set()
            os.write(2, b"before")
            assert not alone.wait(0.2)  # one that waits to be alone is not let in
            order.append("other")
        with quiet_stderr():  # nor is this let in to it
            os.write(2, b"after")
            order.append("again")

    thread = threading.Thread(target=other)
    thread.start()
    assert beside.wait(10)
    with quiet_stderr(alone=True) as said:
        alone.set()
        os.write(2, b"mine")
        thread.join(0.2)
        order.append("alone")
        assert said() == "mine"
    thread.join(10)
    assert order == ["other", "alone", "again"]


def test_of_many_each_hears_itself_alone() -> None:
    heard: list[tuple[str, str]] = []

    def speak(number: int) -> None:
        for turn in range(200):
            with quiet_stderr(alone=number < 4) as said:
                word = f"<{number} {turn}>"
                os.write(2, word.encode())
                if number < 4:
                    heard.append((said(), word))

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=speak, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(switching)
    assert len(heard) == 800
    assert [found for found in heard if found[0] != found[1]] == []


def test_a_child_waits_for_no_thread_of_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with quiet_stderr():
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(10)
        with quiet_stderr(alone=True):
            os.write(2, b"chatter")
        os.write(2, b"heard")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join(10)
    assert (status, capfd.readouterr().err) == (0, "heard")


def test_who_is_interrupted_while_it_waits_to_be_alone_keeps_nobody_out() -> None:
    inside, leave, entered = threading.Event(), threading.Event(), threading.Event()

    def stay() -> None:
        with quiet_stderr():
            inside.set()
            leave.wait(60)

    def enter() -> None:
        with quiet_stderr():
            entered.set()

    def interrupt() -> None:
        time.sleep(0.2)  # the main thread waits by now, and keeps out who comes later
        threads[1].start()
        entered.wait(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threads = [threading.Thread(target=target) for target in (stay, enter, interrupt)]
    threads[0].start()
    assert inside.wait(10)
    threads[2].start()
    with pytest.raises(KeyboardInterrupt), quiet_stderr(alone=True):
        pass
    found = entered.wait(10)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert found


def test_what_is_said_is_told_from_the_blocks_beginning_on() -> None:
    with quiet_stderr() as first:
        os.write(2, b"one")
        with quiet_stderr() as second:
            os.write(2, b" two")
            assert second() == " two"
        assert first() == "one two"


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_without_a_place_for_what_is_said_it_is_lost(
    system: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(tempfile, "mkstemp", full_disk)
    monkeypatch.setattr(os, "memfd_create", full_disk)
    with quiet_stderr() as said:
        os.write(2, b"chatter")
        assert said() == ""
    assert capfd.readouterr().err == ""


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_without_files_in_memory_one_of_the_disk_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with quiet_stderr() as said:
        os.write(2, b"chatter")
        assert said() == "chatter"


def test_no_file_descriptor_is_left_open() -> None:
    with open(os.devnull) as file:
        lowest = file.fileno()
    for _ in range(5):
        with quiet_stderr(), quiet_stderr():
            pass
    with open(os.devnull) as file:
        assert file.fileno() == lowest


def test_a_process_without_stderr_reads_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode_picture(Picture(np.zeros((4, 4), np.uint8)), ".png")[0])
    code = "import sys; from common.images import read_picture; read_picture(sys.argv[1])"
    subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code, tmp_path / "x.png"], check=True)
