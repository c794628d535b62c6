"""What the store says about itself: one small immutable record per thing. Sizes are bytes, times seconds
since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Chunk(NamedTuple):
    """Where a resident chunk lies. ``blob`` 0 means: all zeros, nothing is stored.

    ``refs`` counts the checkpoints and drafts that use it, each once. (A named tuple: a listing makes a
    hundred thousand of them, and a dataclass costs three times as much.)
    """

    digest: bytes
    length: int
    blob: int
    offset: int
    fingerprint: int
    refs: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    ordinal: int
    name: str
    digest: bytes
    created: float
    creation: str
    source_type: str
    source_uri: str
    size_bytes: int
    files: int
    directories: int


@dataclass(frozen=True, slots=True)
class DraftRecord:
    """A creation that has not become a checkpoint. ``status`` is "downloading" or "failed"."""

    ordinal: int
    name: str
    creation: str
    source_key: str
    source_type: str
    source_uri: str
    created: float
    status: str
    reason: str
    reason_code: str
    bytes_kept: int


@dataclass(frozen=True, slots=True)
class Lease:
    job: str
    ordinal: int
    created: float
    expires: float | None
    pid: int | None
    pid_start: int | None  # clock ticks since boot, from /proc/<pid>/stat: a pid alone is reused


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """``bytes_freed`` is the sum of the lengths of the chunks that nothing else used."""

    bytes_freed: int
    chunks_freed: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Distinct chunk bytes of one checkpoint, each chunk once; all-zero chunks take none.

    ``stored_bytes`` = ``unique_bytes`` (no other checkpoint or draft uses them) + ``shared_bytes``.
    """

    stored_bytes: int
    unique_bytes: int
    shared_bytes: int


class Why(IntEnum):
    """Why a derived copy was made: it says what a limit holds for."""

    FREE = 0  # it takes nearly nothing beside what it shares
    LIMITED = 1  # by itself, within the limit for that
    ASKED = 2  # somebody asked for it


class DerivedTotals(NamedTuple):
    """Derived copies, all or those of one checkpoint. ``physical_bytes``: what they take of the disk beside
    what they share; ``limited_bytes``: of it, in copies that were made by themselves within the limit."""

    copies: int = 0
    physical_bytes: int = 0
    limited_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DerivedCopy:
    """One file of a checkpoint as a file of its own. ``last_used``: when it was made or last opened."""

    ordinal: int
    entry: int
    size_bytes: int
    physical_bytes: int
    why: Why
    last_used: float


@dataclass(frozen=True, slots=True)
class Natives:
    """Of a checkpoint that was looked at: files that need no derived copy because they are whole, or too
    small to be worth one; ``wanted``: others may be given one without being asked for."""

    whole: int
    small: int
    wanted: bool


@dataclass(slots=True)
class RecoveryReport:
    """What opening the store found undone and put right; all zero after a clean stop."""

    drafts_interrupted: int = 0
    removals_finished: int = 0
    blobs_swept: int = 0
    files_swept: int = 0
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.drafts_interrupted
            or self.removals_finished
            or self.blobs_swept
            or self.files_swept
            or self.notes
        )
