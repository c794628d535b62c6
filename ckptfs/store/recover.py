"""What opening a store puts right after a crash. Each step can be cut short and made again."""

from __future__ import annotations

import os
import shutil

import msgspec

from ckptfs.store import core, derived_start, ending, failure, layout, listing, placement, release, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Table, Writer
from ckptfs.store.records import RecoveryReport
from ckptfs.store.settle import settle


def recover(store: Core) -> RecoveryReport:
    report = RecoveryReport()
    with failure.mapped("sweeping the store"):
        _unlink_unrecorded(store, report)
        _stop_drafts(store, report)
        _finish_removals(store, report)
        _rewrite_records(store)
        settle(store)
        _sweep_files(store, report)
        derived_start.sweep(store, report)
    return report


def _unlink_unrecorded(store: Core, report: RecoveryReport) -> None:
    """Blob files whose numbers were reserved and whose first commit never came."""
    with store.index.read() as reader:
        ranges = [
            (rows.number(key[1:]), rows.number(end)) for key, end in reader.scan(Table.PENDING, core.BORN)
        ]
        lost = [
            blob
            for start, end in ranges
            for blob in range(start, end)
            if os.path.exists(store.layout.blob(blob))
            and reader.get(Table.BLOBS, rows.blob_key(blob)) is None
        ]
    for blob in lost:
        store.blobs.unlink(blob)
    report.blobs_swept += len(lost)
    if ranges:
        with store.transaction() as writer:
            for start, _ in ranges:
                writer.delete(Table.PENDING, core.BORN + rows.blob_key(start))


def _stop_drafts(store: Core, report: RecoveryReport) -> None:
    """Creations that were under way become failed ones that can be resumed."""
    with store.index.read() as reader:
        found = [(rows.number(k), rows.decode_draft(body)) for k, body in reader.scan(Table.DRAFTS)]
    for ordinal, row in found:
        if row.status != "downloading":
            continue
        report.drafts_interrupted += 1
        with store.transaction() as writer:
            stopped = msgspec.structs.replace(
                row,
                status="failed",
                reason="the daemon ended before the creation was complete",
                reason_code="interrupted",
                bytes_kept=ending.bytes_kept(writer, ordinal),
            )
            writer.put(Table.DRAFTS, rows.ordinal_key(ordinal), rows.encode(stopped))
            _note_blobs(writer, ending.own_blobs(writer, ordinal) | set(row.packs))


def _note_blobs(writer: Writer, blobs: set[int]) -> None:
    for blob in sorted(blobs):
        if writer.get(Table.BLOBS, rows.blob_key(blob)) is not None:
            writer.put(Table.PENDING, core.PUNCH + rows.blob_key(blob), b"")


def _finish_removals(store: Core, report: RecoveryReport) -> None:
    with store.index.read() as reader:
        found = [rows.number(key[1:]) for key, _ in reader.scan(Table.PENDING, core.RELEASE)]
    for ordinal in found:
        release.finish(store, ordinal)
        report.removals_finished += 1


def _rewrite_records(store: Core) -> None:
    """Records that may be older than a rename."""
    with store.index.read() as reader:
        found = [rows.number(key[1:]) for key, _ in reader.scan(Table.PENDING, core.RECORD)]
    for ordinal in found:
        checkpoint = listing.by_ordinal(store, ordinal)
        if checkpoint is not None:
            layout.publish(store.layout.record(ordinal), placement.encode_record(checkpoint))
        with store.transaction() as writer:
            writer.delete(Table.PENDING, core.RECORD + rows.ordinal_key(ordinal))


def _sweep_files(store: Core, report: RecoveryReport) -> None:
    """Small files and spools that no row names."""
    place = store.layout
    ready = listing.checkpoints(store)
    ordinals = {str(checkpoint.ordinal) for checkpoint in ready}
    kept = {
        place.manifests: {checkpoint.digest.hex() for checkpoint in ready},
        place.checkpoints: ordinals,
        place.placements: ordinals,
    }
    for folder, names in kept.items():
        litter = [name for name in os.listdir(folder) if name not in names]
        for name in litter:
            os.unlink(f"{folder}/{name}")
        if litter:
            layout.sync_folder(folder)
        report.files_swept += len(litter)
    for name in os.listdir(place.root):
        if name.startswith(layout.TEMPORARY_PREFIX):  # of the marker, or of a rebuild that was cut short
            path = f"{place.root}/{name}"
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
            report.files_swept += 1
    drafts = {str(draft.ordinal) for draft in listing.drafts(store)}
    for name in os.listdir(place.spools):
        if name not in drafts:
            shutil.rmtree(f"{place.spools}/{name}", ignore_errors=True)
            report.files_swept += 1
