"""Derived copies of a checkpoint's files: what each would cost, and how one is made. Blocks throughout.

What is copied is compared with its chunk's fingerprint on the way: whole chunks are read, also where only
an edge of one is needed. What is shared is not read at all: it is the same bytes of the same disk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ckptfs.engine.forms import Form, forms_of
from ckptfs.engine.ingest import new_buffer
from ckptfs.engine.reader import extents_of
from ckptfs.errors import StoreDamaged
from ckptfs.model.assembly import Plan, plan
from ckptfs.model.chunking import TARGET_CHUNK_BYTES
from ckptfs.model.digest import digest as digest_of
from ckptfs.model.digest import fingerprint
from ckptfs.model.manifest import File, Manifest
from ckptfs.model.names import show_path
from ckptfs.store import Chunk, NewCopy, Store, Why

#: One call clones this much, so that the source's lock is held for a few dozen extents only.
_CLONE_BYTES = 64 << 20

#: A copy costs nearly nothing when it takes at most this part of its file: runs of one chunk of 4 MiB whose
#: edges lie inside blocks take half of that. Or two blocks, the edges of a single run in a small file.
_NEARLY_FREE_PART = 256
_NEARLY_FREE_BLOCKS = 2

_LOOKUP_BATCH = 1024  # chunks of one index lookup


class ChunkDamaged(StoreDamaged):
    """A chunk that was to be copied is not what it should be."""

    def __init__(self, file: File, offset: int, length: int, digest: bytes, problem: str) -> None:
        super().__init__(f"the chunk at offset {offset} of {show_path(file.path)}: {problem}")
        self.path = file.path
        self.offset = offset
        self.length = length
        self.digest = digest
        self.problem = problem


class NotShared(Exception):
    """The file system would not share the blocks, and nobody asked for what copying them costs."""


@dataclass(frozen=True, slots=True)
class Work:
    """A file that could have a derived copy. ``cost_bytes``: what it would take of the disk."""

    entry: int
    file: File
    own_blob: int
    cost_bytes: int
    nearly_free: bool


@dataclass(slots=True)
class Survey:
    """A checkpoint's files: how many there are in each form, and what could be done for the shared ones."""

    forms: Counter[Form] = field(default_factory=Counter)
    shared: list[Work] = field(default_factory=list)


class Deriver:
    """Plans and makes derived copies in a store, in one thread at a time. ``share``: whether the store's
    files can share blocks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._block_bytes = store.block_bytes()
        self.share = store.can_share_blocks()
        self._buffer = new_buffer(TARGET_CHUNK_BYTES)

    def survey(self, ordinal: int, manifest: Manifest, check: Callable[[], None]) -> Survey:
        """Look at every file. ``check`` is called between files, and may raise."""
        found = Survey()
        own = self._store.own_blobs(ordinal)
        for entry, file, form in forms_of(self._store, ordinal, manifest, check):
            if form is Form.SHARED:
                with suppress(StoreDamaged):  # found by somebody else this very moment
                    found.shared.append(self._work(entry, file, own.get(entry, 0)))
            found.forms[form] += 1
        return found

    def _work(self, entry: int, file: File, own_blob: int) -> Work:
        cost = self._plan(file, own_blob).cost_bytes(self._block_bytes)
        free = max(file.size_bytes // _NEARLY_FREE_PART, _NEARLY_FREE_BLOCKS * self._block_bytes)
        return Work(entry, file, own_blob, cost, cost <= free)

    def _plan(self, file: File, own_blob: int) -> Plan:
        # Where nothing can be shared a zero is a hole of its own, and not to be looked for in the own blob.
        return plan(
            extents_of(self._store, file, own_blob if self.share else 0),
            file.size_bytes,
            share_bytes=self._block_bytes if self.share else 0,
            blob_size=self._store.blob_size,
        )

    def make(self, ordinal: int, work: Work, *, asked: bool, step: Callable[[int], None]) -> NewCopy:
        """Make a copy, to be recorded. ``step`` is called with bytes that are done, and may raise.

        Raises :class:`ChunkDamaged`, :class:`NotShared` unless it is asked for, and what the store raises;
        nothing is left then.
        """
        file = work.file
        why = Why.FREE if work.nearly_free else Why.ASKED if asked else Why.LIMITED
        copy = self._store.new_copy(ordinal, work.entry, file.size_bytes, why)
        try:
            planned = self._plan(file, work.own_blob)  # after it was begun: damage found later voids it
            ranges = planned.copies
            for start, length, blob, offset in planned.clones:
                for done in range(0, length, _CLONE_BYTES):
                    part = min(_CLONE_BYTES, length - done)
                    if copy.clone(start + done, part, blob, offset + done):
                        step(part)
                    elif asked:
                        copy.why = Why.ASKED
                        ranges.append((start + done, start + done + part))
                    else:
                        raise NotShared
            self._copy(copy, file, sorted(ranges), step)
        except BaseException:
            copy.abandon()
            raise
        return copy

    def _copy(
        self, copy: NewCopy, file: File, ranges: Sequence[tuple[int, int]], step: Callable[[int], None]
    ) -> None:
        """Copy ranges of a file, in order."""
        ends = [end for _, end in ranges]
        for offset, chunk in self._chunks(file, ranges):
            data = self._buffer[: chunk.length]
            if chunk.blob:
                self._read(file, offset, chunk, data)
            at = bisect_left(ends, offset + 1)
            while at < len(ranges) and ranges[at][0] < offset + chunk.length:
                start = max(ranges[at][0], offset)
                end = min(ranges[at][1], offset + chunk.length)
                if chunk.blob:
                    copy.write(start, data[start - offset : end - offset])
                step(end - start)
                at += 1

    def _chunks(self, file: File, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Chunk]]:
        """The chunks that have bytes in the ranges, with their offsets in the file."""
        wanted: list[tuple[int, int, bytes]] = []
        at = 0
        for offset, length, name in file.recipe():
            while at < len(ranges) and ranges[at][1] <= offset:
                at += 1
            if at == len(ranges):
                break
            if ranges[at][0] < offset + length:
                wanted.append((offset, length, name))
        for first in range(0, len(wanted), _LOOKUP_BATCH):
            batch = wanted[first : first + _LOOKUP_BATCH]
            found = self._store.chunks([name for _, _, name in batch])
            for (offset, length, name), chunk in zip(batch, found, strict=True):
                if chunk is None or chunk.length != length:
                    raise ChunkDamaged(file, offset, length, name, "it is not in the store")
                yield offset, chunk

    def _read(self, file: File, offset: int, chunk: Chunk, data: memoryview) -> None:
        try:
            self._store.read_chunk(chunk, data)
        except StoreDamaged as error:
            problem = f"it cannot be read: {error}"
            raise ChunkDamaged(file, offset, chunk.length, chunk.digest, problem) from error
        if fingerprint(data) != chunk.fingerprint and digest_of(data) != chunk.digest:
            problem = "its bytes do not match its digest"
            raise ChunkDamaged(file, offset, chunk.length, chunk.digest, problem)
