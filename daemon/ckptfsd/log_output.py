"""Standard error as a place for log lines that nobody waits for.

Whoever reads a log may have stopped: a terminal that was paused, a pipe, a service manager that hangs. A
daemon that waits for that stands still, and with it everybody who reads from its mount. So a line that there
is no room for is lost, and the next one says how many were. (A disk that does not take a line at once is
waited for, as by everybody.)

Standard library only, and light: the holder uses it too.
"""

from __future__ import annotations

import os
import select
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
        self._cut_off = False
        self._write = _writer()

    def put(self, line: bytes, note: Callable[[int], bytes]) -> None:
        """``note`` makes the line that says how many were lost before this one."""
        if self._lost and self._put(note(self._lost)):
            self._lost = 0
        if self._lost or not self._put(line):
            self._lost += 1

    def _put(self, line: bytes) -> bool:
        """False if there was no room. Half a line (a pipe takes no more than 4096 bytes as a whole) is none:
        the next one begins on a line of its own."""
        line = b"\n" + line if self._cut_off else line
        try:
            written = self._write(line)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a full disk under the log, a reader that has gone: nobody can be told
        self._cut_off = written < len(line)
        return not self._cut_off


def say(line: str) -> None:
    """One line without a log: of a process that is about to end."""
    LogOutput().put(line.encode(errors="backslashreplace") + b"\n", lambda _lost: b"")


def _writer() -> Callable[[bytes], int]:
    try:
        mode = os.fstat(_STDERR).st_mode
    except OSError:
        return len  # closed
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(_STDERR))
        return lambda line: peer.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        return partial(os.write, _STDERR)
    # Opened anew: to set the flag on what is there would set it for all who share it.
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return partial(os.write, os.open(f"/proc/self/fd/{_STDERR}", flags))
    except OSError:
        return _if_ready  # somebody else's


def _if_ready(line: bytes) -> int:
    """What is ready takes PIPE_BUF bytes without waiting, if nobody else writes this very moment."""
    if not select.select((), (_STDERR,), (), 0)[1]:
        raise BlockingIOError
    return os.write(_STDERR, line[: select.PIPE_BUF])
