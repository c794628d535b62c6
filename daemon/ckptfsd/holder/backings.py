"""The backing files that the holder registers for its workers, which need no CAP_SYS_ADMIN then.

It knows which ids are registered, so that what a dead worker had registered and not written down is
freed when its successor says what is in use.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Sequence

from ckptfs.fuse import device


class BackingFiles:
    def __init__(self) -> None:
        self._registered: set[int] = set()
        self._kept: set[int] = set()

    def __len__(self) -> int:
        return len(self._registered)

    def register(self, fd: int, descriptors: Sequence[int]) -> int:
        """``fd`` is of /dev/fuse. Raises OSError."""
        if len(descriptors) != 1:
            raise OSError(errno.EBADF, "one descriptor is needed")
        backing = device.backing_open(fd, descriptors[0])
        self._registered.add(backing)
        return backing

    def free(self, fd: int, backing: int) -> None:
        """Nothing happens to what is not registered."""
        if backing not in self._registered:
            return
        self._registered.remove(backing)
        with contextlib.suppress(OSError):
            device.backing_close(fd, backing)

    def keep(self, fd: int, backings: Iterable[int], *, more: bool) -> int:
        """These are in use; after the last of several messages (``more`` false) the others are freed.
        Answers how many."""
        self._kept.update(backings)
        if more:
            return 0
        stray = self._registered - self._kept
        for backing in stray:
            self.free(fd, backing)
        self._registered, self._kept = self._kept, set()
        return len(stray)

    def begin(self) -> None:
        """Another worker is going to say what is in use: forget what the one before had said in part."""
        self._kept.clear()

    def clear(self) -> None:
        """The connection ended, and they with it."""
        self._registered.clear()
        self._kept.clear()
