"""systemd's side of the holder: readiness, watchdog, and the store of descriptors (sd_notify(3)).

The worker gets none of the variables: a STOPPING=1 from a worker that is being replaced would make the
manager stop the unit. ckptfsd.notify does the same for a daemon without a holder, under trio.

Descriptors that are stored come back in $LISTEN_FDS when the unit is started again. FDPOLL=0, or the
manager drops the one of /dev/fuse at once. Before systemd 254 they survive a restart, not a stop. Which of
the two a SIGTERM means, the manager's queue of jobs says: `restart` while the stop of a restart runs.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
from collections.abc import MutableMapping, Sequence

_FIRST_LISTEN_FD = 3

# The manager answers in a few milliseconds, if it does.
_JOBS_SECONDS = 3.0


class Manager:
    """The service manager, where there is one. Takes its variables out of the environment."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        pid = environ.pop("WATCHDOG_PID", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        self.watchdog_seconds = 0.0
        if microseconds.isdecimal() and pid in ("", str(os.getpid())):
            self.watchdog_seconds = int(microseconds) / 1e6
        self.stored = _listen_fds(environ)

    @property
    def present(self) -> bool:
        return bool(self._address)

    def say(self, **values: str | int) -> None:
        self._send(values, ())

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor for the next start, under a name. One more of the same name is one more."""
        self._send({"FDSTORE": 1, "FDPOLL": 0, "FDNAME": name}, (fd,))

    def forget(self, *names: str) -> None:
        for name in names:
            self._send({"FDSTOREREMOVE": 1, "FDNAME": name}, ())

    def restarts_us(self) -> bool:
        """Is this stop one half of a restart? Then the connection is left for the other half."""
        unit = _own_unit()
        if not self._address or not unit:
            return False
        for line in _list_jobs().splitlines():
            fields = line.split()
            if len(fields) >= 3 and fields[1] == unit:
                return fields[2] in ("restart", "try-restart")
        return False

    def _send(self, values: dict[str, str | int], descriptors: Sequence[int]) -> None:
        """Never waits and never fails: a manager that has gone must not take the mount with it."""
        if not self._address:
            return
        message = "".join(f"{key}={str(value).replace(chr(10), ' ')}\n" for key, value in values.items())
        ancillary = []
        if descriptors:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer,
        ):
            peer.setblocking(False)
            peer.connect(address)
            peer.sendmsg([message.encode(errors="backslashreplace")], ancillary)


def _listen_fds(environ: MutableMapping[str, str]) -> dict[str, int]:
    """name -> descriptor, of what the manager kept for us; of several with a name the last."""
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    for at in range(int(count)):
        fd = _FIRST_LISTEN_FD + at
        name = names[at] if at < len(names) else ""
        if name in found:
            os.close(found[name])
        os.set_inheritable(fd, False)
        found[name] = fd
    return found


def _own_unit() -> str:
    """The name of the unit that this process belongs to, by its control group."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as groups:
        for line in groups:
            name = line.rstrip("\n").rsplit("/", 1)[-1]
            if name.endswith(".service"):
                return name
    return ""


def _list_jobs() -> str:
    """What systemctl list-jobs prints; nothing where it cannot be run or takes too long."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    found = b""
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        argv = ["systemctl", "list-jobs", "--no-legend", "--plain", "--full", "--no-pager"]
        pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
    except OSError:
        os.close(theirs)
        os.close(ours)
        return ""
    os.close(theirs)
    poller = select.poll()
    poller.register(ours, select.POLLIN)
    while poller.poll(_JOBS_SECONDS * 1000) and (part := os.read(ours, 65536)):
        found += part
    os.close(ours)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return found.decode(errors="replace")
