"""Does everything in a store add up? Reads every row and every byte; for stores at rest.

What is checked is what docs/format.md promises: each chunk's bytes have its digest and lie where no other
chunk does, counts of references, owners and bytes are those of the checkpoints and drafts that are there,
what nobody uses takes no disk block, and no file lies about that no row names.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise

from ckptfs.model import manifest as model
from ckptfs.model.digest import digest as digest_of
from ckptfs.model.digest import fingerprint, zero_digest
from ckptfs.store import Store, core, manifests, placement, rows
from ckptfs.store.index import Reader, Table
from ckptfs.store.layout import Layout

_BLOCK_BYTES = 4096


def audit(store: Store) -> list[str]:
    """What is wrong, in words; empty when all is well."""
    place = store._core.layout
    wrong: list[str] = []
    with store._core.index.read() as reader:
        holders = _holders(store, reader, wrong)
        live = _chunks(store, reader, holders, wrong)
        _blobs(store, reader, live, wrong)
        _counters(reader, wrong)
        for key, _ in reader.scan(Table.PENDING):
            if key[:1] not in (core.BORN, core.DAMAGED):
                wrong.append(f"the pending table still has {key!r}")
        _files(place, reader, wrong)
        _derived(store, reader, wrong)
    return wrong


def _holders(store: Store, reader: Reader, wrong: list[str]) -> Counter[bytes]:
    """How many checkpoints and drafts use each chunk."""
    place = store._core.layout
    used: Counter[bytes] = Counter()
    for checkpoint in store.checkpoints():
        manifest = model.decode(manifests.read(place, checkpoint.digest))
        digests = manifests.distinct(manifest)
        used.update(digests)
        with open(place.record(checkpoint.ordinal), "rb") as file:
            if placement.decode_record(file.read()) != checkpoint:
                wrong.append(f"the record of {checkpoint.name!r} is not what the index says")
        with open(place.placement(checkpoint.ordinal), "rb") as file:
            placed = placement.decode(file.read())
        chunks = [core.chunk(reader, digest) for digest in digests]
        if placed.each() != [(c.blob, c.offset) for c in chunks if c is not None]:
            wrong.append(f"the placement of {checkpoint.name!r} is not what the index says")
        if dict(placed.owners) != store.own_blobs(checkpoint.ordinal):
            wrong.append(f"the owners of {checkpoint.name!r} are not what its placement says")
        if store.by_name(checkpoint.name) != checkpoint:
            wrong.append(f"the name {checkpoint.name!r} does not lead to its checkpoint")
    if reader.count(Table.NAMES) != reader.count(Table.CHECKPOINTS):
        wrong.append("names and checkpoints are not as many")
    drafts = {rows.number(key) for key, _ in reader.scan(Table.DRAFTS)}
    for ordinal in drafts:
        found = reader.scan(Table.DRAFT_CHUNKS, rows.ordinal_key(ordinal))
        used.update({rows.draft_chunk(body)[0] for _, body in found})
    for table in (Table.DRAFT_FILES, Table.DRAFT_CHUNKS):
        for key, _ in reader.scan(table):
            if rows.number(key[:4]) not in drafts:
                wrong.append(f"{table.name} has a row of draft {rows.number(key[:4])}, which is not there")
    return used


def _chunks(
    store: Store, reader: Reader, holders: Counter[bytes], wrong: list[str]
) -> dict[int, list[tuple[int, int]]]:
    """Every chunk's bytes and references; where the live ranges of each blob are."""
    live: dict[int, list[tuple[int, int]]] = {}
    present = set()
    for digest, body in reader.scan(Table.CHUNKS):
        present.add(digest)
        chunk = rows.chunk(digest, body)
        short = digest.hex()[:12]
        if chunk.refs != holders[digest]:
            wrong.append(f"chunk {short} counts {chunk.refs} references and has {holders[digest]}")
        if not chunk.blob:
            if zero_digest(chunk.length) != digest:
                wrong.append(f"chunk {short} is said to be zeros")
            continue
        live.setdefault(chunk.blob, []).append((chunk.offset, chunk.offset + chunk.length))
        listed = reader.get(Table.BLOB_CHUNKS, rows.place_key(chunk.blob, chunk.offset))
        if listed is None or rows.place(listed) != (digest, chunk.length):
            wrong.append(f"chunk {short} is not listed where it lies")
        data = bytearray(chunk.length)
        store.read_chunk(chunk, memoryview(data))
        if digest in store.quarantined():
            continue
        if digest_of(data) != digest or fingerprint(data) != chunk.fingerprint:
            wrong.append(f"chunk {short} has other bytes")
    wrong += [
        f"chunk {digest.hex()[:12]} is used and not there" for digest in holders if digest not in present
    ]
    if reader.count(Table.BLOB_CHUNKS) != sum(len(ranges) for ranges in live.values()):
        wrong.append("blob_chunks lists more than there is")
    return live


