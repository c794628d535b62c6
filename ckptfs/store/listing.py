"""What the index lists: checkpoints, drafts, leases, and what a checkpoint takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckptfs.errors import NotFound
from ckptfs.model import manifest as model
from ckptfs.store import core, manifests, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Reader, Table
from ckptfs.store.records import Checkpoint, Chunk, DraftRecord, Lease, Usage


def checkpoints(store: Core) -> list[Checkpoint]:
    with store.index.read() as reader:
        return [checkpoint_of(rows.number(key), body) for key, body in reader.scan(Table.CHECKPOINTS)]


def by_ordinal(store: Core, ordinal: int) -> Checkpoint | None:
    with store.index.read() as reader:
        return _checkpoint(reader, rows.ordinal_key(ordinal))


def by_name(store: Core, name: str) -> Checkpoint | None:
    with store.index.read() as reader:
        key = reader.get(Table.NAMES, name.encode()) if name else None
        return None if key is None else _checkpoint(reader, key)


def _checkpoint(reader: Reader, key: bytes) -> Checkpoint | None:
    body = reader.get(Table.CHECKPOINTS, key)
    return None if body is None else checkpoint_of(rows.number(key), body)


def checkpoint_of(ordinal: int, body: bytes) -> Checkpoint:
    row = rows.decode_checkpoint(body)
    return Checkpoint(
        ordinal=ordinal,
        name=row.name,
        digest=row.digest,
        created=row.created,
        creation=row.creation,
        source_type=row.source_type,
        source_uri=row.source_uri,
        size_bytes=row.size_bytes,
        files=row.files,
        directories=row.directories,
    )


def drafts(store: Core) -> list[DraftRecord]:
    with store.index.read() as reader:
        return [_draft(rows.number(key), body) for key, body in reader.scan(Table.DRAFTS)]


def _draft(ordinal: int, body: bytes) -> DraftRecord:
    row = rows.decode_draft(body)
    return DraftRecord(
        ordinal=ordinal,
        name=row.name,
        creation=row.creation,
        source_key=row.source_key,
        source_type=row.source_type,
        source_uri=row.source_uri,
        created=row.created,
        status=row.status,
        reason=row.reason,
        reason_code=row.reason_code,
        bytes_kept=row.bytes_kept,
    )


def own_blobs(store: Core, ordinal: int) -> dict[int, int]:
    with store.index.read() as reader:
        found = reader.scan(Table.OWNERS, rows.ordinal_key(ordinal))
        return {rows.owner_entry(key): rows.number(blob) for key, blob in found}


def chunks(store: Core, digests: Sequence[bytes]) -> list[Chunk | None]:
    with store.index.read() as reader:
        return [core.chunk(reader, digest) for digest in digests]


def usage(store: Core, ordinal: int) -> Usage:
    checkpoint = by_ordinal(store, ordinal)
    if checkpoint is None:
        raise NotFound(f"no checkpoint has the ordinal {ordinal}")
    manifest = model.decode(manifests.read(store.layout, checkpoint.digest))
    stored = unique = 0
    for chunk in chunks(store, manifests.distinct(manifest)):
        if chunk is not None and chunk.blob:
            stored += chunk.length
            if chunk.refs == 1:
                unique += chunk.length
    return Usage(stored, unique, stored - unique)


# --- Leases -------------------------------------------------------------------------------------------


def leases(store: Core) -> list[Lease]:
    found: list[Lease] = []
    with store.index.read() as reader:
        for key, body in reader.scan(Table.LEASES):
            job, ordinal = rows.split_lease_key(key)
            row = rows.decode_lease(body)
            found.append(Lease(job, ordinal, row.created, row.expires, row.pid, row.pid_start))
    return found


def put_leases(store: Core, wanted: Iterable[Lease]) -> None:
    with store.transaction() as writer:
        for lease in wanted:
            row = rows.LeaseRow(lease.created, lease.expires, lease.pid, lease.pid_start)
            writer.put(Table.LEASES, rows.lease_key(lease.job, lease.ordinal), rows.encode(row))


def delete_leases(store: Core, job: str, ordinals: Iterable[int] | None) -> None:
    with store.transaction() as writer:
        if ordinals is None:
            writer.delete_all(Table.LEASES, job.encode() + b"\0")
        else:
            for ordinal in ordinals:
                writer.delete(Table.LEASES, rows.lease_key(job, ordinal))
