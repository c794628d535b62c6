"""The records that cross the control interface: what the daemon answers and the SDK reads.

All sizes are bytes, all times seconds since the epoch (UTC), all rates bytes per second.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["new", "downloading", "ready", "failed", "archived"]
STATUSES: tuple[str, ...] = ("new", "downloading", "ready", "failed", "archived")

SourceType = Literal["local", "s3", "aws", "wasabi", "web"]


class Progress(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How far a creation is. ``bytes_total`` is 0 while it is not known."""

    phase: str = ""  # "listing", "downloading", "reading", "finishing"
    bytes_done: int = 0
    bytes_total: int = 0
    files_done: int = 0
    files_total: int = 0
    bytes_reused: int = 0  # of bytes_done: found in the store, neither fetched nor written again
    rate_bytes_per_second: float = 0.0
    eta_seconds: float | None = None


class CheckpointInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One checkpoint. Before it is ready its ``id`` is that of the creation (``c-…``)."""

    id: str
    name: str
    status: Status
    size: int = 0  # logical bytes
    billed_size: int = 0  # as size: a checkpoint is charged once, by its size
    files: int = 0
    directories: int = 0
    created: float = 0.0
    creation: str = ""  # the creation's own id; still finds the checkpoint when it is ready
    source_type: str = ""
    source_uri: str = ""  # never holds credentials
    reason: str = ""  # why it failed
    reason_code: str = ""  # errors.CkptfsError.code of it
    progress: Progress | None = None
    jobs: list[str] = []
    # Filled by `show`, not by `list`:
    unique_bytes: int | None = None  # in chunks that no other checkpoint uses
    shared_bytes: int | None = None  # in chunks that another checkpoint uses too
    stored_bytes: int | None = None  # distinct chunk bytes of this checkpoint, each counted once
    whole_files: int | None = None
    native_files: int | None = None  # that the kernel reads past the daemon: whole, or with a derived copy
    served_files: dict[str, int] | None = None  # the others, by why: "shared", "small", "damaged"
    derived_files: int | None = None  # that have a derived copy
    derived_bytes: int | None = None  # what those take of the disk beside what they share with blobs
    # Filled by `remove`: what it gave back. Bytes that are still mapped follow when they are not.
    freed_bytes: int | None = None


FileForm = Literal["", "whole", "derived", "shared", "small", "damaged"]


class TreeEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of `tree`. ``path`` has undecodable bytes as surrogate escapes (\\udcXX)."""

    path: str
    type: Literal["d", "f", "l"]
    size: int = 0
    executable: bool = False
    target: str = ""
    # Of a file, how it lies in the store: the kernel reads "whole" and "derived" past the daemon.
    form: FileForm = ""
    native: bool = False


class JobCheckpoint(msgspec.Struct, kw_only=True):
    name: str
    id: str
    source: str  # the directory under the daemon's mount, to be bound into the job
    target: str  # where it belongs in the job's own view


class JobInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A job and what is attached for it."""

    job: str
    checkpoints: list[JobCheckpoint]
    path: str  # what TRAINML_CHECKPOINT_PATH is on the host, without binds
    env: dict[str, str]
    created: float = 0.0
    expires: float | None = None
    pid: int | None = None  # the lease ends with this process


class StoreStatus(msgspec.Struct, kw_only=True):
    path: str
    checkpoints: int
    chunks: int
    logical_bytes: int  # the sum of the checkpoints' sizes
    stored_bytes: int  # the sum of the lengths of all stored chunks, each once
    physical_bytes: int  # what the blobs take on the disk (st_blocks), and derived copies beside them
    files: int  # of all checkpoints
    native_files: int  # of these, whole or with a derived copy; new checkpoints count when looked at
    derived_files: int
    derived_bytes: int  # what the derived copies take beside what they share with blobs
    derived_limit_bytes: int  # for copies that are made without being asked for
    disk_free_bytes: int
    disk_total_bytes: int
    format: int


class StatusInfo(msgspec.Struct, kw_only=True):
    version: str
    pid: int  # the process to signal: the holder of the mount where there is one
    worker_pid: int  # the process that answers
    worker_starts: int  # workers before this one since the daemon was started
    #: Upgrades and reloads that succeeded since the daemon was started; -1: it does not count them.
    upgrades: int = -1
    spare_pid: int = 0  # the process that takes over if this one dies; 0: none is prepared
    upgrade_note: str  # why the last upgrade failed; empty when it did not
    started: float  # of the worker
    socket: str
    mount: str
    mounted: bool
    mount_note: str  # what this mount cannot do, and why; empty when there is nothing to say
    store: StoreStatus
    jobs: int
    creations: int
    counters: dict[str, int]


class Damage(msgspec.Struct, kw_only=True):
    """One chunk that is not what it should be, and one place that shows it."""

    checkpoint: str
    path: str
    offset: int
    length: int
    problem: str


class DroppedCopy(msgspec.Struct, kw_only=True):
    """A derived copy that was not what it should be. The file is read from its chunks again."""

    path: str
    problem: str


class VerifyReport(msgspec.Struct, kw_only=True):
    checkpoint: str
    id: str
    chunks: int
    bytes: int
    damaged: list[Damage]
    copies: int = 0  # derived copies that were read and compared
    dropped: list[DroppedCopy] = []


class AssembleReport(msgspec.Struct, kw_only=True):
    """What became of a checkpoint's derived copies, and how it is now."""

    checkpoint: str
    id: str
    made: int = 0
    dropped: int = 0
    freed_bytes: int = 0  # by what was dropped
    files: int
    native_files: int
    served_files: dict[str, int]  # the others, by why: "shared", "small", "damaged"
    derived_files: int
    derived_bytes: int  # what the derived copies take of the disk beside what they share with blobs
    damaged: list[Damage] = []  # found on the way; these files are not native


class DoctorCheck(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One question of `doctor`: is it there, and what to do if not."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


class CreateRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    source_uri: str
    source_type: str = ""  # empty: by the URI
    source_options: dict[str, str] = {}
    extract: Literal["auto", "yes", "no"] = "auto"
    # Kept in memory for the creation only; never logged, stored or shown.
    credentials: dict[str, str] = {}


class AttachRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    job: str = ""  # empty: the daemon chooses one
    checkpoints: list[str]
    bind_to_caller: bool = False  # end the lease with the calling process (its peer pid)
    ttl_seconds: float | None = None


def to_builtins(value: Any) -> Any:
    return msgspec.to_builtins(value)
