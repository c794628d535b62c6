"""How a draft begins, or goes on from where an earlier attempt stopped."""

from __future__ import annotations

import time

import msgspec

from ckptfs.store import ending, rows
from ckptfs.store.core import Core
from ckptfs.store.draft import Draft
from ckptfs.store.index import Reader, Table


def begin(
    store: Core, *, name: str, creation: str, source_key: str, source_type: str, source_uri: str
) -> Draft:
    """A new draft, or the kept one with the same source key, under the new name and creation."""
    row = rows.DraftRow(
        name=name,
        creation=creation,
        source_key=source_key,
        source_type=source_type,
        source_uri=source_uri,
        created=time.time(),
        status="downloading",
        reason="",
        reason_code="",
        bytes_kept=0,
        packs=[],
    )
    with store.settling, store.transaction() as writer:
        kept = _kept(store, writer, source_key)
        if kept is None:
            ordinal = writer.total.next_ordinal
            writer.total = writer.total._replace(next_ordinal=ordinal + 1)
        else:
            ordinal, old = kept
            row = msgspec.structs.replace(row, packs=old.packs)
        writer.put(Table.DRAFTS, rows.ordinal_key(ordinal), rows.encode(row))
        draft = Draft(store, ordinal, row, resumed=kept is not None)
        if kept is not None:
            _load(writer, draft)
        with store.state:
            store.active[ordinal] = draft
            store.writable |= draft.blobs
    return draft


def _kept(store: Core, reader: Reader, source_key: str) -> tuple[int, rows.DraftRow] | None:
    for key, body in reader.scan(Table.DRAFTS):
        row = rows.decode_draft(body)
        ordinal = rows.number(key)
        if row.source_key == source_key and source_key and ordinal not in store.active:
            return ordinal, row
    return None


def _load(reader: Reader, draft: Draft) -> None:
    key = rows.ordinal_key(draft.ordinal)
    for _, body in reader.scan(Table.DRAFT_CHUNKS, key):
        digest, length = rows.draft_chunk(body)
        draft.held.add(digest)
        draft.bytes_known += length
    draft.blobs |= ending.own_blobs(reader, draft.ordinal)
