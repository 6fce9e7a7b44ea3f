"""Directories of tags come back as they were, and whatever bytes they are read from, the reading ends."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.directories import EXIF, GPS, ORIENTATION, DamagedError, Reader, Tags, pack
from common.metadata import orientation

VALUES = st.tuples(st.just(7), st.binary(min_size=1, max_size=9)) | st.integers(0, 2**32 - 1).map(
    lambda value: (4, value.to_bytes(4, "little"))
)
TAGS: st.SearchStrategy[Tags] = st.dictionaries(st.integers(1, 30_000), VALUES, max_size=8)


@settings(deadline=None)
@given(tags=TAGS, below=TAGS, at=st.integers(4, 40).map(lambda half: 2 * half))
def test_directories_come_back(tags: Tags, below: Tags, at: int) -> None:
    both: Tags = {**tags, EXIF: below}
    data = (b"II*\0" + at.to_bytes(4, "little")).ljust(at, b"\0") + pack(both, at)
    assert Reader(data).copy(both) == both
    for end in range(0, len(data), 7):  # cut off: nothing is there that was not
        with contextlib.suppress(DamagedError):
            found = Reader(data[:end]).copy(both)
            inner = found.pop(EXIF, {})
            assert isinstance(inner, dict)
            assert all(both[code] == value for code, value in found.items())
            assert all(below[code] == value for code, value in inner.items())


def test_values_lie_at_even_offsets() -> None:
    """As TIFF 6.0 asks for."""
    data = pack({270: (2, b"a note\0"), 305: (2, b"a program\0")}, 8)
    first, second = (int.from_bytes(data[at : at + 4], "little") for at in (10, 22))
    assert (first % 2, second % 2) == (0, 0)
    assert data[second - 8 :].rstrip(b"\0") == b"a program"


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=80), order=st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]))
def test_directories_of_any_bytes_end(data: bytes, order: bytes) -> None:
    with contextlib.suppress(DamagedError):
        Reader(order + data).copy({0x010F, ORIENTATION, EXIF, GPS})
    assert 1 <= orientation({"EXIF": order + data}) <= 8


def test_values_used_many_times_do_not_multiply() -> None:
    """10,000 tags of one megabyte each, in a file of one megabyte."""
    value = (8 + 2 + 12 * 10_000).to_bytes(4, "little")
    entries = b"".join(
        code.to_bytes(2, "little") + b"\7\0" + (10**6).to_bytes(4, "little") + value for code in range(1, 10_001)
    )
    data = b"II*\0\x08\0\0\0" + (10_000).to_bytes(2, "little") + entries + bytes(10**6 + 4)
    with pytest.raises(DamagedError, match="more values than data"):
        Reader(data).copy(range(1, 10_001))
