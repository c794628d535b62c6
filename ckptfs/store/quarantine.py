"""Chunks that were found damaged: remembered until somebody brings the right bytes.

A put of such a chunk writes its bytes where the damaged ones lie, so every checkpoint that uses it is
whole again, whoever brought it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckptfs.errors import StoreDamaged
from ckptfs.store import core, derived, references, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Reader, Table
from ckptfs.store.records import Chunk


def load(store: Core) -> None:
    with store.index.read() as reader:
        found = {key[1:] for key, _ in reader.scan(Table.PENDING, core.DAMAGED)}
    with store.state:
        store.quarantined = found


def add(store: Core, digests: Iterable[bytes]) -> int:
    """Note chunks as damaged; how many are in the store and were not noted yet.

    Derived copies that share blocks with them are dropped: what is written in place of the damaged bytes
    would not reach those.
    """
    noted: set[bytes] = set()
    blobs: set[int] = set()
    with store.deriving:  # no copy is recorded meanwhile
        with store.transaction() as writer:
            for digest in digests:
                chunk = core.chunk(writer, digest)
                if chunk is not None and chunk.blob and digest not in store.quarantined:
                    writer.put(Table.PENDING, core.DAMAGED + digest, b"")
                    noted.add(digest)
                    blobs.add(chunk.blob)
            # With the note: whoever starts after a crash takes a copy that has a row for a good one.
            gone = derived.forget_sharing(writer, blobs)
        with store.state:
            store.quarantined |= noted
            store.damage_found += len(noted)
            store.damaged_blobs.update(dict.fromkeys(blobs, store.damage_found))
        derived.unlink_forgotten(store, gone)
    return len(noted)


def repair(store: Core, chunk: Chunk, data: memoryview) -> None:
    """Write a damaged chunk's right bytes in their place; the caller's draft refers to the chunk. What is
    said of it changes when the batch is committed.

    A blob that is gone or short becomes as long as it was with that, and where its other bytes were there is
    a hole, which would read as zeros: what is lost with them is noted first, whether anybody met it or not.
    """
    with store.index.read() as reader:
        size = references.blob_row(reader, chunk.blob).size  # 0: a pack, which ends where its last chunk does
        there = store.blobs.size_bytes(chunk.blob)
        lost = _beyond(reader, chunk.blob, there) if there < max(size, chunk.offset) else []
    if lost:
        add(store, lost)
    try:
        store.blobs.write(chunk.blob, chunk.offset, data)
    except StoreDamaged:  # the file is gone
        store.blobs.restore(chunk.blob)
        store.blobs.write(chunk.blob, chunk.offset, data)
    store.blobs.extend(chunk.blob, size)
    with store.state:
        store.pending.repaired[chunk.digest] = chunk.blob
        store.pending.touched.add(chunk.blob)


def _beyond(reader: Reader, blob: int, end: int) -> list[bytes]:
    """The chunks of a blob that have bytes beyond an offset."""
    found = []
    for key, body in reader.scan(Table.BLOB_CHUNKS, rows.blob_key(blob)):
        digest, length = rows.place(body)
        if rows.place_offset(key) + length > end:
            found.append(digest)
    return found
