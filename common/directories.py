"""Directories of tagged values, which TIFF files and EXIF data are made of (TIFF 6.0, section 2; BigTIFF).

Libraries that know more of them were seen to loop for minutes over 15 KB of flipped bits; here every step is bounded.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

ORIENTATION, EXIF, GPS, INTEROPERABILITY = 274, 34665, 34853, 40965
LONG, UNDEFINED, BYTE, SHORT, RATIONAL = 4, 7, 1, 3, 5
"""Field types."""

_POINTERS = {0: {EXIF, GPS}, EXIF: {INTEROPERABILITY}, GPS: set[int](), INTEROPERABILITY: set[int]()}
"""Tags whose value is another directory, by the directory that they are in; 0 is the first."""
_ITEMS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value by field type; rationals (5, 10) are two numbers of half of it."""
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}

Tags: TypeAlias = "dict[int, tuple[int, bytes] | Tags]"
"""Tag -> field type and little-endian values, or the directory that it points to."""


@dataclass(frozen=True)
class Entry:
    """One tag's values: `size` bytes at `offset` of the data."""

    kind: int
    offset: int
    size: int


class DamagedError(ValueError):
    """The data is no TIFF or EXIF, or its directories lead beyond its end."""


class Reader:
    """Directories of a TIFF file or of EXIF data. Every method raises DamagedError where they lead nowhere."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")
        if not self.order:
            raise DamagedError("no byte order")
        version = self._unpack("H", 2)
        if version not in (42, 43):
            raise DamagedError(f"version {version}")
        self._big = version == 43
        self.first = self._unpack(*("Q", 8) if self._big else ("I", 4))

    def read(self, offset: int) -> tuple[dict[int, Entry], int]:
        """The directory at `offset`, and the offset of the next, 0 after the last. Of a tag's repetitions the first
        counts, as in libtiff; values that lie beyond the end are left out."""
        count, head, step, wide = ("Q", 8, 20, "Q") if self._big else ("H", 2, 12, "I")
        number, inline = self._unpack(count, offset), struct.calcsize(wide)
        start, end = offset + head, offset + head + step * self._unpack(count, offset)
        if end + inline > len(self.data):
            raise DamagedError(f"directory of {number} tags beyond the end")
        entries: dict[int, Entry] = {}
        for at in range(start, end, step):
            code, kind, values = struct.unpack_from(f"{self.order}HH{wide}", self.data, at)
            size = values * _ITEMS.get(kind, 0)
            where = at + step - inline
            if size > inline:
                where = self._unpack(wide, where)
            if size and where + size <= len(self.data):
                entries.setdefault(code, Entry(kind, where, size))
        return entries, self._unpack(wide, end)

    def raw(self, entry: Entry) -> bytes:
        """The values as they are stored."""
        return bytes(self.data[entry.offset : entry.offset + entry.size])

    def integers(self, entry: Entry | None, default: int = 0) -> list[int]:
        """The values as integers, `[default]` for None."""
        if entry is None:
            return [default]
        if entry.kind not in _INTEGERS:
            raise DamagedError(f"expected integers, found type {entry.kind}")
        values: list[int] = np.frombuffer(self.raw(entry), self.order + _INTEGERS[entry.kind]).tolist()
        return values

    def copy(self, only: Collection[int]) -> Tags:
        """The tags `only` of the first directory, and all of the EXIF and GPS directories below it, if in `only`."""
        return self._copy(self.first, 0, only)

    def _copy(self, offset: int, parent: int, only: Collection[int] | None) -> Tags:
        entries = {code: e for code, e in self.read(offset)[0].items() if only is None or code in only}
        if sum(entry.size for entry in entries.values()) > len(self.data):  # a few bytes that are used many times
            raise DamagedError("more values than data")
        tags: Tags = {}
        for code, entry in entries.items():
            if code in _POINTERS[parent]:
                tags[code] = self._copy(self.integers(entry)[0], code, None)
            elif entry.kind < 16:  # those from 16 up are BigTIFF's alone
                tags[code] = entry.kind, self._little(entry)
        return tags

    def _little(self, entry: Entry) -> bytes:
        unit = _ITEMS[entry.kind] // (2 if entry.kind in (5, 10) else 1)
        return np.frombuffer(self.raw(entry), f"{self.order}u{unit}").astype(f"<u{unit}").tobytes()

    def _unpack(self, kind: str, offset: int) -> int:
        try:
            (value,) = struct.unpack_from(self.order + kind, self.data, offset)
        except (struct.error, OverflowError) as error:
            raise DamagedError(f"nothing at {offset}") from error
        return int(value)


def pack(tags: Tags, start: int) -> bytes:
    """A little-endian directory as it lies at `start`, an even offset of the file, and behind it its values.

    Raises DamagedError beyond 4 GB, where such directories end.
    """
    table, values = bytearray(struct.pack("<H", len(tags))), bytearray()
    behind = start + 2 + 12 * len(tags) + 4
    try:
        for code, value in sorted(tags.items(), key=lambda item: item[0]):
            at = behind + len(values)
            if isinstance(value, dict):
                table += struct.pack("<HHII", code, LONG, 1, at)
                values += pack(value, at)
            else:
                kind, raw = value
                table += struct.pack("<HHI", code, kind, len(raw) // _ITEMS[kind])
                table += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", at)
                values += raw if len(raw) > 4 else b""
            values += bytes(len(values) % 2)
    except struct.error as error:
        raise DamagedError("beyond 4 GB") from error
    return bytes(table + bytes(4) + values)