def _blobs(store: Store, reader: Reader, live: dict[int, list[tuple[int, int]]], wrong: list[str]) -> None:
    place = store._core.layout
    owners = Counter(rows.number(blob) for _, blob in reader.scan(Table.OWNERS))
    recorded = set()
    for key, body in reader.scan(Table.BLOBS):
        blob, row = rows.number(key), rows.blob(body)
        recorded.add(blob)
        ranges = sorted(live.get(blob, []))
        name = f"blob {blob:x}"
        if row.live_chunks != len(ranges) or row.live_bytes != sum(end - start for start, end in ranges):
            wrong.append(f"{name} counts {row.live_chunks} chunks, {row.live_bytes} bytes, and has {ranges}")
        if any(first[1] > second[0] for first, second in pairwise(ranges)):
            wrong.append(f"{name} has chunks that overlap")
        if row.owners != owners[blob]:
            wrong.append(f"{name} counts {row.owners} owners and has {owners[blob]}")
        if not ranges and not row.owners:
            wrong.append(f"{name} holds nothing")
        try:
            status = os.stat(place.blob(blob))
        except FileNotFoundError:
            wrong.append(f"{name} has no file")
            continue
        if row.kind == rows.OWN and row.size != status.st_size:
            wrong.append(f"{name} has {status.st_size} bytes, its row says {row.size}")
        if row.physical_bytes != status.st_blocks * 512:
            wrong.append(
                f"{name} takes {status.st_blocks * 512} on the disk, its row says {row.physical_bytes}"
            )
        wrong += [
            f"{name} keeps block {block}, which nobody uses" for block in _idle_blocks(place, blob, ranges)
        ]
    wrong += [f"blob {blob:x} has chunks and no row" for blob in live if blob not in recorded]
    for folder in os.listdir(place.blobs):
        for file in os.listdir(f"{place.blobs}/{folder}"):
            if int(file, 16) not in recorded:
                wrong.append(f"blob file {file} has no row")


def _idle_blocks(place: Layout, blob: int, ranges: list[tuple[int, int]]) -> list[int]:
    """Allocated blocks in which no live byte lies."""
    needed = {
        block
        for start, end in ranges
        for block in range(start // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES + 1)
    }
    idle: list[int] = []
    fd = os.open(place.blob(blob), os.O_RDONLY)
    try:
        position, size = 0, os.fstat(fd).st_size
        while position < size:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here on
                break
            position = os.lseek(fd, start, os.SEEK_HOLE)
            allocated = range(start // _BLOCK_BYTES, (position - 1) // _BLOCK_BYTES + 1)
            idle += [block for block in allocated if block not in needed]
    finally:
        os.close(fd)
    return idle


def _counters(reader: Reader, wrong: list[str]) -> None:
    total = reader.counters()
    sizes = [rows.chunk(key, body) for key, body in reader.scan(Table.CHUNKS)]
    blobs = [rows.blob(body) for _, body in reader.scan(Table.BLOBS)]
    expected = total._replace(
        chunks=len(sizes),
        stored_bytes=sum(chunk.length for chunk in sizes if chunk.blob),
        physical_bytes=sum(blob.physical_bytes for blob in blobs),
    )
    if total != expected:
        wrong.append(f"the counters say {total} where {expected} is right")


def _derived(store: Store, reader: Reader, wrong: list[str]) -> None:
    """Every derived copy has its row, and its file's bytes; the totals are theirs."""
    place = store._core.layout
    copies = {
        rows.split_derived_key(key): rows.decode_derived(body) for key, body in reader.scan(Table.DERIVED)
    }
    names = {os.path.basename(place.derived(*key)) for key in copies}
    there = set(os.listdir(place.derived_folder))
    if there != names:
        wrong.append(f"the derived copies {sorted(there ^ names)} have a file or a row only")
    for (ordinal, entry), row in copies.items():
        checkpoint = store.by_ordinal(ordinal)
        if checkpoint is None:
            wrong.append(f"a derived copy is of checkpoint {ordinal}, which is not there")
            continue
        file = model.decode(store.manifest(checkpoint.digest)).entries[entry]
        assert isinstance(file, model.File)
        with open(place.derived(ordinal, entry), "rb") as opened:
            content = opened.read()
        if len(content) != row.size_bytes or any(
            digest_of(content[offset : offset + length]) != digest for offset, length, digest in file.recipe()
        ):
            wrong.append(f"the derived copy of {file.path!r} of {checkpoint.name!r} has other bytes")
    for ordinal in {ordinal for ordinal, _ in copies} | set(store._core.derived):
        mine = [row for (of, _), row in copies.items() if of == ordinal]
        if store.copy_totals(ordinal)[:2] != (len(mine), sum(row.physical_bytes for row in mine)):
            wrong.append(f"the totals of the derived copies of checkpoint {ordinal} are wrong")
    for key, _ in reader.scan(Table.NATIVES):
        if store.by_ordinal(rows.number(key)) is None:
            wrong.append(f"checkpoint {rows.number(key)} was looked at for derived copies and is not there")


def _files(place: Layout, reader: Reader, wrong: list[str]) -> None:
    ready = {rows.number(key): rows.decode_checkpoint(body) for key, body in reader.scan(Table.CHECKPOINTS)}
    drafts = {str(rows.number(key)) for key, _ in reader.scan(Table.DRAFTS)}
    ordinals = {str(ordinal) for ordinal in ready}
    for folder, names in (
        (place.manifests, {row.digest.hex() for row in ready.values()}),
        (place.checkpoints, ordinals),
        (place.placements, ordinals),
    ):
        there = set(os.listdir(folder))
        if there != names:
            wrong.append(f"{folder} has {sorted(there ^ names)} too many or too few")
    stray = set(os.listdir(place.spools)) - drafts
    if stray:
        wrong.append(f"the spools of {sorted(stray)} have no draft")
