"""One daemon per store: an flock that the kernel drops when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os

from ckptfs.errors import StoreLocked
from ckptfs.store import failure


class StoreLock:
    """Held from construction to :meth:`release`. The pid in the file is for people only."""

    def __init__(self, path: str) -> None:
        with failure.mapped(f"opening {path}"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreLocked(
                    f"{os.path.dirname(path)} is in use by another process"
                    + (f" (pid {holder})" if holder else "")
                    + ": stop it, or give this daemon a store of its own"
                ) from error
            raise failure.of(error, f"locking {path}") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
