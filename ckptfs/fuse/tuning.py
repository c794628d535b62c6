"""What the kernel must be told after mounting, because libfuse and pyfuse3 cannot say it in INIT.

- ``read_ahead_kb`` of the mount's backing device: the default of 128 KiB bounds every request to that.
- ``max_background`` of the connection: the default of 12 lets twelve slow reads stop the readahead of
  every other file. The file lies in fusectl; where that is not mounted we look at it through a mount
  that is attached nowhere (fsopen(2), fsmount(2)), so nothing is left behind.

Both need root. Without it the mount works, slower; each function answers with a note that says so.
"""

from __future__ import annotations

import ctypes
import os

from ckptfs.fuse.mountinfo import Mounted

_FUSECTL = "/sys/fs/fuse/connections"

# linux/mount.h and the syscall table; these numbers are the same on every architecture.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6

_libc = ctypes.CDLL(None, use_errno=True)


def raise_read_ahead(mounted: Mounted, kib: int) -> str:
    path = f"/sys/class/bdi/{mounted.device}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as knob:
            knob.write(str(kib))
    except OSError as error:
        return (
            f"readahead stays at the kernel's 128 KiB, so reads are several times slower "
            f"({path}: {error.strerror})"
        )
    return ""


def raise_max_background(mounted: Mounted, requests: int) -> str:
    try:
        directory = _open_fusectl()
        try:
            # The congestion threshold only matters to writeback; the kernel wants it below the maximum.
            for name, value in (("max_background", requests), ("congestion_threshold", requests * 3 // 4)):
                fd = os.open(f"{mounted.minor}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
                try:
                    os.write(fd, str(value).encode())
                finally:
                    os.close(fd)
        finally:
            os.close(directory)
    except OSError as error:
        return f"a dozen slow reads can hold up the readahead of other files (fusectl: {error.strerror})"
    return ""


def _open_fusectl() -> int:
    if os.path.ismount(_FUSECTL):
        return os.open(_FUSECTL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    context = _syscall(_SYS_FSOPEN, ctypes.c_char_p(b"fusectl"), ctypes.c_uint(_FSOPEN_CLOEXEC))
    try:
        none = ctypes.c_void_p(None)
        create = ctypes.c_uint(_FSCONFIG_CMD_CREATE)
        _syscall(_SYS_FSCONFIG, ctypes.c_int(context), create, none, none, ctypes.c_int(0))
        return _syscall(
            _SYS_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(0)
        )
    finally:
        os.close(context)


def _syscall(number: int, *args: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
