"""A new index from what the store's files say, every chunk verified.

The new index is written beside the old one and takes its place by a rename; until then nothing has
changed, and a rebuild that is cut short is simply made again. The damaged index is kept as
``index.damaged-<time>``. Creations that were under way and leases are known to the index only: they are
lost, and the blobs of the former are removed.

A checkpoint with damaged chunks does not get its name back. It becomes a failed creation that keeps its
sound chunks, so that creating it again writes only what is missing; its files are copied to ``aside/``.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field, replace

from ckptfs.errors import StoreError
from ckptfs.store import core, derived_start, failure, layout, placement, rows, salvage
from ckptfs.store.blobs import BlobFiles
from ckptfs.store.index import DEFAULT_MAP_SIZE_BYTES, Index, Table, Writer
from ckptfs.store.layout import FORMAT_VERSION, TEMPORARY_PREFIX, Layout
from ckptfs.store.lock import StoreLock
from ckptfs.store.records import Checkpoint
from ckptfs.store.salvage import Found, Progress, Salvaged
from ckptfs.store.settle import settle

#: Ordinals of drafts and of removed checkpoints are forgotten with the index, and inode numbers are made
#: of them: the next one is this much above the highest that is known.
_ORDINAL_GAP = 1 << 16

_BATCH = 50_000


@dataclass(frozen=True, slots=True)
class DamagedChunk:
    """One place that shows a damaged chunk. ``path`` is empty when the whole checkpoint is unreadable."""

    checkpoint: str
    path: bytes
    offset: int
    length: int
    problem: str


@dataclass(slots=True)
class RebuildReport:
    restored: list[Checkpoint] = field(default_factory=list)
    damaged: list[DamagedChunk] = field(default_factory=list)
    #: Old name -> new name, where two records claimed the same.
    renamed: dict[str, str] = field(default_factory=dict)
    chunks: int = 0
    blobs_removed: int = 0
    #: Where the old index was put; empty when there was none.
    old_index: str = ""


def rebuild(
    path: str, progress: Progress | None = None, *, map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES
) -> RebuildReport:
    """Rebuild the index of a store that no daemon uses. Reads every byte of it.

    Raises :class:`StoreLocked`, :class:`StoreError` (not a store), :class:`StoreFull`.
    """
    place = Layout(os.path.abspath(path))
    with failure.mapped(f"opening {place.root}"):
        version = place.version() if os.path.isdir(place.root) else None
    if version != FORMAT_VERSION:
        raise StoreError(f"{place.root} is not a ckptfs store of format {FORMAT_VERSION}")
    lock = StoreLock(place.lock)
    try:
        with failure.mapped(f"rebuilding {place.root}"):
            place.make_folders()
            return _rebuild(place, progress, map_size_bytes)
    finally:
        lock.release()


def _rebuild(place: Layout, progress: Progress | None, map_size_bytes: int) -> RebuildReport:
    report = RebuildReport()
    blobs = BlobFiles(place)
    try:
        derived_start.remove_all(place)
        found = salvage.find(place)
        chunks = salvage.verify(found, blobs, progress)
        fresh = f"{place.root}/{TEMPORARY_PREFIX}index"
        shutil.rmtree(fresh, ignore_errors=True)
        os.mkdir(fresh, 0o700)
        index = Index(fresh, map_size_bytes=map_size_bytes, create=True)
        try:
            _write(place, index, found, chunks, report)
            _remove_orphans(place, index, report)
        finally:
            index.close()
        _swap(place, fresh, report)
        index = Index(place.index, map_size_bytes=map_size_bytes, create=False)
        try:
            settle(core.Core(place, index, blobs))
        finally:
            index.close()
    finally:
        blobs.close()
    return report


# --- Writing the index --------------------------------------------------------------------------------


def _write(
    place: Layout, index: Index, found: list[Found], chunks: dict[bytes, Salvaged], report: RebuildReport
) -> None:
    sound = {digest for digest, chunk in chunks.items() if not chunk.problem}
    refs: dict[bytes, int] = {}
    owners: dict[int, int] = {}
    sizes: dict[int, int] = {}
    taken: set[str] = set()
    for each in found:
        damage = _damage(each, chunks)
        report.damaged += damage
        with index.write() as writer:
            if damage or each.checkpoint is None or each.manifest is None:
                _set_aside(place, each)
                held = [digest for digest in each.digests if digest in sound]
                _put_draft(writer, each, held, chunks, damage)
            else:
                held = each.digests
                checkpoint = _under_free_name(each.checkpoint, taken, report)
                if checkpoint.name != each.checkpoint.name:
                    layout.publish(place.record(each.ordinal), placement.encode_record(checkpoint))
                if each.problem:  # its placement is lost, and others knew all its chunks
                    _place_again(place, each, chunks)
                _put_checkpoint(writer, checkpoint, each.owners)
                report.restored.append(checkpoint)
                files = dict(each.manifest.files())
                for entry, blob in each.owners.items():
                    owners[blob] = owners.get(blob, 0) + 1
                    sizes[blob] = files[entry].size_bytes
        for digest in held:
            refs[digest] = refs.get(digest, 0) + 1
    _put_chunks(index, chunks, refs)
    _put_blobs(place, index, chunks, refs, owners, sizes)
    report.chunks = len(refs)
    with index.write() as writer:
        highest_blob = max((_blob_numbers(place)), default=0)
        highest = max((each.ordinal for each in found), default=0)
        writer.total = writer.total._replace(
            next_ordinal=highest + _ORDINAL_GAP, next_blob=highest_blob + 1, chunks=len(refs)
        )


def _damage(each: Found, chunks: dict[bytes, Salvaged]) -> list[DamagedChunk]:
    name = each.checkpoint.name if each.checkpoint is not None else f"(checkpoint {each.ordinal})"
    if each.problem and each.manifest is None:
        return [DamagedChunk(name, b"", 0, 0, each.problem)]
    assert each.manifest is not None
    found: list[DamagedChunk] = []
    for _, file in each.manifest.files():
        for offset, length, digest in file.recipe():
            chunk = chunks.get(digest)
            if chunk is None or chunk.problem:
                problem = "nothing says where it lies" if chunk is None else chunk.problem
                found.append(DamagedChunk(name, file.path, offset, length, problem))
    return found


def _place_again(place: Layout, each: Found, chunks: dict[bytes, Salvaged]) -> None:
    assert each.checkpoint is not None
    places = [(chunks[digest].blob, chunks[digest].offset) for digest in each.digests]
    layout.publish(place.placement(each.ordinal), placement.encode(each.checkpoint.digest, {}, places))


def _under_free_name(checkpoint: Checkpoint, taken: set[str], report: RebuildReport) -> Checkpoint:
    if checkpoint.name in taken:
        name = f"{checkpoint.name[:200]}.{checkpoint.ordinal}"
        while name in taken:
            name += "-"
        report.renamed[checkpoint.name] = name
        checkpoint = replace(checkpoint, name=name)
    taken.add(checkpoint.name)
    return checkpoint


def _put_checkpoint(writer: Writer, checkpoint: Checkpoint, owners: dict[int, int]) -> None:
    key = rows.ordinal_key(checkpoint.ordinal)
    writer.put(Table.CHECKPOINTS, key, rows.encode(rows.checkpoint_row(checkpoint)))
    writer.put(Table.NAMES, checkpoint.name.encode(), key)
    for entry, blob in owners.items():
        writer.put(Table.OWNERS, rows.owner_key(checkpoint.ordinal, entry), rows.pack_blob_number(blob))


def _put_draft(
    writer: Writer,
    each: Found,
    held: list[bytes],
    chunks: dict[bytes, Salvaged],
    damage: list[DamagedChunk],
) -> None:
    """What is left of a damaged checkpoint, as a creation that failed and keeps its sound chunks."""
    old = each.checkpoint
    worst = damage[0]
    reason = f"a rebuild found {len(damage)} damaged place(s)"
    if worst.path:
        shown = worst.path.decode("utf-8", "backslashreplace")
        reason += f", the first at offset {worst.offset} of {shown}"
    row = rows.DraftRow(
        name=worst.checkpoint,
        creation=old.creation if old else f"c-damaged-{each.ordinal}",
        source_key="",
        source_type=old.source_type if old else "",
        source_uri=old.source_uri if old else "",
        created=old.created if old else time.time(),
        status="failed",
        reason=f"{reason} ({worst.problem}): create it again, what is sound is not written again",
        reason_code="store_damaged",
        bytes_kept=sum(chunks[digest].length for digest in held if chunks[digest].blob),
        packs=[],
    )
    writer.put(Table.DRAFTS, rows.ordinal_key(each.ordinal), rows.encode(row))
    for number, digest in enumerate(held):
        key = rows.draft_chunk_key(each.ordinal, bytes(16), number)
        writer.put(Table.DRAFT_CHUNKS, key, rows.pack_draft_chunk(digest, chunks[digest].length))


def _put_chunks(index: Index, chunks: dict[bytes, Salvaged], refs: dict[bytes, int]) -> None:
    order = sorted(refs)
    for start in range(0, len(order), _BATCH):
        with index.write() as writer:
            part = [(digest, chunks[digest]) for digest in order[start : start + _BATCH]]
            writer.put_all(
                Table.CHUNKS,
                [
                    (digest, rows.pack_chunk(c.length, c.blob, c.offset, c.fingerprint, refs[digest]))
                    for digest, c in part
                ],
            )
            writer.put_all(
                Table.BLOB_CHUNKS,
                sorted(
                    (rows.place_key(c.blob, c.offset), rows.pack_place(digest, c.length))
                    for digest, c in part
                    if c.blob
                ),
            )
            writer.add(stored_bytes=sum(c.length for _, c in part if c.blob))


def _put_blobs(
    place: Layout,
    index: Index,
    chunks: dict[bytes, Salvaged],
    refs: dict[bytes, int],
    owners: dict[int, int],
    sizes: dict[int, int],
) -> None:
    """Every blob is noted for punching: what no row tells of is dead."""
    live: dict[int, tuple[int, int]] = {}
    for digest in refs:
        chunk = chunks[digest]
        if chunk.blob:
            count, size = live.get(chunk.blob, (0, 0))
            live[chunk.blob] = (count + 1, size + chunk.length)
    with index.write() as writer:
        for blob in sorted(set(live) | set(owners)):
            status = os.stat(place.blob(blob))
            if blob in sizes and status.st_size != sizes[blob]:
                os.truncate(place.blob(blob), sizes[blob])  # its end is zeros, or a chunk would be damaged
            count, size = live.get(blob, (0, 0))
            physical = status.st_blocks * 512
            kind = rows.OWN if blob in sizes else rows.PACK
            length = sizes.get(blob, status.st_size)
            row = rows.BlobRow(kind, length, count, size, owners.get(blob, 0), physical)
            writer.put(Table.BLOBS, rows.blob_key(blob), rows.pack_blob(row))
            writer.put(Table.PENDING, core.PUNCH + rows.blob_key(blob), b"")
            writer.add(physical_bytes=physical)


# --- Files --------------------------------------------------------------------------------------------


def _set_aside(place: Layout, each: Found) -> None:
    """Copy what there is of a damaged checkpoint; the next start removes the originals."""
    folder = f"{place.aside}/{each.ordinal}"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    originals = {"record": place.record(each.ordinal), "placement": place.placement(each.ordinal)}
    if each.checkpoint is not None:
        originals["manifest"] = place.manifest(each.checkpoint.digest)
    for name, original in originals.items():
        if os.path.exists(original):
            layout.publish(f"{folder}/{name}", layout.read(original))


def _blob_numbers(place: Layout) -> list[int]:
    return [
        int(name, 16) for folder in os.listdir(place.blobs) for name in os.listdir(f"{place.blobs}/{folder}")
    ]


def _remove_orphans(place: Layout, index: Index, report: RebuildReport) -> None:
    with index.read() as reader:
        for blob in _blob_numbers(place):
            if reader.get(Table.BLOBS, rows.blob_key(blob)) is None:
                os.unlink(place.blob(blob))
                report.blobs_removed += 1


def _swap(place: Layout, fresh: str, report: RebuildReport) -> None:
    if os.path.exists(place.data):
        report.old_index = f"{place.index}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        while os.path.exists(report.old_index):
            report.old_index += "-"
        os.rename(place.index, report.old_index)
    elif os.path.isdir(place.index):
        shutil.rmtree(place.index)
    os.rename(fresh, place.index)
    layout.sync_folder(place.root)
