"""The rules of `wait_for` and `upgrade`, without a clock: what may be waited for, and when it is settled."""

from __future__ import annotations

import math

import msgspec

from ckptfs.errors import CheckpointError, SpecificationError, UpgradeFailed, WaitTimeout
from ckptfs.model.records import CheckpointInfo, StatusInfo

TARGETS = ("downloading", "ready", "archived")

MAX_TIMEOUT_SECONDS = 24 * 3600.0

#: Looks start close together, since a small checkpoint is ready at once, and get rarer.
FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0

# A state that lies behind the target means that the target was reached, however quickly it passed.
_SETTLED = {
    "downloading": {"downloading", "ready"},
    "ready": {"ready"},
    "archived": {"archived"},
}


def check(status: str, timeout: float) -> None:
    """Raise :class:`SpecificationError` for a target or a timeout that makes no sense."""
    if status not in TARGETS:
        raise SpecificationError(
            "status", f"cannot wait for {status!r}: it must be one of {', '.join(TARGETS)}"
        )
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or math.isnan(timeout)
        or timeout < 0
    ):
        raise SpecificationError("timeout", f"timeout must be a number of seconds, not {timeout!r}")
    if timeout > MAX_TIMEOUT_SECONDS:
        raise SpecificationError("timeout", "timeout must not be more than 24 hours (86400 seconds)")


def settled(info: CheckpointInfo, status: str) -> bool:
    """Whether ``status`` is reached. Raises :class:`CheckpointError` when it never will be."""
    if info.status in _SETTLED[status]:
        return True
    if status == "archived":
        return False  # a failed one can be removed as well
    if info.status == "failed":
        raise CheckpointError(
            f"checkpoint {info.name} failed: {info.reason or 'no reason is known'}",
            status="failed",
            reason=info.reason,
            reason_code=info.reason_code,
        )
    if info.status == "archived":
        raise CheckpointError(f"checkpoint {info.name} was removed", status="archived")
    return False


class Pauses:
    """How long to pause before the next look, within what is left of the timeout."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE_SECONDS

    def take(self, left_seconds: float) -> float:
        pause = self._next
        self._next = min(self._next * 1.5, LAST_PAUSE_SECONDS)
        return max(0.0, min(pause, left_seconds))


def timed_out(info: CheckpointInfo, status: str, timeout: float) -> WaitTimeout:
    return WaitTimeout(
        f"checkpoint {info.name} is {info.status}, not {status}, after {timeout:g} seconds",
        status=info.status,
    )


def archived(info: CheckpointInfo) -> CheckpointInfo:
    """What is known of a checkpoint that the daemon no longer knows: it was removed."""
    return msgspec.structs.replace(info, status="archived")


def upgraded(before: StatusInfo, now: StatusInfo) -> bool:
    """Whether another worker serves than the one that was asked to go. Raises :class:`UpgradeFailed` when
    it does not and never will."""
    another = now.worker_pid != before.worker_pid
    counted = now.upgrades >= 0 and before.upgrades >= 0 and now.pid == before.pid
    if now.upgrades > before.upgrades if counted else another:
        return True
    if not another and not now.upgrade_note and now.pid == before.pid:
        return False
    # Another worker that is no upgrade followed a death; the same one, now its own holder, has lost that.
    who = before.worker_pid if another else before.pid
    why = now.upgrade_note or f"process {who} died meanwhile, as the daemon's log says"
    raise UpgradeFailed(
        f"the upgrade failed: {why}; version {now.version} (process {now.worker_pid}) serves as before"
    )


def not_upgraded(before: StatusInfo, timeout: float) -> WaitTimeout:
    return WaitTimeout(
        f"no other worker than process {before.worker_pid} answered within {timeout:g} seconds; "
        "the daemon's log says why",
        status="upgrading",
    )
