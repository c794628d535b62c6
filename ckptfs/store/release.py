"""Removing a checkpoint, and giving up what a draft holds.

The index forgets the checkpoint first; then its chunks' references are released in digest order, in
transactions of bounded size (a removal must fit a full disk); then bytes are given back. The pending
table says how far a release has come, and the next start goes on from there.
"""

from __future__ import annotations

from ckptfs.errors import NotFound, StoreFull
from ckptfs.model import manifest as model
from ckptfs.store import core, derived, layout, manifests, references, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Reader, Table, Writer
from ckptfs.store.records import RemoveReport
from ckptfs.store.settle import settle

_CHUNKS_AT_ONCE = 20_000
_ROWS_AT_ONCE = 20_000

#: A release that has given up every chunk. The manifest is not needed any more, and may be gone.
_ALL = b"\xff" * 32


def remove(store: Core, ordinal: int) -> RemoveReport:
    """Remove a checkpoint and give back what nothing else uses. For good, once it has begun."""
    key = rows.ordinal_key(ordinal)
    with store.index.read() as reader:
        digest = _checkpoint(reader, ordinal).digest
    manifests.read(store.layout, digest)  # damage must show before anything is taken away
    with store.transaction() as writer:
        row = _checkpoint(writer, ordinal)
        writer.delete(Table.CHECKPOINTS, key)
        writer.delete(Table.NAMES, row.name.encode())
        for owner_key, blob in list(writer.scan(Table.OWNERS, key)):
            shaped = references.blob_row(writer, rows.number(blob))
            writer.put(Table.BLOBS, blob, rows.pack_blob(shaped._replace(owners=shaped.owners - 1)))
            writer.put(Table.PENDING, core.PUNCH + blob, b"")
            writer.delete(Table.OWNERS, owner_key)
        copies = derived.forget_checkpoint(writer, ordinal)
        note(writer, ordinal, manifest=digest)
    derived.unlink_forgotten(store, copies)
    report = finish(store, ordinal)
    settle(store)
    return report


def _checkpoint(reader: Reader, ordinal: int) -> rows.CheckpointRow:
    body = reader.get(Table.CHECKPOINTS, rows.ordinal_key(ordinal))
    if body is None:
        raise NotFound(f"no checkpoint has the ordinal {ordinal}")
    return rows.decode_checkpoint(body)


def note(writer: Writer, ordinal: int, *, manifest: bytes, done: bytes = b"") -> None:
    """Record that the chunks of a manifest, or (empty) of a draft, are to be given up."""
    body = rows.encode(rows.ReleaseRow(manifest=manifest, done=done))
    writer.put(Table.PENDING, core.RELEASE + rows.ordinal_key(ordinal), body)


def finish(store: Core, ordinal: int) -> RemoveReport:
    """Go on with a release from where its pending row says it is."""
    key = rows.ordinal_key(ordinal)
    with store.index.read() as reader:
        body = reader.get(Table.PENDING, core.RELEASE + key)
        if body is None:
            return RemoveReport(0, 0)
        state = rows.decode_release(body)
        digests = set() if state.manifest else held_by_draft(reader, ordinal)
    if state.manifest and state.done != _ALL:
        # First of all: a rebuild must not bring it back once its bytes begin to go.
        layout.unlink(store.layout.record(ordinal))
        digests = set(manifests.distinct(model.decode(manifests.read(store.layout, state.manifest))))
    left = sorted(digest for digest in digests if digest > state.done)
    freed = _release(store, ordinal, state.manifest, left)
    if state.manifest:
        _forget_files(store, ordinal, state.manifest)
    else:
        _forget_draft_in_parts(store, ordinal)
    with store.transaction() as writer:
        writer.delete(Table.PENDING, core.RELEASE + key)
    return freed


def _release(store: Core, ordinal: int, manifest: bytes, digests: list[bytes]) -> RemoveReport:
    """Give up one reference of each chunk, as many in a transaction as the disk has room for: a large
    index is copied page by page where rows change."""
    bytes_freed = chunks_freed = done = 0
    size = _CHUNKS_AT_ONCE
    while True:
        part = digests[done : done + size]
        last = done + len(part) == len(digests)
        try:
            with references.releasing(store) as writer:
                report = references.drop(store, writer, part)
                note(writer, ordinal, manifest=manifest, done=_ALL if last else part[-1])
        except StoreFull:
            if size == 1:
                raise
            size = max(1, size // 8)
            continue
        bytes_freed += report.bytes_freed
        chunks_freed += report.chunks_freed
        done += len(part)
        if last:
            return RemoveReport(bytes_freed, chunks_freed)


def _forget_draft_in_parts(store: Core, ordinal: int) -> None:
    key = rows.ordinal_key(ordinal)
    for table in (Table.DRAFT_FILES, Table.DRAFT_CHUNKS):
        more = True
        while more:
            with store.transaction() as writer:
                more = writer.delete_all(table, key, _ROWS_AT_ONCE) == _ROWS_AT_ONCE


def _forget_files(store: Core, ordinal: int, digest: bytes) -> None:
    """Remove the placement, and the manifest unless something else has the same."""
    layout.unlink(store.layout.placement(ordinal))
    with store.publishing, store.index.read() as reader:
        for _, body in reader.scan(Table.CHECKPOINTS):
            if rows.decode_checkpoint(body).digest == digest:
                return
        for key, body in reader.scan(Table.PENDING, core.RELEASE):
            if rows.number(key[1:]) != ordinal and rows.decode_release(body).manifest == digest:
                return
        layout.unlink(store.layout.manifest(digest))


def held_by_draft(reader: Reader, ordinal: int) -> set[bytes]:
    """The chunks that a draft's recorded rows refer to, each once."""
    return {
        rows.draft_chunk(body)[0] for _, body in reader.scan(Table.DRAFT_CHUNKS, rows.ordinal_key(ordinal))
    }


def forget_draft(writer: Writer, ordinal: int) -> None:
    """Delete what is recorded of a draft's files, not the record of the draft itself."""
    key = rows.ordinal_key(ordinal)
    writer.delete_all(Table.DRAFT_FILES, key)
    writer.delete_all(Table.DRAFT_CHUNKS, key)
