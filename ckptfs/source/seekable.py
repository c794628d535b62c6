"""A Ranged as other code likes it: a seekable file, a stream, a part of itself."""

from __future__ import annotations

import errno
import io

from ckptfs.errors import SourceCorrupt, SourceRefused
from ckptfs.source.base import Ranged


class SubRange:
    """A run of another Ranged's bytes (:class:`~ckptfs.source.base.Ranged`)."""

    __slots__ = ("_ranged", "_start", "size_bytes")

    def __init__(self, ranged: Ranged, start: int, size_bytes: int) -> None:
        self._ranged = ranged
        self._start = start
        self.size_bytes = size_bytes

    def read_at(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.size_bytes:
            raise SourceCorrupt(f"a read of {len(buffer)} bytes at {offset} is outside of its member")
        self._ranged.read_at(self._start + offset, buffer)


class RangedStream:
    """A Ranged from its beginning to its end (:class:`~ckptfs.source.base.ByteStream`)."""

    def __init__(self, ranged: Ranged) -> None:
        self._ranged = ranged
        self._position = 0

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), self._ranged.size_bytes - self._position)
        if count:
            self._ranged.read_at(self._position, buffer[:count])
            self._position += count
        return count

    def close(self) -> None:
        return None


class SeekableView(io.RawIOBase):
    """A read-only binary file over a Ranged, for zipfile and tarfile.

    ``longest_read_bytes`` bounds what a lying header can make them ask for at once.
    ``last`` is what the last read returned: it tells how a tar's listing ended.
    """

    def __init__(self, ranged: Ranged, label: str, longest_read_bytes: int) -> None:
        super().__init__()
        self._ranged = ranged
        self._label = label
        self._longest = longest_read_bytes
        self._position = 0
        self.last = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ranged.size_bytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a seek to before the beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._ranged.size_bytes - self._position)
        count = left if size is None or size < 0 else min(size, left)
        self.check_length(count)
        data = bytearray(count)
        if count:
            self._ranged.read_at(self._position, memoryview(data))
            self._position += count
        self.last = bytes(data)
        return self.last

    def check_length(self, count_bytes: int) -> None:
        if count_bytes > self._longest:
            raise SourceRefused(
                f"{self._label}: a header claims {count_bytes:,} bytes at once, more than the "
                f"{self._longest:,} that are accepted; the archive is damaged or hostile"
            )
