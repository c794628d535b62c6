"""systemd's side of the holder: readiness, watchdog, and the store of descriptors (sd_notify(3)).

The worker gets none of the variables: a STOPPING=1 from a worker that is being replaced would make the
manager stop the unit. ckptfsd.notify does the same for a daemon without a holder, under trio.

Descriptors that are stored come back in $LISTEN_FDS when the unit is started again. FDPOLL=0, or the
manager drops the one of /dev/fuse at once. Before systemd 254 they survive a restart, not a stop.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import MutableMapping, Sequence

_FIRST_LISTEN_FD = 3


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
