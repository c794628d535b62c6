"""Commit or it never happened: bytes synced, then the index transaction that says they are there.

One commit records what all drafts have put so far, so that a chunk which two of them share is never
recorded for one and unknown for the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptfs.errors import CkptfsError, StoreDamaged, StoreError
from ckptfs.store import rows
from ckptfs.store.core import DAMAGED, PUNCH
from ckptfs.store.index import REMEDY, Table, Writer

if TYPE_CHECKING:
    from ckptfs.store.core import Batch, Core


def commit(core: Core) -> None:
    """Record everything that was put before the call.

    When the index cannot take it (a full disk), nothing is lost: the batch waits for the next commit.
    When bytes did not reach the disk, the drafts that put them are broken: the kernel may have dropped
    the pages, and a second fdatasync would claim success.
    """
    with core.committing:
        with core.state:
            batch = core.pending
            if not batch:
                return
            core.flushing = batch
            core.pending = type(batch)()
            created = [blob for blob in batch.touched if blob in core.born]
        try:
            for blob, start, end in batch.dead:
                core.blobs.punch(blob, [(start, end)])
            batch.dead = []
            physical = core.blobs.sync(sorted(batch.touched), created)
        except BaseException as error:
            if isinstance(error, CkptfsError):
                _break(core, batch, error)
            else:
                _break(core, batch, StoreError(f"writing bytes out failed: {error!r}"))
            raise
        try:
            with core.transaction() as writer:
                record(core, writer, batch, physical)
        except BaseException:
            with core.state:
                batch.absorb(core.pending)
                core.pending = batch
                core.flushing = None
            raise
        with core.state:
            core.flushing = None
            core.quarantined -= batch.repaired.keys()
            for blob in created:
                core.born.pop(blob, None)


def record(core: Core, writer: Writer, batch: Batch, physical: dict[int, int]) -> None:
    """Write a batch's rows. Keys go in sorted: that is several times faster, and touches fewer pages."""
    uses: dict[bytes, int] = {}
    for used in batch.uses.values():
        for digest in used:
            uses[digest] = uses.get(digest, 0) + 1
    new_chunks: list[tuple[bytes, bytes]] = []
    places: list[tuple[bytes, bytes]] = []
    live: dict[int, tuple[int, int]] = {}
    stored = 0
    for digest in sorted(uses):
        chunk = batch.chunks.get(digest)
        if chunk is None:
            _use_again(writer, digest, uses[digest])
            continue
        length, blob, offset, fingerprint = chunk
        if writer.get(Table.CHUNKS, digest) is not None:
            # A release that meant to delete the row failed after we wrote our own bytes.
            _use_again(writer, digest, uses[digest])
            writer.put(Table.PENDING, PUNCH + rows.blob_key(blob), b"")
            continue
        new_chunks.append((digest, rows.pack_chunk(length, blob, offset, fingerprint, uses[digest])))
        if blob:
            places.append((rows.place_key(blob, offset), rows.pack_place(digest, length)))
            count, size = live.get(blob, (0, 0))
            live[blob] = (count + 1, size + length)
            stored += length
    places.sort()
    writer.put_all(Table.CHUNKS, new_chunks)
    writer.put_all(Table.BLOB_CHUNKS, places)
    writer.add(chunks=len(new_chunks), stored_bytes=stored)
    for blob, (count, size) in sorted(live.items()):
        _grow_blob(core, writer, blob, count, size, physical[blob])
    for digest, blob in batch.repaired.items():
        writer.delete(Table.PENDING, DAMAGED + digest)
        _grow_blob(core, writer, blob, 0, 0, physical[blob])
    for key in batch.recut:
        writer.delete_all(Table.DRAFT_CHUNKS, key)
    for key, file in sorted(batch.files.items()):
        size_bytes = -1 if file.size_bytes is None else file.size_bytes
        row = rows.DraftFileRow(size_bytes, file.blob, file.lengths)
        writer.put(Table.DRAFT_FILES, key, rows.encode(row))
    batch.rows.sort()
    writer.put_all(
        Table.DRAFT_CHUNKS,
        [(key, rows.pack_draft_chunk(digest, length)) for key, digest, length in batch.rows],
    )
    for ordinal, draft in batch.drafts.items():
        writer.put(Table.DRAFTS, rows.ordinal_key(ordinal), rows.encode(draft.row))


def _use_again(writer: Writer, digest: bytes, uses: int) -> None:
    body = writer.get(Table.CHUNKS, digest)
    if body is None:
        raise StoreDamaged(f"a chunk that is in use is not in the index: {REMEDY}")
    chunk = rows.chunk(digest, body)
    body = rows.pack_chunk(chunk.length, chunk.blob, chunk.offset, chunk.fingerprint, chunk.refs + uses)
    writer.put(Table.CHUNKS, digest, body)


def _grow_blob(core: Core, writer: Writer, blob: int, chunks: int, size: int, physical: int) -> None:
    key = rows.blob_key(blob)
    body = writer.get(Table.BLOBS, key)
    if body is None:
        kind, size_bytes = core.born[blob]
        row = rows.BlobRow(kind, size_bytes, 0, 0, 0, 0)
    else:
        row = rows.blob(body)
    writer.add(physical_bytes=physical - row.physical_bytes)
    row = row._replace(
        live_chunks=row.live_chunks + chunks, live_bytes=row.live_bytes + size, physical_bytes=physical
    )
    writer.put(Table.BLOBS, key, rows.pack_blob(row))


def _break(core: Core, batch: Batch, error: CkptfsError) -> None:
    """Forget a batch whose bytes may be lost, and stop every draft that relied on it."""
    reason = error if isinstance(error, StoreError) else StoreError(error.message)
    with core.state:
        core.flushing = None
        lost = set(batch.chunks)
        hit = {ordinal for ordinal, used in core.pending.uses.items() if not used.isdisjoint(lost)}
        for ordinal in hit | set(batch.uses):
            draft = core.active.get(ordinal)
            if draft is not None:
                draft.broken = reason
                draft.dirty |= draft.blobs
            core.pending.forget(ordinal, set() if draft is None else draft.blobs)
