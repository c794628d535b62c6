"""A zip member's CRC-32, checked whichever way its bytes are read.

A stream is summed as it passes. Ranges are read in any order by several threads: each one's sum is kept
and, when they cover the member without a gap, the sums are combined and compared. So the read that
completes the member fails if it is damaged. A member of which a part was brought in by an earlier,
interrupted creation is not read whole again and goes unchecked by CRC.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from isal import isal_zlib

from ckptfs.errors import SourceCorrupt
from ckptfs.source.base import ByteStream, Ranged


def crc32(data: memoryview, start: int = 0) -> int:
    return isal_zlib.crc32(data, start)


def _damaged(label: str) -> SourceCorrupt:
    return SourceCorrupt(f"{label} is damaged: its CRC is not the one that the archive gives")


class CheckedStream:
    """Passes a member through; raises at its end if it was not as long, or not what was archived
    (:class:`~ckptfs.source.base.ByteStream`)."""

    def __init__(self, plain: ByteStream, size_bytes: int, crc: int, label: str) -> None:
        self._plain = plain
        self._left = size_bytes
        self._crc = crc
        self._label = label
        self._sum = 0

    def readinto(self, buffer: memoryview, /) -> int:
        if not buffer:
            return 0
        got = self._plain.readinto(buffer)
        if got > self._left:
            raise SourceCorrupt(f"{self._label} holds more than the archive's directory says")
        self._sum = crc32(buffer[:got], self._sum)
        self._left -= got
        if not got:
            if self._left:
                raise SourceCorrupt(f"{self._label} is truncated: {self._left} bytes are missing")
            if self._sum != self._crc:
                raise _damaged(self._label)
        return got

    def close(self) -> None:
        self._plain.close()


class CheckedRange:
    """A stored member (:class:`~ckptfs.source.base.Ranged`). ``find`` gives its bytes, when first needed."""

    __slots__ = ("_content", "_crc", "_find", "_label", "_lock", "_seen", "size_bytes")

    def __init__(self, find: Callable[[], Ranged], size_bytes: int, crc: int, label: str) -> None:
        self.size_bytes = size_bytes
        self._find = find
        self._content: Ranged | None = None
        self._crc = crc
        self._label = label
        self._lock = threading.Lock()
        #: Runs that were read, as start: (end, crc). Neighbours are merged at once, so it stays small.
        self._seen: dict[int, tuple[int, int]] = {}

    def read_at(self, offset: int, buffer: memoryview) -> None:
        if self._content is None:
            self._content = self._find()
        self._content.read_at(offset, buffer)
        if buffer:
            self._saw(offset, len(buffer), crc32(buffer))

    def _saw(self, start: int, length: int, crc: int) -> None:
        end = start + length
        with self._lock:
            overlapping = [
                (other, other_end)
                for other, (other_end, _) in self._seen.items()
                if start < other_end and other < end
            ]
            if any(other <= start and end <= other_end for other, other_end in overlapping):
                return  # seen before: a second try
            # A look at the container's directory came first; the reads that follow cover it again.
            for other, _ in overlapping:
                del self._seen[other]
            before = next((s for s, (e, _) in self._seen.items() if e == start), None)
            if before is not None:
                crc = _combine(self._seen.pop(before)[1], crc, length)
                start = before
            after = self._seen.pop(end, None)
            if after is not None:
                crc = _combine(crc, after[1], after[0] - end)
                end = after[0]
            self._seen[start] = (end, crc)
            whole = start == 0 and end == self.size_bytes
        if whole and crc != self._crc:
            raise _damaged(self._label)


def _combine(first: int, second: int, second_length_bytes: int) -> int:
    return isal_zlib.crc32_combine(first, second, second_length_bytes)
