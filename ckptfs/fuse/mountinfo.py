"""What the kernel says is mounted, read without touching any mount (proc_pid_mountinfo(5)).

Asking a path itself (stat, statvfs) would go through the mount: a dead one answers ENOTCONN, a hung
one never, and our own one would make the daemon wait for itself.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mounted(NamedTuple):
    """One mount. ``device`` is "major:minor", as the directories of /sys/class/bdi are called."""

    mount_id: int
    device: str
    mountpoint: str
    fstype: str
    source: str

    @property
    def minor(self) -> int:
        """The number of the FUSE connection in /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


def mounts() -> list[Mounted]:
    """All mounts of this mount namespace; of several on one path the last is the one that is seen."""
    found = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            before, _, after = line.partition(b" - ")
            fields, kinds = before.split(), after.split()
            if len(fields) < 6 or len(kinds) < 2:
                continue
            found.append(
                Mounted(
                    mount_id=int(fields[0]),
                    device=fields[2].decode(),
                    mountpoint=_text(fields[4]),
                    fstype=_text(kinds[0]),
                    source=_text(kinds[1]),
                )
            )
    return found


def at(path: str) -> Mounted | None:
    """What is mounted exactly at ``path`` (absolute, without symbolic links), the topmost of several."""
    return next((m for m in reversed(mounts()) if m.mountpoint == path), None)


def settled_path(path: str) -> str:
    """``path`` absolute and without symbolic links, without a look at what is mounted there.

    Its last component is resolved only where nothing is mounted on it.
    """
    absolute = os.path.abspath(path)
    head, tail = os.path.split(absolute)
    resolved = os.path.join(os.path.realpath(head), tail) if tail else absolute
    return resolved if at(resolved) else os.path.realpath(resolved)


def _text(field: bytes) -> str:
    """Blanks, newlines and backslashes are written as three octal digits."""
    return os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), field))
