"""A file's bytes from where they lie: its extents, and how they are read."""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ckptfs.errors import StoreDamaged
from ckptfs.model.manifest import DIGEST_BYTES, File
from ckptfs.model.names import show_path
from ckptfs.store import BlobHandle, Store

_LOOKUP_BATCH = 8192  # digests of one read transaction: bounds what is held in Python at a time
_ZEROS = bytes(1 << 20)


class Extent(NamedTuple):
    """A run of a file's bytes: ``length`` bytes at ``start`` of the file are at ``offset`` of ``blob``.
    Blob 0 is all zeros and needs no bytes."""

    start: int
    length: int
    blob: int
    offset: int


def extents_of(store: Store, file: File, own_blob: int = 0) -> list[Extent]:
    """The file's extents, in order, neighbours merged: a file that is whole has one.

    ``own_blob`` is the blob that is shaped like the file (0: there is none). A chunk of zeros is a hole
    there, so it can be read from it like its neighbours. Raises :class:`StoreDamaged` when a chunk is
    not in the store, or was found damaged and not brought in again since.
    """
    damaged = store.quarantined()
    extents: list[Extent] = []
    start = length = blob = offset = 0
    at = 0
    count = len(file.lengths)
    for first in range(0, count, _LOOKUP_BATCH):
        last = min(count, first + _LOOKUP_BATCH)
        digests = [file.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in range(first, last)]
        for index, chunk in enumerate(store.chunks(digests), first):
            size = file.lengths[index]
            if chunk is not None and chunk.digest in damaged:
                raise StoreDamaged(
                    f"the chunk at offset {at} of {show_path(file.path)} was found damaged; "
                    "create the checkpoint again under another name, and its bytes are mended"
                )
            if chunk is None or chunk.length != size:
                raise StoreDamaged(
                    f"the chunk at offset {at} of {show_path(file.path)} is not in the store; "
                    "`ckptfs verify` lists what is damaged"
                )
            if chunk.blob:
                where, position = chunk.blob, chunk.offset
            else:
                where, position = (own_blob, at) if own_blob else (0, 0)
            if length and where == blob and (not blob or position == offset + length):
                length += size
            else:
                if length:
                    extents.append(Extent(start, length, blob, offset))
                start, length, blob, offset = at, size, where, position
            at += size
    if length:
        extents.append(Extent(start, length, blob, offset))
    return extents


class FileReader:
    """Where one file's bytes lie. Making one blocks for as long as the index lookup takes.

    It holds no descriptor: blobs are borrowed from the store's bounded cache for each read, so a
    hundred thousand open files cost no more descriptors than one.
    """

    __slots__ = (
        "_blobs",
        "_offsets",
        "_starts",
        "_store",
        "damage_found",
        "native_blob",
        "path",
        "size_bytes",
    )

    def __init__(self, store: Store, file: File, own_blob: int = 0) -> None:
        #: What :attr:`Store.damage_found` was: there may be more by now.
        self.damage_found = store.damage_found
        extents = extents_of(store, file, own_blob)
        self._store = store
        self.path = file.path
        self.size_bytes = file.size_bytes
        #: The blob that is, byte for byte, this file (it is *whole*); 0 when there is none.
        self.native_blob = own_blob if extents == [Extent(0, file.size_bytes, own_blob, 0)] else 0
        # Columns instead of objects: a large file of many shared chunks stays at 24 bytes an extent.
        self._starts = array("Q", [e.start for e in extents])
        self._blobs = array("Q", [e.blob for e in extents])
        self._offsets = array("Q", [e.offset for e in extents])

    @property
    def extent_count(self) -> int:
        return len(self._starts)

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """``(start, blob, offset)`` of each, in order; one ends where the next starts. Blob 0: zeros."""
        return zip(self._starts, self._blobs, self._offsets, strict=True)

    def blobs(self) -> list[int]:
        """The blobs that have bytes of it."""
        return sorted(set(self._blobs) - {0})

    def open_blob(self, blob: int) -> BlobHandle:
        """Its descriptor (``.fd``), open until the handle is closed."""
        return self._store.blob(blob)

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """``(blob, offset_in_blob, length)`` of each run of the range, which must lie in the file."""
        starts = self._starts
        index = bisect_right(starts, offset) - 1
        while length > 0:
            into = offset - starts[index]
            end = starts[index + 1] if index + 1 < len(starts) else self.size_bytes
            run = min(length, end - offset)
            blob = self._blobs[index]
            yield blob, self._offsets[index] + into if blob else 0, run
            offset += run
            length -= run
            index += 1

    def clamp(self, offset: int, length: int) -> int:
        """How many of ``length`` bytes at ``offset`` lie in the file."""
        return max(0, min(length, self.size_bytes - offset))

    def read_resident(self, offset: int, buffer: memoryview) -> int:
        """Copy what the page cache has at ``offset``, without ever waiting for the disk.

        Answers how many bytes at the start of the buffer are filled. The range must lie in the file.
        """
        filled = 0
        for blob, position, run in self.pieces(offset, len(buffer)):
            part = buffer[filled : filled + run]
            if blob:
                with self._store.blob(blob) as handle:
                    try:
                        got = os.preadv(handle.fd, [part], position, os.RWF_NOWAIT)
                    except OSError as error:
                        # EOPNOTSUPP: this file system cannot say; then a thread has to find out.
                        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                            return filled
                        raise
            else:
                part[:] = _ZEROS[:run] if run <= len(_ZEROS) else bytes(run)
                got = run
            filled += got
            if got < run:
                return filled
        return filled

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer, waiting for the disk. The range must lie in the file.

        Raises :class:`StoreDamaged` when a blob ends before the bytes do.
        """
        filled = 0
        for blob, position, run in self.pieces(offset, len(buffer)):
            part = buffer[filled : filled + run]
            filled += run
            if not blob:
                part[:] = bytes(run)
                continue
            with self._store.blob(blob) as handle:
                while part:
                    got = os.preadv(handle.fd, [part], position)
                    if got == 0:
                        raise StoreDamaged(
                            f"blob {blob:016x} ends at {position}, in the middle of "
                            f"{show_path(self.path)} (offset {offset + filled - len(part)})"
                        )
                    part = part[got:]
                    position += got

    def read_blocking(self, offset: int, length: int) -> bytearray:
        """The bytes at ``offset``, fewer only at the end of the file. For worker threads."""
        data = bytearray(self.clamp(offset, length))
        if data:
            self.read_into(offset, memoryview(data))
        return data

    def close(self) -> None:
        """Nothing is held open between reads; callers need not know that."""
