"""From draft to checkpoint: three small files, then one transaction that makes the name appear.

Whoever crashes in between leaves files that no row names, and the next start sweeps them.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from ckptfs.errors import NameTaken, StoreDamaged
from ckptfs.model import manifest as model
from ckptfs.model.digest import text_id
from ckptfs.store import (
    commit,
    core,
    ending,
    failure,
    layout,
    manifests,
    placement,
    references,
    release,
    rows,
)
from ckptfs.store.index import Reader, Table, Writer
from ckptfs.store.packing import SMALL_FILE_BYTES
from ckptfs.store.records import Checkpoint

if TYPE_CHECKING:
    from ckptfs.store.draft import Draft
    from ckptfs.store.draft_file import DraftFile


def publish(
    draft: Draft,
    manifest_bytes: bytes,
    owners: dict[int, DraftFile],
    *,
    files: int,
    directories: int,
    size_bytes: int,
) -> Checkpoint:
    store = draft.core
    commit.commit(store)
    draft.check()
    checkpoint = Checkpoint(
        ordinal=draft.ordinal,
        name=draft.row.name,
        digest=model.identity(manifest_bytes),
        created=time.time(),
        creation=draft.row.creation,
        source_type=draft.row.source_type,
        source_uri=draft.row.source_uri,
        size_bytes=size_bytes,
        files=files,
        directories=directories,
    )
    digests = manifests.distinct(model.decode(manifest_bytes))
    with store.publishing:
        with store.index.read() as reader:
            _refuse_taken(reader, checkpoint.name)
            places = _places(reader, digests, checkpoint)
            shaped = {
                index: blob for index, file in owners.items() if (blob := _shaped_blob(reader, file)) != 0
            }
        try:
            placed = placement.encode(checkpoint.digest, shaped, places)
            _write_files(store, checkpoint, manifest_bytes, placed)
            with references.releasing(store) as writer:
                _record(draft, writer, checkpoint, digests, shaped)
        except BaseException:
            for path in (store.layout.record(draft.ordinal), store.layout.placement(draft.ordinal)):
                with suppress(OSError):
                    layout.unlink(path)
            raise
        draft.ended = True
    ending.drop_spool(store, draft.ordinal)
    ending.leave(draft)
    return checkpoint


def _refuse_taken(reader: Reader, name: str) -> None:
    if reader.get(Table.NAMES, name.encode()) is not None:
        raise NameTaken(f"a checkpoint named {name!r} exists: choose another name, or remove or rename it")


def _places(reader: Reader, digests: list[bytes], checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Where each chunk lies. A checkpoint whose chunks are not all here must not become one."""
    places: list[tuple[int, int]] = []
    for digest in digests:
        chunk = core.chunk(reader, digest)
        if chunk is None:
            raise StoreDamaged(f"{checkpoint.name!r} names the chunk {text_id(digest)}, which was never put")
        places.append((chunk.blob, chunk.offset))
    return places


def _shaped_blob(reader: Reader, file: DraftFile) -> int:
    """The blob in which a file's chunks lie at their own offsets and its zeros are holes, or 0.

    Usually the file's own, even if some chunks lie elsewhere. A file that was in the store already wrote
    nothing and takes its twin's blob: but only one that a checkpoint owns (no draft will write to it
    again) and that holds these chunks and no other, or zeros would not read as zeros.
    """
    if not file.blob and (file.size_bytes or 0) <= SMALL_FILE_BYTES:
        return 0  # in a pack
    offset = held = 0
    found: Counter[int] = Counter()
    for index, length in enumerate(file.lengths or ()):
        chunk = core.chunk(reader, file.known[index])
        if chunk is not None and chunk.blob:
            held += 1
            if chunk.offset == offset:
                found[chunk.blob] += 1
        offset += length
    if file.blob in found:
        return file.blob
    for blob, count in found.items():
        if count == held:
            row = references.blob_row(reader, blob)
            if row.kind == rows.OWN and row.size == offset and row.live_chunks == held and row.owners:
                return blob
    return 0


def _write_files(store: core.Core, checkpoint: Checkpoint, manifest_bytes: bytes, placed: bytes) -> None:
    """The record comes last: with it, a rebuild takes the checkpoint for complete."""
    with failure.mapped(f"recording {checkpoint.name!r}"):
        manifests.write(store.layout, checkpoint.digest, manifest_bytes)
        layout.publish(store.layout.placement(checkpoint.ordinal), placed)
        layout.publish(store.layout.record(checkpoint.ordinal), placement.encode_record(checkpoint))


def _record(
    draft: Draft, writer: Writer, checkpoint: Checkpoint, digests: list[bytes], shaped: dict[int, int]
) -> None:
    """The draft's references become the checkpoint's; what the checkpoint does not name is given up."""
    store = draft.core
    ordinal = checkpoint.ordinal
    named = set(digests)
    for digest in named - draft.held:
        references.add(writer, digest)
    references.drop(store, writer, sorted(draft.held - named))
    for index, blob in sorted(shaped.items()):
        row = references.blob_row(writer, blob)
        writer.put(Table.BLOBS, rows.blob_key(blob), rows.pack_blob(row._replace(owners=row.owners + 1)))
        writer.put(Table.OWNERS, rows.owner_key(ordinal, index), rows.pack_blob_number(blob))
    key = rows.ordinal_key(ordinal)
    writer.put(Table.CHECKPOINTS, key, rows.encode(rows.checkpoint_row(checkpoint)))
    writer.put(Table.NAMES, checkpoint.name.encode(), key)
    writer.delete(Table.DRAFTS, key)
    release.forget_draft(writer, ordinal)
    ending.note_dirty(store, writer, draft)
