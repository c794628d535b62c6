"""systemd's readiness protocol (sd_notify(3)): a datagram of ``KEY=value`` lines to $NOTIFY_SOCKET.

By hand, because that is all it is, and because the descriptor store that comes later needs it so.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import trio


class Notifier:
    """Tells the service manager how the daemon is; does nothing where there is none.

    The variables are taken out of the environment, so that no child can speak in our name.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        pid = environ.pop("WATCHDOG_PID", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        #: How often the manager wants to hear from us at least; None: not at all.
        self.watchdog_seconds: float | None = None
        if microseconds.isdecimal() and int(microseconds) and pid in ("", str(os.getpid())):
            self.watchdog_seconds = int(microseconds) / 1e6

    def send(self, **values: str | int) -> bool:
        """Send e.g. ``READY=1``. False if nobody is there to hear it: a manager that has gone must not
        take the daemon with it."""
        if not self._address:
            return False
        message = "".join(f"{key}={str(value).replace(chr(10), ' ')}\n" for key, value in values.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
                peer.setblocking(False)  # a stuck manager must not stop the event loop
                peer.connect(address)
                peer.send(message.encode(errors="backslashreplace"))
        except OSError:
            return False
        return True

    async def watchdog(self) -> None:
        """Say that we are alive, from the event loop, at a third of the interval: a loop that hangs
        stops saying it, and two missed turns are forgiven."""
        if self.watchdog_seconds is None:
            return
        while True:
            self.send(WATCHDOG=1)
            await trio.sleep(self.watchdog_seconds / 3)
