"""How a draft ends without a checkpoint, and how a kept one is dropped."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from ckptfs.errors import CkptfsError, Conflict, NotFound
from ckptfs.store import commit, core, release, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Reader, Table, Writer
from ckptfs.store.settle import settle

if TYPE_CHECKING:
    from ckptfs.store.draft import Draft


def end(draft: Draft, reason: str, code: str, *, keep: bool) -> None:
    """End a creation that did not succeed. Its record stays; with ``keep`` what is committed does too."""
    store = draft.core
    if draft.ended:
        return
    if keep and draft.broken is None:
        with suppress(CkptfsError):  # a full or broken disk: what was committed before is kept
            commit.commit(store)
    draft.ended = True
    with store.committing, store.state:
        draft.dirty |= store.pending.forget(draft.ordinal, draft.blobs)
    with suppress(CkptfsError):
        commit.commit(store)  # what other drafts share with this one must not hang in the air
    with store.transaction() as writer:
        kept = bytes_kept(writer, draft.ordinal) if keep else 0
        draft.row = msgspec.structs.replace(
            draft.row, status="failed", reason=reason, reason_code=code, bytes_kept=kept
        )
        writer.put(Table.DRAFTS, rows.ordinal_key(draft.ordinal), rows.encode(draft.row))
        if not keep:
            release.note(writer, draft.ordinal, manifest=b"")
        note_dirty(store, writer, draft)
    if not keep:
        release.finish(store, draft.ordinal)
        drop_spool(store, draft.ordinal)
    leave(draft)


def note_dirty(store: Core, writer: Writer, draft: Draft) -> None:
    """Note the blobs in which a draft left bytes that no row tells of."""
    for blob in sorted(draft.dirty):
        if blob not in store.born:
            writer.put(Table.PENDING, core.PUNCH + rows.blob_key(blob), b"")


def leave(draft: Draft) -> None:
    """The draft's end is recorded: nobody writes to its blobs any more, so they can be settled."""
    store = draft.core
    with store.state:
        # Only after a commit that failed: another draft's uncommitted chunk lies here.
        busy = draft.blobs & store.pending.touched
        if store.flushing is not None:
            busy |= draft.blobs & store.flushing.touched
    with suppress(CkptfsError):  # what cannot be given back now is noted, and tried again
        store.discard_born(draft.blobs - busy)
    with store.state:
        store.writable -= draft.blobs - busy
        store.active.pop(draft.ordinal, None)
    with suppress(CkptfsError):
        settle(store)


def bytes_kept(reader: Reader, ordinal: int) -> int:
    """What the chunks that a draft refers to take, each once."""
    found = (core.chunk(reader, digest) for digest in release.held_by_draft(reader, ordinal))
    return sum(chunk.length for chunk in found if chunk is not None and chunk.blob)


def drop(store: Core, ordinal: int) -> None:
    """Forget a draft that is not under way and give back what only it uses."""
    key = rows.ordinal_key(ordinal)
    with store.transaction() as writer:
        body = writer.get(Table.DRAFTS, key)
        if body is None:
            raise NotFound(f"no creation has the ordinal {ordinal}")
        if ordinal in store.active:
            raise Conflict(f"the creation of {rows.decode_draft(body).name!r} is under way: cancel it first")
        writer.delete(Table.DRAFTS, key)
        release.note(writer, ordinal, manifest=b"")
        for blob in own_blobs(writer, ordinal):
            writer.put(Table.PENDING, core.PUNCH + rows.blob_key(blob), b"")
    release.finish(store, ordinal)
    drop_spool(store, ordinal)
    settle(store)


def drop_spool(store: Core, ordinal: int) -> None:
    shutil.rmtree(store.layout.spool(ordinal), ignore_errors=True)


def own_blobs(reader: Reader, ordinal: int) -> set[int]:
    """The blobs that the files of a recorded draft were given."""
    found = (
        rows.decode_draft_file(body).blob
        for _, body in reader.scan(Table.DRAFT_FILES, rows.ordinal_key(ordinal))
    )
    return {blob for blob in found if blob}
