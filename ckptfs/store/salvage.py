"""What a rebuild finds in a store's files: which checkpoints there are, and which chunks are sound."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ckptfs.errors import CkptfsError, StoreDamaged
from ckptfs.model import manifest as model
from ckptfs.model.digest import digest as digest_of
from ckptfs.model.digest import fingerprint, zero_digest
from ckptfs.store import layout, manifests, placement
from ckptfs.store.blobs import BlobFiles
from ckptfs.store.layout import TEMPORARY_PREFIX, Layout
from ckptfs.store.records import Checkpoint

#: Called with (bytes_done, bytes_total).
Progress = Callable[[int, int], None]

_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(slots=True)
class Found:
    """One checkpoint's files. ``problem`` says why it cannot be restored at all; empty otherwise."""

    ordinal: int
    checkpoint: Checkpoint | None = None
    manifest: model.Manifest | None = None
    digests: list[bytes] = field(default_factory=list)
    owners: dict[int, int] = field(default_factory=dict)
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    problem: str = ""


@dataclass(slots=True)
class Salvaged:
    """A chunk as it was found. ``problem`` is empty when its bytes have its digest."""

    length: int
    blob: int
    offset: int
    fingerprint: int = 0
    problem: str = ""


def find(place: Layout) -> list[Found]:
    """Every checkpoint that has a record, by ordinal."""
    names = [name for name in os.listdir(place.checkpoints) if not name.startswith(TEMPORARY_PREFIX)]
    return [_find_one(place, int(name)) for name in sorted(names, key=_number) if name.isdigit()]


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _find_one(place: Layout, ordinal: int) -> Found:
    found = Found(ordinal)
    try:
        found.checkpoint = placement.decode_record(layout.read(place.record(ordinal)))
        if found.checkpoint.ordinal != ordinal:
            raise StoreDamaged(f"its record is that of checkpoint {found.checkpoint.ordinal}")
        found.manifest = model.decode(manifests.read(place, found.checkpoint.digest))
        found.digests = manifests.distinct(found.manifest)
        placed = placement.decode(layout.read(place.placement(ordinal)))
        where = placed.each()
        if placed.manifest != found.checkpoint.digest or len(where) != len(found.digests):
            raise StoreDamaged("its placement is that of another checkpoint")
        found.owners = dict(placed.owners)
        found.places = dict(zip(found.digests, where, strict=True))
    except CkptfsError as error:
        found.problem = error.message
    return found


def lengths(found: list[Found]) -> dict[bytes, int]:
    """The length of every chunk that a readable manifest names."""
    known: dict[bytes, int] = {}
    for each in found:
        if each.manifest is not None:
            for _, file in each.manifest.files():
                for _, length, digest in file.recipe():
                    known[digest] = length
    return known


def verify(found: list[Found], blobs: BlobFiles, progress: Progress | None) -> dict[bytes, Salvaged]:
    """Read every chunk from where a placement says it is and compare its digest."""
    chunks: dict[bytes, Salvaged] = {}
    known = lengths(found)
    for each in found:
        for digest, (blob, offset) in each.places.items():
            chunks.setdefault(digest, Salvaged(known[digest], blob, offset))
    work = sorted(chunks.items(), key=lambda item: (item[1].blob, item[1].offset))
    total = sum(chunk.length for chunk in chunks.values())
    local = threading.local()
    done = 0

    def check(item: tuple[bytes, Salvaged]) -> int:
        digest, chunk = item
        buffer: bytearray = getattr(local, "buffer", bytearray())
        if len(buffer) < chunk.length:
            buffer = local.buffer = bytearray(chunk.length)
        chunk.problem = _check(digest, chunk, blobs, memoryview(buffer)[: chunk.length])
        return chunk.length

    with ThreadPoolExecutor(_WORKERS) as pool:
        for length in pool.map(check, work, chunksize=16):
            done += length
            if progress is not None:
                progress(done, total)
    return chunks


def _check(digest: bytes, chunk: Salvaged, blobs: BlobFiles, data: memoryview) -> str:
    if chunk.blob == 0:
        chunk.fingerprint = fingerprint(bytes(chunk.length))
        return "" if zero_digest(chunk.length) == digest else "it is said to be zeros and is not"
    try:
        got = blobs.read(chunk.blob, chunk.offset, data)
    except StoreDamaged:
        return f"blob {chunk.blob:016x} is missing"
    except CkptfsError as error:
        return error.message
    if got != chunk.length:
        return f"blob {chunk.blob:016x} is truncated"
    if digest_of(data) != digest:
        return "its bytes have changed"
    chunk.fingerprint = fingerprint(data)
    return ""
