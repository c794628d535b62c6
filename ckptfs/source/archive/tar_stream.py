"""A compressed tar: its members come once, in order, each while the stream stands at it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from ckptfs.errors import SourceCorrupt, SourceNotFound
from ckptfs.model.names import show_path
from ckptfs.source.archive.members import (
    LONGEST_HEADER_BYTES,
    check_rest,
    is_root,
    raw,
    runs_of,
    walk,
    without_content,
)
from ckptfs.source.base import ByteStream, SourceEntry, SourceFile
from ckptfs.source.limits import Opening
from ckptfs.source.listing import check_entries
from ckptfs.source.place import PlacedFile
from ckptfs.source.seekable import SeekableView

_SKIP_BYTES = 256 << 10


class ForwardView(SeekableView):
    """A stream as the seekable file that tarfile wants: it can be wound forward only, which suffices."""

    def __init__(self, stream: ByteStream, label: str) -> None:
        io.RawIOBase.__init__(self)
        self._stream = stream
        self._label = label
        self._longest = LONGEST_HEADER_BYTES
        self._position = 0
        self._scratch = memoryview(bytearray(_SKIP_BYTES))
        self.last = b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise ValueError("a compressed stream cannot be wound back")
        while self._position < offset:
            if not self.take(self._scratch[: offset - self._position]):
                break  # the next read says it
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        self.check_length(size if size is not None and size >= 0 else self._longest + 1)
        assert size is not None
        data = bytearray(size)
        done = 0
        while done < size and (got := self.take(memoryview(data)[done:])):
            done += got
        self.last = bytes(data[:done])
        return self.last

    def take(self, buffer: memoryview) -> int:
        got = self._stream.readinto(buffer)
        self._position += got
        return got


class TarStream:
    """A source whose entries must be read in order (:class:`~ckptfs.source.base.Source`)."""

    sequential = True
    total_bytes: int | None = None

    def __init__(
        self, opening: Opening, place: PlacedFile, stream: ByteStream, close: Callable[[], None]
    ) -> None:
        self.kind = place.kind
        self.key = place.key
        self._label = place.label
        self._pin = place.file.pin
        self._opening = opening
        self._stream = stream
        self._close = close

    def entries(self) -> Iterator[SourceEntry]:
        view = ForwardView(self._stream, self._label)
        count = 0
        for member in walk(view, self._label):
            self._opening.check_cancelled()
            entry = without_content(member)
            if entry is None:
                runs = runs_of(member, self._label)
                content = _Member(view, raw(member.name), self._label, member.size, runs)
                entry = SourceFile(
                    raw(member.name),
                    member.size,
                    bool(member.mode & 0o111),
                    f"{self._pin}@{member.offset_data}",
                    stream=content.begin,
                )
            elif is_root(entry.path):
                continue
            count += 1
            check_entries(self._label, count, self._opening.limits)
            yield entry
        # Reading on to the end makes the decoder check what follows, its checksum above all.
        rest = memoryview(bytearray(_SKIP_BYTES))
        while got := view.take(rest):
            check_rest(rest[:got], self._label)
        if not count:
            raise SourceNotFound(f"{self._label} is empty: there is nothing to make a checkpoint of")

    def close(self) -> None:
        self._close()


class _Member:
    """The content of the member that the stream stands at (:class:`~ckptfs.source.base.ByteStream`)."""

    def __init__(
        self, view: ForwardView, path: bytes, label: str, size_bytes: int, runs: list[tuple[int, int]] | None
    ) -> None:
        self._view = view
        self._path = path
        self._label = label
        self._size = size_bytes
        self._runs = [(0, size_bytes)] if runs is None else runs
        self._start = view.tell()
        self._position = 0
        self._run = 0

    def begin(self) -> ByteStream:
        if self._view.tell() != self._start or self._position:
            raise RuntimeError(f"{self._path!r} was not read when the stream stood at it")
        return self

    def readinto(self, buffer: memoryview, /) -> int:
        while self._run < len(self._runs) and sum(self._runs[self._run]) <= self._position:
            self._run += 1
        until = self._runs[self._run][0] if self._run < len(self._runs) else self._size
        if self._position < until:  # in a hole
            count = min(len(buffer), until - self._position)
            buffer[:count] = bytes(count)
        else:
            if self._run == len(self._runs):
                return 0
            offset, length = self._runs[self._run]
            count = self._view.take(buffer[: offset + length - self._position])
            if not count and buffer:
                raise SourceCorrupt(
                    f"{self._label} is truncated: it ends in the middle of {show_path(self._path)}"
                )
        self._position += count
        return count

    def close(self) -> None:
        return None
