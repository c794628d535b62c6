"""The store: the node-local blobs and the index. Everything blocks; nothing here knows trio.

store      the facade: one open store
draft, draft_file, landing, packing
           a creation under way, its files, and how their chunks come in
begin, commit, publish, ending
           the life of a draft, one module per step
references, release, settle
           how chunks are given up and bytes given back
derived, derived_file, derived_room, derived_start
           derived copies: which there are, how one is made, how they make room, what a start does
natives    which checkpoints were looked at for derived copies
quarantine chunks that were found damaged, until their bytes are brought in again
recover    what opening a store puts right after a crash
rebuild, salvage
           a new index from manifests, records, placements and blobs
core       what the parts of an open store share: the batch of puts, and the order of locks
index, rows
           LMDB tables with checked rows; the only door to lmdb (with probe_child, a script of its own)
probe      the check of the index in a child process, before it is opened
blobs      blob files and their descriptors
layout, manifests, placement
           the directory, and the small files published in it
listing    what the index lists
records    what the store says about itself
lock, kernel, failure
           flock, the Linux calls that Python lacks, foreign errors made ours
"""

from ckptfs.store.blobs import BlobHandle
from ckptfs.store.derived_file import NewCopy
from ckptfs.store.draft import Draft
from ckptfs.store.draft_file import DraftFile
from ckptfs.store.landing import LandingBlob
from ckptfs.store.layout import FORMAT_VERSION
from ckptfs.store.packing import SMALL_FILE_BYTES
from ckptfs.store.rebuild import DamagedChunk, RebuildReport, rebuild
from ckptfs.store.records import (
    Checkpoint,
    Chunk,
    DerivedCopy,
    DerivedTotals,
    DraftRecord,
    Lease,
    Natives,
    RecoveryReport,
    RemoveReport,
    Usage,
    Why,
)
from ckptfs.store.store import Store

__all__ = [
    "FORMAT_VERSION",
    "SMALL_FILE_BYTES",
    "BlobHandle",
    "Checkpoint",
    "Chunk",
    "DamagedChunk",
    "DerivedCopy",
    "DerivedTotals",
    "Draft",
    "DraftFile",
    "DraftRecord",
    "LandingBlob",
    "Lease",
    "Natives",
    "NewCopy",
    "RebuildReport",
    "RecoveryReport",
    "RemoveReport",
    "Store",
    "Usage",
    "Why",
    "rebuild",
]
