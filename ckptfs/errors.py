"""One exception tree for everything that ckptfs can say went wrong.

A class says whose fault it is, and carries what each edge needs to answer:

- ``code``: the stable word in JSON answers and logs; scripts may match on it;
- ``errno``: what a system call on the mount returns;
- ``exit_code``: what the command line exits with (the table is in the README);
- ``http_status``: what the control interface answers;
- ``retryable``: whether the same call may succeed later with nothing changed.

A message says what happened, to which checkpoint and path, and what to do next, on one line.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar


class CkptfsError(Exception):
    """The base of every error that ckptfs raises on purpose."""

    code: ClassVar[str] = "internal"
    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = data

    def __str__(self) -> str:
        return self.message


# --- The caller's fault -------------------------------------------------------------------------


class SpecificationError(CkptfsError):
    """An argument is missing, of the wrong type or not allowed. ``attribute`` names it."""

    code = "specification"
    errno = _errno.EINVAL
    exit_code = 2
    http_status = 422

    def __init__(self, attribute: str, message: str, **data: Any) -> None:
        super().__init__(message, attribute=attribute, **data)
        self.attribute = attribute


class NotFound(CkptfsError):
    """No checkpoint, job or path of that name."""

    code = "not_found"
    errno = _errno.ENOENT
    exit_code = 3
    http_status = 404


class Conflict(CkptfsError):
    """The state of things forbids it: the name is taken, the checkpoint is in use."""

    code = "conflict"
    errno = _errno.EBUSY
    exit_code = 4
    http_status = 409


class NameTaken(Conflict):
    code = "name_taken"
    errno = _errno.EEXIST


class Ambiguous(Conflict):
    """A reference fits several checkpoints. ``data['candidates']`` lists them."""

    code = "ambiguous"


class InUse(Conflict):
    """``data['jobs']`` lists the jobs that hold a lease."""

    code = "in_use"


class PermissionDenied(CkptfsError):
    code = "permission_denied"
    errno = _errno.EACCES
    exit_code = 5
    http_status = 403


class CheckpointError(CkptfsError):
    """A checkpoint is not in the state that the caller waits for. As in the trainML SDK:
    ``status`` is the state that it is in and ``data`` what is known about it (its reason)."""

    code = "checkpoint"
    exit_code = 6
    http_status = 409

    def __init__(self, message: str, *, status: str = "", **data: Any) -> None:
        super().__init__(message, status=status, **data)
        self.status = status


class WaitTimeout(CkptfsError):
    code = "timeout"
    errno = _errno.ETIMEDOUT
    exit_code = 10
    http_status = 504
    retryable = True


# --- The source's fault -------------------------------------------------------------------------


class SourceError(CkptfsError):
    """What a checkpoint is created from is missing, broken or not allowed."""

    code = "source"
    exit_code = 6
    http_status = 422


class SourceNotFound(SourceError):
    code = "source_not_found"


class SourceDenied(SourceError):
    code = "source_denied"


class SourceChanged(SourceError):
    """The object is not the one that the creation began with (ETag, version, size or time)."""

    code = "source_changed"


class SourceCorrupt(SourceError):
    """A truncated or damaged archive, or an answer that contradicts itself."""

    code = "source_corrupt"


class SourceRefused(SourceError):
    """Something that a checkpoint may not hold: a device, a path that escapes, a bomb."""

    code = "source_refused"


class SourceTooLarge(SourceError):
    code = "source_too_large"


class SourceUnavailable(SourceError):
    """The other side does not answer, or died in mid-way. What arrived is kept for a resume."""

    code = "source_unavailable"
    http_status = 502
    retryable = True


# --- The node's fault ---------------------------------------------------------------------------


class StoreError(CkptfsError):
    code = "store"
    exit_code = 7


class StoreFull(StoreError):
    code = "store_full"
    errno = _errno.ENOSPC
    http_status = 507
    retryable = True


class StoreLocked(StoreError):
    """Another daemon owns the store."""

    code = "store_locked"
    errno = _errno.EBUSY


class StoreDamaged(StoreError):
    """The index or a blob is not what was written. The message names the way to repair it."""

    code = "store_damaged"


class MountError(CkptfsError):
    """The mount cannot be made: no /dev/fuse, a busy or missing mountpoint."""

    code = "mount"
    exit_code = 7


class UpgradeFailed(CkptfsError):
    """The next worker could not take over; the one before it goes on."""

    code = "upgrade_failed"
    exit_code = 7
    http_status = 500


class ConfigurationError(CkptfsError):
    code = "configuration"
    exit_code = 2


# --- The control interface ----------------------------------------------------------------------


class ApiError(CkptfsError):
    """The daemon answered with something that this client does not understand."""

    code = "api"
    exit_code = 8


class ConnectionError(CkptfsError):
    """The daemon cannot be reached on its control socket. (The trainML SDK's name for it.)"""

    code = "connection"
    exit_code = 8
    http_status = 503
    retryable = True


class Interrupted(CkptfsError):
    """A creation ended before it was complete, because the daemon stopped or another worker took over."""

    code = "interrupted"
    exit_code = 6
    http_status = 409
    retryable = True


class Cancelled(Interrupted):
    """A creation ended before it was complete, because somebody wanted that."""

    code = "cancelled"


def _tree(base: type[CkptfsError]) -> list[type[CkptfsError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _tree(child))]


_BY_CODE = {cls.code: cls for cls in _tree(CkptfsError)}


def from_code(code: str, message: str, data: dict[str, Any]) -> CkptfsError:
    """Rebuild an error from its JSON form; an unknown code becomes an :class:`ApiError`."""
    cls = _BY_CODE.get(code, ApiError)
    if issubclass(cls, SpecificationError):
        data = dict(data)
        return cls(str(data.pop("attribute", "")), message, **data)
    return cls(message, **data)
