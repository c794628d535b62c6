"""The Linux calls that Python's os module lacks: holes, space ahead of the end, early write-back."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_WRITE = 2  # linux/fs.h SYNC_FILE_RANGE_*
_WAIT_BEFORE_WRITE_AND_AFTER = 7

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole; the file keeps its size. Whole blocks go back to the file system, the rest reads zero."""
    _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def reserve(fd: int, offset: int, length: int) -> None:
    """Allocate disk space, past the end of the file too, without changing its size."""
    _fallocate(fd, _KEEP_SIZE, offset, length)


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to the disk now. Only ever a hint."""
    _libc.sync_file_range(fd, offset, length, _WRITE)


def wait_writeback(fd: int) -> None:
    """Write the whole file's dirty pages and wait. No promise of durability: fdatasync follows."""
    _libc.sync_file_range(fd, 0, 0, _WAIT_BEFORE_WRITE_AND_AFTER)
