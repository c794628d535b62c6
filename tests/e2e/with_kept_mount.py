"""Run a command as systemd does after a restart: with the connection that the unit had before.

``with_kept_mount.py MOUNTPOINT STORE COMMAND...``
"""

from __future__ import annotations

import fcntl
import json
import os
import sys

from ckptfs.fuse import connection

_FIRST = 3  # SD_LISTEN_FDS_START


def main() -> None:
    held = connection.connect(sys.argv[1])._replace(shows=os.path.realpath(sys.argv[2]))
    facts = json.dumps(held.described()).encode()
    described = connection.memory(len(facts))
    os.pwrite(described, facts, 0)
    kept = {"ckptfs-device": held.fuse_fd, "ckptfs-facts": described, "ckptfs-modes": held.modes_fd}
    # First away from where one would be put upon another.
    away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(kept)) for fd in kept.values()]
    for fd in kept.values():
        os.close(fd)
    for number, fd in enumerate(away, _FIRST):
        os.dup2(fd, number)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(kept))
    os.environ["LISTEN_FDNAMES"] = ":".join(kept)
    os.execv(sys.argv[3], sys.argv[3:])


main()
