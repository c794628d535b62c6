"""Who uses a chunk is a count in its row; this is how the count goes down.

It goes up in :mod:`ckptfs.store.commit` (a draft begins to use a chunk) and in
:mod:`ckptfs.store.publish` (a checkpoint names one that its draft did not put).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ckptfs.errors import StoreDamaged
from ckptfs.store import core, rows
from ckptfs.store.core import Core
from ckptfs.store.index import REMEDY, Reader, Table, Writer
from ckptfs.store.records import Chunk, RemoveReport


@contextmanager
def releasing(store: Core) -> Iterator[Writer]:
    """A transaction that may call :func:`drop`: chunks are *dying* until it is over, either way."""
    with store.removing:
        try:
            with store.transaction() as writer:
                yield writer
        finally:
            with store.state:
                store.dying.clear()


def drop(store: Core, writer: Writer, digests: Sequence[bytes]) -> RemoveReport:
    """Take one reference from each chunk. Those that have none left leave the index, and their blobs are
    noted for punching; one that an uncommitted put uses stays, with a note to look at it again."""
    last: list[Chunk] = []
    for digest in digests:
        chunk = core.chunk(writer, digest)
        if chunk is None:
            raise StoreDamaged(f"a chunk that is in use is not in the index: {REMEDY}")
        if chunk.refs > 1:
            _put(writer, chunk, chunk.refs - 1)
        else:
            last.append(chunk)
    return forget(store, writer, last)


def forget(store: Core, writer: Writer, chunks: Sequence[Chunk]) -> RemoveReport:
    """Take chunks that have no reference left out of the index."""
    with store.state:
        wanted = {chunk.digest for chunk in chunks if store.is_used(chunk.digest)}
        store.dying.update(chunk.digest for chunk in chunks if chunk.digest not in wanted)
    freed: dict[int, tuple[int, int]] = {}
    for chunk in chunks:
        if chunk.digest in wanted:
            _put(writer, chunk, 0)
            writer.put(Table.PENDING, core.UNUSED + chunk.digest, b"")
            continue
        writer.delete(Table.CHUNKS, chunk.digest)
        if chunk.digest in store.quarantined:
            writer.delete(Table.PENDING, core.DAMAGED + chunk.digest)
            with store.state:
                store.quarantined.discard(chunk.digest)
        if chunk.blob:
            writer.delete(Table.BLOB_CHUNKS, rows.place_key(chunk.blob, chunk.offset))
            count, size = freed.get(chunk.blob, (0, 0))
            freed[chunk.blob] = (count + 1, size + chunk.length)
    for blob, (count, size) in sorted(freed.items()):
        row = blob_row(writer, blob)
        row = row._replace(live_chunks=row.live_chunks - count, live_bytes=row.live_bytes - size)
        writer.put(Table.BLOBS, rows.blob_key(blob), rows.pack_blob(row))
        writer.put(Table.PENDING, core.PUNCH + rows.blob_key(blob), b"")
    bytes_freed = sum(size for _, size in freed.values())
    chunks_freed = len(chunks) - len(wanted)
    writer.add(chunks=-chunks_freed, stored_bytes=-bytes_freed)
    return RemoveReport(bytes_freed, chunks_freed)


def _put(writer: Writer, chunk: Chunk, refs: int) -> None:
    body = rows.pack_chunk(chunk.length, chunk.blob, chunk.offset, chunk.fingerprint, refs)
    writer.put(Table.CHUNKS, chunk.digest, body)


def add(writer: Writer, digest: bytes, count: int = 1) -> Chunk:
    """Add references to a chunk that is there."""
    chunk = core.chunk(writer, digest)
    if chunk is None:
        raise StoreDamaged(f"a chunk that is in use is not in the index: {REMEDY}")
    _put(writer, chunk, chunk.refs + count)
    return chunk


def blob_row(reader: Reader, blob: int) -> rows.BlobRow:
    body = reader.get(Table.BLOBS, rows.blob_key(blob))
    if body is None:
        raise StoreDamaged(f"blob {blob:016x} is not in the index: {REMEDY}")
    return rows.blob(body)
