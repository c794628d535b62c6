"""The connection that the holder holds, and what the service manager keeps of it over a restart."""

from __future__ import annotations

import json
import os
from typing import Any

from ckptfs.fuse import connection, mountinfo
from ckptfs.fuse.connection import Connection
from ckptfs.fuse.mountpoint import FSTYPE
from ckptfsd.holder import wire
from ckptfsd.holder.options import Options
from ckptfsd.holder.systemd import Manager

# Names in the service manager's store of descriptors.
_DEVICE, _FACTS, _MODES = "ckptfs-device", "ckptfs-facts", "ckptfs-modes"


def make(options: Options) -> Connection:
    """Mount. What is dead at the path is cleared first. Raises MountError."""
    made = connection.connect(
        options.mount,
        connection.Terms(
            allow_other=options.allow_other,
            read_ahead_kib=options.read_ahead_kib,
            max_background=options.max_background,
            passthrough=options.passthrough,
            max_stack_depth=options.max_stack_depth,
            resend=options.resend,
        ),
    )
    return made._replace(shows=options.store)


def adopt(options: Options, stored: dict[str, int]) -> Connection | None:
    """The connection that the service manager kept, if it is that of the mount and the store that we are
    told, and alive."""
    found = _stored(stored)
    if found is None or found.mount != mountinfo.settled_path(options.mount) or found.lost():
        return None
    if found.shows != options.store:
        return None
    return found._replace(passthrough=options.passthrough, resend=found.offered.has_resend and options.resend)


def end_kept(manager: Manager) -> str:
    """Take away the mount that the service manager kept and nobody goes on with: its readers would wait for
    as long as the manager holds it. Answers what there is to say."""
    found, note = _stored(manager.stored), ""
    if found is not None:
        reason = found.lost() or "it is not what is wanted now"
        note = f"the mount at {found.mount}, kept from before, is taken away: {reason}"
        if failed := found.unmount():
            note = f"{note}; {failed}"
    manager.forget(_DEVICE, _FACTS, _MODES)
    wire.close_all(list(manager.stored.values()))
    manager.stored.clear()
    return note


def _stored(stored: dict[str, int]) -> Connection | None:
    """What the service manager kept, if it is still mounted."""
    if not {_DEVICE, _FACTS, _MODES} <= stored.keys():
        return None
    try:
        facts: dict[str, Any] = json.loads(os.pread(stored[_FACTS], 65536, 0))
        found = connection.from_description(facts, stored[_DEVICE], stored[_MODES])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    mounted = next((m for m in mountinfo.mounts() if m.device == found.device), None)
    if mounted is None or mounted.fstype != FSTYPE or mounted.mountpoint != found.mount:
        return None
    return found


def keep(kept: Connection, manager: Manager) -> None:
    """Have the service manager keep the connection over a restart of the holder."""
    if not manager.present:
        return
    manager.forget(_DEVICE, _FACTS, _MODES)
    facts = json.dumps(kept.described()).encode()
    fd = connection.memory(len(facts))
    os.pwrite(fd, facts, 0)
    for name, descriptor in ((_DEVICE, kept.fuse_fd), (_FACTS, fd), (_MODES, kept.modes_fd)):
        manager.store(name, descriptor)
    os.close(fd)


def close(held: Connection, manager: Manager) -> None:
    """Let go of the connection: it ends when no worker has it either."""
    manager.forget(_DEVICE, _FACTS, _MODES)
    held.close()
