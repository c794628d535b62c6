"""A store with a very large index, made in seconds: for what depends on the number of chunks only.

Its blobs are all hole and its digests are noise, so nothing in it verifies. Everything else adds up.
"""

from __future__ import annotations

import random

from ckptfs.model import manifest as model
from ckptfs.store import Checkpoint, Store, layout, manifests, placement, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Table

CHUNK_BYTES = 4 << 20
_CHUNKS_PER_FILE = 25_000  # 100 GiB
_BATCH = 100_000


def fill(path: str, chunks: int, name: str = "bulk") -> Checkpoint:
    """Make a store (or open one) and give it a checkpoint of so many distinct chunks."""
    store = Store.open(path)
    try:
        return _fill(store._core, chunks, name)
    finally:
        store.close()


def _fill(store: Core, chunks: int, name: str) -> Checkpoint:
    noise = random.Random(f"{name} {chunks}")
    all_digests = [noise.randbytes(model.DIGEST_BYTES) for _ in range(chunks)]
    entries: list[model.Entry] = []
    places: list[tuple[int, int]] = []
    owners: dict[int, int] = {}
    with store.transaction() as writer:
        ordinal = writer.total.next_ordinal
        first_blob = writer.total.next_blob
        count = -(-chunks // _CHUNKS_PER_FILE)
        writer.total = writer.total._replace(next_ordinal=ordinal + 1, next_blob=first_blob + count)
    for number in range(count):
        mine = all_digests[number * _CHUNKS_PER_FILE : (number + 1) * _CHUNKS_PER_FILE]
        size = CHUNK_BYTES * len(mine)
        blob = first_blob + number
        store.blobs.create(blob, size)
        owners[number] = blob
        entries.append(
            model.File(b"part-%06d" % number, False, size, [CHUNK_BYTES] * len(mine), b"".join(mine))
        )
        places += [(blob, index * CHUNK_BYTES) for index in range(len(mine))]
    manifest = model.of(entries)
    encoded = model.encode(manifest)
    checkpoint = Checkpoint(
        ordinal=ordinal,
        name=name,
        digest=model.identity(encoded),
        created=0.0,
        creation=f"c-{name}",
        source_type="local",
        source_uri="/nowhere",
        size_bytes=manifest.size_bytes,
        files=len(entries),
        directories=0,
    )
    manifests.write(store.layout, checkpoint.digest, encoded)
    layout.publish(store.layout.placement(ordinal), placement.encode(checkpoint.digest, owners, places))
    layout.publish(store.layout.record(ordinal), placement.encode_record(checkpoint))
    _write_rows(store, checkpoint, all_digests, places, owners)
    return checkpoint


def _write_rows(
    store: Core,
    checkpoint: Checkpoint,
    digests: list[bytes],
    places: list[tuple[int, int]],
    owners: dict[int, int],
) -> None:
    order = sorted(range(len(digests)), key=digests.__getitem__)
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        listed = range(start, min(start + _BATCH, len(order)))
        with store.transaction() as writer:
            writer.put_all(
                Table.CHUNKS, [(digests[i], rows.pack_chunk(CHUNK_BYTES, *places[i], i, 1)) for i in part]
            )
            writer.put_all(
                Table.BLOB_CHUNKS,
                [(rows.place_key(*places[i]), rows.pack_place(digests[i], CHUNK_BYTES)) for i in listed],
            )
            writer.add(chunks=len(part), stored_bytes=CHUNK_BYTES * len(part))
    with store.transaction() as writer:
        for entry, blob in owners.items():
            live = min(_CHUNKS_PER_FILE, len(digests) - entry * _CHUNKS_PER_FILE)
            size = live * CHUNK_BYTES
            row = rows.BlobRow(rows.OWN, size, live, size, 1, 0)
            writer.put(Table.BLOBS, rows.blob_key(blob), rows.pack_blob(row))
            key = rows.owner_key(checkpoint.ordinal, entry)
            writer.put(Table.OWNERS, key, rows.pack_blob_number(blob))
        key = rows.ordinal_key(checkpoint.ordinal)
        writer.put(Table.CHECKPOINTS, key, rows.encode(rows.checkpoint_row(checkpoint)))
        writer.put(Table.NAMES, checkpoint.name.encode(), key)
