"""The engine's limits: every bound that it keeps has a name and a unit here.

The daemon fills these from its configuration; the defaults are what a node with one local disk wants.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Of what the mount asks, by kind: none of them waits for another kind's."""

    # Reads that wait for the disk at a time, of all checkpoints. More than any disk has in flight for one
    # node's readers; each may hold a thread and a buffer of a request's size (1 MiB).
    warm_reads: int = 64
    # The share of one checkpoint. As many large reads keep a disk busy, and four checkpoints whose disk
    # stands still are needed to stop the reads of a fifth.
    warm_reads_each: int = 16
    # Manifests that are decoded, and long lists of chunks that are looked up. Python work: more at a time
    # would only contend for the interpreter.
    metadata_loads: int = 2


@dataclass(frozen=True, slots=True)
class EngineConfig:
    # Where the mount is, for the paths that jobs are told; None when the daemon runs without one.
    mount: str | None = None

    reads: ReadLimits = ReadLimits()

    # Creation
    max_creations: int = 4  # that run at once; the others wait with the status "new"
    max_checkpoint_bytes: int = 500 * 10**9  # trainML's limit for one checkpoint
    max_entries: int = 2_000_000
    reserve_free_bytes: int = 1 * 10**9  # of the store's disk, never filled by a creation
    # Worker threads of one local creation, at most: one core is left to those who read meanwhile
    # (local_workers). More than the cores only adds switches: reading and writing go through the page
    # cache, hashing is pure CPU.
    workers: int = 3
    remote_workers: int = 8  # of one remote creation: these mostly wait for the network
    # One worker's buffer, and so the longest run of chunks that is read in one call. Two target chunks:
    # ranges of 4-16 MiB are the cheapest to fetch, and fresh memory is the dearest to touch.
    buffer_bytes: int = 8 * MIB
    # Derived copies that cost space and that nobody asked for are made up to this; 0: none. Those that
    # take nearly nothing, because the file system shares blocks, are always made.
    derived_limit_bytes: int = 0
    # A commit waits for the disk; between commits a crash forgets what was put. These bound what it forgets.
    commit_bytes: int = 512 * MIB
    commit_seconds: float = 5.0
    draft_retention_seconds: float = 24 * 3600.0  # how long a failed creation's bytes are kept for a resume

    # Sources
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 60.0
    min_throughput_bytes_per_second: int = 10_000
    retries: int = 5

    # Leases
    max_jobs: int = 10_000

    def local_workers(self) -> int:
        """On two cores one worker creates as fast as three (0.93 and 0.91 of cp and sync), and the 99th
        percentile of small reads beside it is 0.7 ms instead of 3 to 6."""
        return min(self.workers, max(1, len(os.sched_getaffinity(0)) - 1))
