"""Giving bytes back: blobs noted in the pending table are punched, or unlinked when nothing is left.

What is dead in a blob is not recorded anywhere: it is everything between the chunks that live. So the
whole gap between two live neighbours is punched, and chunk borders inside a file-system block leak
nothing.
"""

from __future__ import annotations

from ckptfs.store import core, references, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Reader, Table, Writer

_BLOBS_AT_ONCE = 256
_CHUNKS_AT_ONCE = 20_000


def settle(store: Core) -> None:
    """Do what is noted, except for blobs that an active draft writes to: those wait for its end; and for
    those that a process still has mapped: the note stays for the next time."""
    _free_unused(store)
    after = b""
    while True:
        with store.settling:
            with store.index.read() as reader:
                todo = _noted(store, reader, after)
                work = [(blob, *_judge(reader, blob)) for blob in todo]
            if not work:
                return
            work = [(blob, row, gaps) for blob, row, gaps in work if not _must_wait(store, blob, row, gaps)]
            sizes = {blob: _give_back(store, blob, row, gaps) for blob, row, gaps in work}
            with store.transaction() as writer:
                for blob, row, gaps in work:
                    _record(writer, blob, row, gaps, sizes[blob])
            after = rows.blob_key(todo[-1])


def _must_wait(store: Core, blob: int, row: rows.BlobRow | None, gaps: list[tuple[int, int]] | None) -> bool:
    """Whether somebody may still look at bytes that are to be punched: a mapping of a file that the kernel
    reads past the daemon lives on when its handle is closed. Unlinking harms nobody."""
    return row is not None and row.kind == rows.OWN and gaps is not None and store.blobs.in_use(blob)


def _noted(store: Core, reader: Reader, after: bytes) -> list[int]:
    found: list[int] = []
    for key, _ in reader.scan(Table.PENDING, core.PUNCH):
        blob = rows.number(key[1:])
        if key[1:] > after and blob not in store.writable:
            found.append(blob)
            if len(found) == _BLOBS_AT_ONCE:
                break
    return found


def _judge(reader: Reader, blob: int) -> tuple[rows.BlobRow | None, list[tuple[int, int]] | None]:
    """The blob's row, and its gaps; no gaps (None) when the whole file goes."""
    body = reader.get(Table.BLOBS, rows.blob_key(blob))
    if body is None:
        return None, None
    row = rows.blob(body)
    if row.live_chunks == 0 and row.owners == 0:
        return row, None
    gaps: list[tuple[int, int]] = []
    end = 0
    for key, place in reader.scan(Table.BLOB_CHUNKS, rows.blob_key(blob)):
        offset = rows.place_offset(key)
        if offset > end:
            gaps.append((end, offset))
        end = offset + rows.place(place)[1]
    if row.kind == rows.PACK or end < row.size:
        gaps.append((end, -1))
    return row, gaps


def _give_back(store: Core, blob: int, row: rows.BlobRow | None, gaps: list[tuple[int, int]] | None) -> int:
    if gaps is None:
        store.blobs.unlink(blob)
        return 0
    return store.blobs.punch(blob, gaps)


def _record(
    writer: Writer, blob: int, row: rows.BlobRow | None, gaps: list[tuple[int, int]] | None, physical: int
) -> None:
    key = rows.blob_key(blob)
    body = writer.get(Table.BLOBS, key)
    now = None if body is None else rows.blob(body)
    if now == row:
        writer.delete(Table.PENDING, core.PUNCH + key)
    # Otherwise more has died since we looked: the note stays for whoever made it.
    if now is None:
        return
    writer.add(physical_bytes=physical - now.physical_bytes)
    if gaps is None:
        writer.delete(Table.BLOBS, key)
    else:
        writer.put(Table.BLOBS, key, rows.pack_blob(now._replace(physical_bytes=physical)))


def _free_unused(store: Core) -> None:
    """Look again at chunks that lost their last reference while a put was about to use them."""
    with store.index.read() as reader:
        noted = [key[1:] for key, _ in reader.scan(Table.PENDING, core.UNUSED)]
    for start in range(0, len(noted), _CHUNKS_AT_ONCE):
        with references.releasing(store) as writer:
            unused = []
            for digest in noted[start : start + _CHUNKS_AT_ONCE]:
                chunk = core.chunk(writer, digest)
                writer.delete(Table.PENDING, core.UNUSED + digest)
                if chunk is not None and chunk.refs == 0:
                    unused.append(chunk)
            references.forget(store, writer, unused)
