"""What a checkpoint is created from, as the engine sees it: one face for every kind of source.

A source is pinned when it is opened: what is read later is of the version that was listed then, or
the read fails with :class:`~ckptfs.errors.SourceChanged`. It never yields a mixture.

Calls block; the engine makes them in worker threads, ``read_at`` from several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol


class Ranged(Protocol):
    """Bytes that can be read anywhere, from several threads at once."""

    size_bytes: int

    def read_at(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer with the bytes at ``offset``, or raise. Retries are made inside."""
        ...


class ByteStream(Protocol):
    """Bytes that come once, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Put between 1 and ``len(buffer)`` bytes into the buffer; 0 at the end."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SourceDirectory:
    path: bytes


@dataclass(frozen=True, slots=True)
class SourceLink:
    path: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class SourceHardlink:
    """Another name for the bytes of a file that the same source listed earlier."""

    path: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file.

    ``pin`` changes whenever the bytes may have changed: (path, size, pin) equal means same bytes, so
    what an interrupted creation recorded for it can be used again. Exactly one of ``ranged`` and
    ``stream`` is set. ``size_bytes`` is None only where the source cannot know it before reading.
    """

    path: bytes
    size_bytes: int | None
    executable: bool
    pin: str
    ranged: Ranged | None = None
    stream: Callable[[], ByteStream] | None = None


@dataclass(frozen=True, slots=True)
class SourceSpecial:
    """Something that a checkpoint may not hold. ``what`` says what it is ("a device", "a fifo")."""

    path: bytes
    what: str


SourceEntry = SourceDirectory | SourceLink | SourceHardlink | SourceFile | SourceSpecial

#: Called with (bytes_done, bytes_total or 0) while a source fetches ahead of its entries (a spool).
FetchProgress = Callable[[int, int], None]


class Source(Protocol):
    """An opened, pinned source.

    ``sequential``: entries must be consumed in order and each file's stream be read before the next
    entry is asked for (a compressed tar). Otherwise the listing is complete before anything is read
    and files may be read in any order.
    ``total_bytes``: the logical size when it is known before reading, else None.
    ``key``: the same for the same source opened again (kind, URI, options that matter; no secrets).
    """

    kind: str
    key: str
    sequential: bool
    total_bytes: int | None

    def entries(self) -> Iterator[SourceEntry]: ...

    def close(self) -> None: ...
