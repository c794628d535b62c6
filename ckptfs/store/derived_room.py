"""Derived copies go first when room is needed: the one that was not used for the longest time before others.

When a copy was last used is the modification time of its file, noted now and then (:func:`note_use`), so
that an open costs no write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from ckptfs.errors import CkptfsError
from ckptfs.store import derived, kernel, rows
from ckptfs.store.core import Core
from ckptfs.store.derived_file import NewCopy
from ckptfs.store.index import Table
from ckptfs.store.records import DerivedCopy

#: How long to wait until the file system shows the room that was made: btrfs frees what was unlinked when
#: it next commits, XFS in the background.
_ROOM_SECONDS = 5.0

#: How often it is asked meanwhile, and how often all that was written is synced for it.
_POLL_SECONDS = 0.01
_SYNC_SECONDS = 0.5


def by_last_use(core: Core) -> list[DerivedCopy]:
    """All derived copies, the one that was not used for the longest time first."""
    found: list[DerivedCopy] = []
    with core.index.read() as reader:
        for key, body in reader.scan(Table.DERIVED):
            ordinal, entry = rows.split_derived_key(key)
            row = rows.decode_derived(body)
            used = core.derived_used.get((ordinal, entry)) or _noted_use(core, ordinal, entry)
            found.append(
                DerivedCopy(
                    ordinal, entry, row.size_bytes, row.physical_bytes, row.why, max(used, row.created)
                )
            )
    return sorted(found, key=lambda copy: copy.last_used)


def _noted_use(core: Core, ordinal: int, entry: int) -> float:
    try:
        return os.stat(core.layout.derived(ordinal, entry)).st_mtime
    except OSError:
        return 0.0


def note_use(core: Core) -> None:
    """Write down when copies were last opened, for the next process."""
    for key in list(core.derived_used):
        used = core.derived_used.pop(key, 0.0)
        with suppress(OSError):  # it has gone meanwhile
            if used:
                os.utime(core.layout.derived(*key), (used, used))


def unfinished_bytes(core: Core) -> int:
    """What the copies take that are being made."""
    with core.state:
        return sum(copy.bytes_written for copy in core.unfinished)


def make_room(core: Core, wanted_bytes: int, *, may_go: Callable[[DerivedCopy], bool] | None = None) -> int:
    """Drop copies that take space, the longest unused first, until so much has come back; how much has.
    Where that is not enough, those that are being made are given up.

    One that somebody has open stays: its space would come back only when it is closed. Copies for which
    ``may_go`` says no stay too.
    """
    before = free_bytes(core)
    waits = core.deriving.locked()
    with core.deriving:
        came = free_bytes(core) - before
        if waits and came >= wanted_bytes:  # who stood in front of us made room
            return came
        before += came
        freed = _drop(core, wanted_bytes, may_go)
        flagged = _make_way(core, wanted_bytes - freed, may_go)
        if not flagged:
            _await_room(core, before, freed)
    if flagged:  # without the lock, which whoever makes them may need first
        freed += _await_makers(core, flagged)
        _await_room(core, before, freed)
    return freed


def _drop(core: Core, wanted_bytes: int, may_go: Callable[[DerivedCopy], bool] | None) -> int:
    if derived.totals(core).physical_bytes == 0:
        return 0
    freed = 0
    dropped: list[derived.Key] = []
    for copy in by_last_use(core):
        if freed >= wanted_bytes:
            break
        if copy.physical_bytes == 0 or (may_go is not None and not may_go(copy)):
            continue
        key = copy.ordinal, copy.entry
        with suppress(OSError, CkptfsError):
            if not kernel.in_use(core.layout.derived(*key)):
                derived.unlink(core, key)
                freed += copy.physical_bytes
        dropped += [key] if not os.path.exists(core.layout.derived(*key)) else []
    # Not even a row may need room now. One that stays leads to no file, and a start deletes it.
    with suppress(CkptfsError):
        with core.transaction() as writer:
            gone = derived.forget(writer, dropped)
        derived.uncount(core, gone)
    return freed


def _make_way(
    core: Core, wanted_bytes: int, may_go: Callable[[DerivedCopy], bool] | None
) -> dict[NewCopy, int]:
    """Tell whoever makes copies to give them up, as many as are needed; what each takes."""
    told: dict[NewCopy, int] = {}
    with core.state:
        for copy in core.unfinished:
            taken = copy.bytes_written
            if sum(told.values()) >= wanted_bytes:
                break
            known = DerivedCopy(copy.ordinal, copy.entry, copy.size_bytes, taken, copy.why, time.time())
            if taken and (may_go is None or may_go(known)):
                copy.give_way()
                told[copy] = taken
    return told


def _await_makers(core: Core, told: dict[NewCopy, int]) -> int:
    """Until they have given up, which is at their next step; how much came back."""
    deadline = time.monotonic() + _ROOM_SECONDS
    while True:
        with core.state:
            left = [copy for copy in told if copy in core.unfinished]
        if not left or time.monotonic() >= deadline or core.closing.wait(_POLL_SECONDS):
            return sum(taken for copy, taken in told.items() if copy not in left)


def _await_room(core: Core, before: int, freed: int) -> None:
    """Until the file system shows at least half of it: others write meanwhile."""
    deadline = time.monotonic() + _ROOM_SECONDS
    synced = 0.0
    while freed and free_bytes(core) < before + freed // 2 and (now := time.monotonic()) < deadline:
        if now - synced >= _SYNC_SECONDS:
            fd = os.open(core.layout.derived_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                kernel.sync_filesystem(fd)
            finally:
                os.close(fd)
            synced = time.monotonic()
        if core.closing.wait(_POLL_SECONDS):
            return


def free_bytes(core: Core) -> int:
    status = os.statvfs(core.layout.root)
    return status.f_bavail * status.f_frsize
