"""Pictures that are read and decoded by threads before they are asked for, as far ahead as there is memory."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

from common.errors import InputError
from common.host_memory import free_bytes
from common.images import Picture, decoded_size, read_file
from runtime.jobs import Job

THREADS = min(8, os.cpu_count() or 1)
"""That decode, and as many that encode."""
COPIES = 4
"""As often a picture is in memory at most: decoded, padded, denoised, and as the encoder takes it."""
MOST_BYTES = 2 << 30
"""What all pictures on their way take together at most, and no more than a part of what is free. One that takes more
goes alone."""
SHARE = 4
"""That part: one in so many."""
MOST_FILES = 4 * THREADS
"""On their way at once."""

Decode: TypeAlias = Callable[[Job, bytes], Picture]


@dataclass(eq=False)
class Item:
    """A file on its way."""

    job: Job
    size: int = 0
    """Bytes lent to it."""
    gray: bool = False
    """Its picture shows no colour; known once it is taken."""
    decoding: "Future[Picture]" = field(default_factory=Future)
    writing: "Future[tuple[str, ...]]" = field(default_factory=Future)

    def take(self) -> Picture:
        """The picture, which the item holds no longer; waits for it, and raises what decoding it has raised."""
        picture = self.decoding.result()
        self.decoding, self.gray = Future(), picture.gray
        return picture


class LookAhead:
    """The items of `jobs`, in order. `decode` makes a picture of a file's bytes, in a thread of its own.

    Nothing runs before `start`. Who takes an item gives its memory back when nothing holds its picture any more. Those
    of videos hold none.
    """

    def __init__(self, jobs: Iterable[Job], decode: Decode, most_pixels: int) -> None:
        self._jobs, self._decode, self._most_pixels = jobs, decode, most_pixels
        self._line: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._held: list[Item | None] = []  # taken from the line before it was wanted; one at most
        self._changed = threading.Condition()
        self._bytes = self._files = 0
        free = free_bytes()
        self._room = MOST_BYTES if free is None else min(MOST_BYTES, free // SHARE)
        self._closed = False
        self._feeder, self._decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(THREADS)
        self._feeding: Future[None] = Future()

    def start(self) -> None:
        """Begin to read and decode."""
        self._feeding = self._feeder.submit(self._feed)

    def next(self) -> Item | None:
        """The next item, None after the last; waits for it."""
        item = self._held.pop() if self._held else self._line.get()
        if item is None:
            self._feeding.result()  # raises what is a defect of ours
        return item

    def next_decoded(self) -> Item | None:
        """The next item if its picture is there; to wait for it might be to wait for the memory of those before it."""
        if not self._held:
            with contextlib.suppress(queue.Empty):
                self._held.append(self._line.get_nowait())
        ready = self._held and self._held[0] and not self._held[0].job.video and self._held[0].decoding.done()
        return self._held.pop() if ready else None

    def give_back(self, item: Item) -> None:
        """Return the memory that was lent to an item."""
        with self._changed:
            self._bytes -= item.size
            self._files -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for pool in (self._feeder, self._decoders):
            pool.shutdown(cancel_futures=True)

    def _feed(self) -> None:
        try:
            for job in self._jobs:
                item, data = Item(job), b""
                try:
                    if not job.video:
                        data = read_file(job.source, most_pixels=self._most_pixels)
                except InputError as error:
                    item.decoding.set_exception(error)
                item.size = len(data) + COPIES * decoded_size(data)
                if not self._borrow(item.size):
                    return
                if data:
                    item.decoding = self._decoders.submit(self._decode, job, data)
                self._line.put(item)
        finally:
            self._line.put(None)

    def _borrow(self, size: int) -> bool:
        """Wait until there are `size` bytes, or nothing is lent. False: closed meanwhile."""

        def free() -> bool:
            fits = self._bytes + size <= self._room and self._files < MOST_FILES
            return fits or not self._files or self._closed

        with self._changed:
            self._changed.wait_for(free)
            if not self._closed:
                self._bytes += size
                self._files += 1
            return not self._closed
