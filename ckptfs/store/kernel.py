"""The Linux calls that Python's os module lacks: holes, space ahead of the end, early write-back, shared
blocks, who has a file open."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct

_KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_WRITE = 2  # linux/fs.h SYNC_FILE_RANGE_*
_WAIT_BEFORE_WRITE_AND_AFTER = 7
_FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000
_FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
_CLONE_RANGE = struct.Struct("=qQQQ")  # source fd, its offset, length, offset in the target

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


def sync_filesystem(fd: int) -> None:
    """Have the file system write out and finish what it has begun, freeing unlinked files among it."""
    _libc.syncfs(fd)


def clone(source: int, offset: int, length: int, target: int, target_offset: int) -> None:
    """Let a range of the target share the blocks of one of the source (ioctl_ficlonerange(2)).

    Offsets are multiples of the file system's block size; so is the length, unless both files end with the
    ranges. OSError with EOPNOTSUPP, ENOTTY, EXDEV or EINVAL where that cannot be.
    """
    fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, offset, length, target_offset))


def write_in_place(path: str) -> bool:
    """Have a file system that would write changed blocks elsewhere (btrfs) write them in place: of an empty
    file, or of whatever is made in a folder (chattr +C). False where it knows nothing of that.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = bytearray(struct.calcsize("l"))
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, before)
        flags = struct.unpack("l", before)[0]
        if not flags & _FS_NOCOW_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_NOCOW_FL))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def in_use(path: str) -> bool:
    """Whether anybody has a file open or mapped, in this process or through the kernel. OSError where it
    cannot be opened.

    A write lease is given only for a file that nobody else has open (fcntl(2), "Leases"); it is
    given back at once. An open in between makes the kernel signal us: SIGURG is ignored unless
    asked for, SIGIO would end the process.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        # EINVAL: a file system without leases, and such cannot be read past the daemon either.
        return error.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False
