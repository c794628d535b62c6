"""What the page cache has of a file, and how it forgets it."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_CACHESTAT = 451  # the same number on every architecture; Linux 6.5
_libc = ctypes.CDLL(None, use_errno=True)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BUFFER = bytearray(1 << 20)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def cached_bytes(path: Path) -> int:
    """How much of the file is in the page cache under this path: a mount's pages of it are its own, what lies
    below the mount is counted there. Raises OSError (ENOSYS) before Linux 6.5."""
    counts = _Counts()
    whole = _Range(0, 0)
    fd = os.open(path, os.O_RDONLY)
    try:
        done = _libc.syscall(_CACHESTAT, fd, ctypes.byref(whole), ctypes.byref(counts), 0)
    finally:
        os.close(fd)
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cachestat: {os.strerror(code)}", str(path))
    return int(counts.cached) * _PAGE_BYTES


def can_be_asked(directory: Path) -> bool:
    """Whether the kernel has cachestat(2)."""
    try:
        cached_bytes(directory)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def forget(path: Path) -> None:
    """Drop what the page cache has of this file, as seen through this path. Dirty pages are written first."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def warm(path: Path) -> None:
    """Bring the whole file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.readinto(_BUFFER):
            pass
