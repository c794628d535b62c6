"""The control interface's listening socket, kept for the next worker.

A worker binds it and leaves a copy here, so whoever connects between two workers waits in the kernel's
queue instead of being refused. It is removed with the mount, at the stop.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ckptfsd.holder import wire

_PATH_BYTES = 107  # unix(7)


class HeldListener:
    """``path`` and ``inode`` (device, number) say which socket file is ours to remove."""

    def __init__(self) -> None:
        self.fd = -1
        self._path = ""
        self._inode: list[int] = []

    def take(self, path: str, inode: list[int], descriptors: list[int]) -> None:
        """Keep the first of the descriptors, which is taken out of the list. Raises ValueError."""
        if len(descriptors) != 1 or len(inode) != 2:
            raise ValueError("one descriptor and one inode are needed")
        if b"\0" in os.fsencode(path) or len(os.fsencode(path)) > _PATH_BYTES:
            raise ValueError("not a path of a socket")
        numbers = [wire.number(value) for value in inode]
        self._let_go()
        self.fd = descriptors.pop()
        self._path, self._inode = path, numbers

    def described(self) -> dict[str, Any]:
        return {"listener": {"path": self._path, "inode": self._inode}} if self.fd >= 0 else {}

    def remove(self) -> None:
        """Unlink the socket file, if it is still the one, and stop listening."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if [found.st_dev, found.st_ino] == self._inode:
                os.unlink(self._path)
        self._let_go()

    def _let_go(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
