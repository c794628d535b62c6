"""What the parts of an open store share: index, blob files, the batch of puts, and who may do what when.

Locks, in the order in which they may be taken (a holder of a later one never takes an earlier one):

``publishing``  one checkpoint at a time gets its name
``settling``    blobs are punched and unlinked; a draft that resumes waits until that is over
``committing``  one commit at a time syncs bytes and then records them
``making``      one blob is made or pack space given at a time
``deriving``    one change of the derived copies at a time; a write on a full disk makes room with it
``removing``    one transaction at a time takes references away
``writing``     one index transaction at a time
``state``       everything in memory; held for microseconds, never over I/O that can wait

How a chunk stays alive between being found and being recorded: a put that finds it resident adds it to
its draft's *uses* in the batch, in one step with the lookup, under ``state``. A release that takes a
chunk's last reference looks at all uses under ``state`` before it deletes the row, and announces the
chunk as *dying* until its transaction is over. So either the release sees the use and leaves the chunk
(the pending table remembers to look again), or the put sees a dying chunk and writes its own bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptfs.store import rows
from ckptfs.store.blobs import BlobFiles
from ckptfs.store.index import Index, Reader, Table, Writer
from ckptfs.store.layout import Layout
from ckptfs.store.records import Chunk, DerivedTotals

if TYPE_CHECKING:
    from ckptfs.store.derived_file import NewCopy
    from ckptfs.store.draft import Draft
    from ckptfs.store.draft_file import DraftFile

# Kinds of rows in the pending table: one letter, then a number or a digest.
RELEASE = b"R"  # ordinal: a removed checkpoint or dropped draft still gives up its chunks
RECORD = b"F"  # ordinal: the record file may be older than the index
PUNCH = b"P"  # blob: has dead ranges, or nothing alive at all
UNUSED = b"C"  # digest: a chunk that lost its last reference while a put was about to use it
DAMAGED = b"Q"  # digest: found to have other bytes
BORN = b"V"  # blob: first of a range of numbers given to files that may have no row yet

#: Blob numbers reserved by one transaction. After a crash each is looked for once.
_ID_RANGE = 1024


class Batch:
    """Puts that are written but not recorded yet."""

    __slots__ = ("chunks", "dead", "drafts", "files", "recut", "repaired", "rows", "touched", "uses")

    def __init__(self) -> None:
        #: New chunks: digest -> (length, blob, offset, fingerprint).
        self.chunks: dict[bytes, tuple[int, int, int, int]] = {}
        #: ordinal -> what that draft begins to use: one more reference each.
        self.uses: dict[int, set[bytes]] = {}
        #: (draft chunk key, digest, length)
        self.rows: list[tuple[bytes, bytes, int]] = []
        self.files: dict[bytes, DraftFile] = {}
        self.drafts: dict[int, Draft] = {}
        #: Blobs with bytes of these chunks.
        self.touched: set[int] = set()
        #: Files whose cuts have changed: what was recorded of their chunks is void.
        self.recut: set[bytes] = set()
        #: Damaged chunks whose right bytes were written again: digest -> blob.
        self.repaired: dict[bytes, int] = {}
        #: (blob, start, end) written and not needed.
        self.dead: list[tuple[int, int, int]] = []

    def __bool__(self) -> bool:
        return bool(self.rows or self.files or self.chunks or self.uses or self.dead or self.drafts)

    def absorb(self, later: Batch) -> None:
        """Take in what came after this batch."""
        self.chunks.update(later.chunks)
        for ordinal, used in later.uses.items():
            self.uses.setdefault(ordinal, set()).update(used)
        self.rows += later.rows
        self.files.update(later.files)
        self.drafts.update(later.drafts)
        self.touched |= later.touched
        self.recut |= later.recut
        self.repaired.update(later.repaired)
        self.dead += later.dead

    def forget(self, ordinal: int, blobs: set[int]) -> set[int]:
        """Drop what one draft put into its blobs; those that now hold dead bytes."""
        prefix = rows.ordinal_key(ordinal)
        self.rows = [row for row in self.rows if not row[0].startswith(prefix)]
        self.files = {key: file for key, file in self.files.items() if not key.startswith(prefix)}
        self.drafts.pop(ordinal, None)
        used = self.uses.pop(ordinal, set())
        for others in self.uses.values():
            used -= others
        dirty: set[int] = set()
        for digest in used:
            chunk = self.chunks.pop(digest, None)
            if chunk is not None:
                dirty.add(chunk[1])
        self.touched = {chunk[1] for chunk in self.chunks.values() if chunk[1]}
        self.touched.update(self.repaired.values())
        dirty.update(blob for blob, _, _ in self.dead if blob in blobs)
        self.dead = [gap for gap in self.dead if gap[0] not in blobs]
        return dirty & blobs


class Core:
    """One open store. See the module for the locks."""

    def __init__(self, layout: Layout, index: Index, blobs: BlobFiles) -> None:
        self.layout = layout
        self.index = index
        self.blobs = blobs
        self.deriving = threading.Lock()
        self.publishing = threading.Lock()
        self.settling = threading.Lock()
        self.committing = threading.Lock()
        self.making = threading.Lock()
        self.removing = threading.Lock()
        self.writing = threading.Lock()
        self.state = threading.Lock()
        # Guarded by state:
        self.pending = Batch()
        self.flushing: Batch | None = None
        self.dying: set[bytes] = set()
        #: Chunks that were found damaged and not brought in again.
        self.quarantined: set[bytes] = set()
        #: Chunks whose bytes a put is writing; True when another put writes the same ones.
        self.claims: dict[bytes, bool] = {}
        self.active: dict[int, Draft] = {}
        #: Blob files that have no row yet: blob -> (kind, size).
        self.born: dict[int, tuple[int, int]] = {}
        #: Blobs that active drafts write to: nothing may be punched there but what the writer says.
        self.writable: set[int] = set()
        #: The derived copies of each checkpoint that has any.
        self.derived: dict[int, DerivedTotals] = {}
        self.derived_dropped = 0
        #: Copies that are being made, in the order in which they were begun.
        self.unfinished: list[NewCopy] = []
        #: Somebody waits for the store to be closed.
        self.closing = threading.Event()
        #: When a derived copy was last opened, if that was since the last note on the disk.
        self.derived_used: dict[tuple[int, int], float] = {}
        #: Counts what was found damaged: what was begun or looked up before is not trusted.
        self.damage_found = 0
        #: What :attr:`damage_found` became when damage was last found in a blob, or in a file's derived copy.
        self.damaged_blobs: dict[int, int] = {}
        self.damaged_copies: dict[tuple[int, int], int] = {}
        self._next_blob = 0
        self._last_blob = 0
        self._ranges: list[tuple[int, int]] = []

    # --- The index ---------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Writer]:
        """The write transaction, committed when the block ends."""
        with self.writing:
            with self.state:
                short = self._last_blob - self._next_blob < _ID_RANGE // 2
                done = [r for r in self._ranges if r[1] <= self._next_blob and not self._unrecorded(r)]
            with self.index.write() as writer:
                yield writer
                first = writer.total.next_blob
                if short:
                    writer.total = writer.total._replace(next_blob=first + _ID_RANGE)
                    end = rows.pack_blob_number(first + _ID_RANGE)
                    writer.put(Table.PENDING, BORN + rows.blob_key(first), end)
                for start, _ in done:
                    writer.delete(Table.PENDING, BORN + rows.blob_key(start))
            with self.state:
                if short:
                    self._ranges.append((first, first + _ID_RANGE))
                    if self._next_blob == self._last_blob:
                        self._next_blob = first
                    self._last_blob = first + _ID_RANGE
                self._ranges = [r for r in self._ranges if r not in done]
            self.index.keep_headroom()

    def _unrecorded(self, span: tuple[int, int]) -> bool:
        return any(span[0] <= blob < span[1] for blob in self.born)

    # --- Blobs -------------------------------------------------------------------------------------

    def new_blob(self, kind: int, size_bytes: int) -> int:
        """Make a blob file for an active draft. Its number is known to the index before the file is."""
        while True:
            with self.state:
                if self._next_blob < self._last_blob:
                    blob = self._next_blob
                    self._next_blob += 1
                    self.born[blob] = (kind, size_bytes)
                    self.writable.add(blob)
                    break
            with self.transaction():
                pass
        self.blobs.create(blob, size_bytes)
        return blob

    def discard_born(self, blobs: set[int]) -> None:
        """Unlink those of these blobs that never got a row."""
        with self.state:
            gone = [blob for blob in blobs if blob in self.born]
        for blob in gone:
            self.blobs.unlink(blob)
        with self.state:
            for blob in gone:
                self.born.pop(blob, None)

    # --- Chunks (call with state held) ----------------------------------------------------------------

    def put_chunk(self, digest: bytes) -> Chunk | None:
        """A chunk that was put and is not recorded yet."""
        for batch in (self.pending, self.flushing):
            if batch is not None:
                found = batch.chunks.get(digest)
                if found is not None:
                    return Chunk(digest, *found, refs=0)
        return None

    def resident(self, digest: bytes) -> Chunk | None:
        """The chunk that is there and that a put may use."""
        found = self.put_chunk(digest)
        if found is None and digest not in self.dying:
            body = self.index.lookup(Table.CHUNKS, digest)
            if body is not None:
                found = rows.chunk(digest, body)
        return found

    def is_used(self, digest: bytes) -> bool:
        """Whether an uncommitted put uses the chunk."""
        for batch in (self.pending, self.flushing):
            if batch is not None and any(digest in used for used in batch.uses.values()):
                return True
        return False


def chunk(reader: Reader, digest: bytes) -> Chunk | None:
    body = reader.get(Table.CHUNKS, digest)
    return None if body is None else rows.chunk(digest, body)
