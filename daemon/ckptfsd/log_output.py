"""Standard error as a place for log lines that nobody waits for.

Whoever reads a log may have stopped: a terminal that was paused, a pipe, a service manager that hangs. A
daemon that waits for that stands still, and with it everybody who reads from its mount. So a line that there
is no room for is lost, and the next one says how many were. (A disk that does not take a line at once is
waited for, as by everybody.)

Standard library only, and light: the holder uses it too.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from functools import partial

_STDERR = 2


#: What a line says that stands for those that were lost; it has their number as ``lines``.
LOST = "lines of this log were lost, nobody read them"


class LogOutput:
    def __init__(self) -> None:
        self._lost = 0
        self._write = _writer()

    def put(self, line: bytes, note: Callable[[int], bytes]) -> None:
        """``note`` makes the line that says how many were lost before this one.

        Of a line over 4096 bytes (PIPE_BUF) a pipe that is nearly full may take the beginning only.
        """
        if self._lost and self._put(note(self._lost)):
            self._lost = 0
        if self._lost or not self._put(line):
            self._lost += 1

    def _put(self, line: bytes) -> bool:
        try:
            self._write(line)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a full disk under the log, a reader that has gone: nobody can be told
        return True


def _writer() -> Callable[[bytes], int]:
    try:
        mode = os.fstat(_STDERR).st_mode
        if stat.S_ISSOCK(mode):
            peer = socket.socket(fileno=os.dup(_STDERR))
            return lambda line: peer.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            # Opened anew: to set the flag on what is there would set it for all who share it.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return partial(os.write, os.open(f"/proc/self/fd/{_STDERR}", flags))
    except OSError:
        pass  # closed, or not ours to open
    return partial(os.write, _STDERR)
