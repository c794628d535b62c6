"""The kernel's files of each FUSE connection (/sys/fs/fuse/connections), also where fusectl is not mounted:
then they are looked at through a mount that is attached nowhere (fsopen(2), fsmount(2)), so nothing is left
behind."""

from __future__ import annotations

import ctypes
import os

_FUSECTL = "/sys/fs/fuse/connections"

# linux/mount.h and the syscall table; these numbers are the same on every architecture.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6

_libc = ctypes.CDLL(None, use_errno=True)


def read(connection: int, name: str) -> bytes:
    """A file of the connection with that number (the minor number of its mount's device). Raises OSError."""
    fd = _open(connection, name, os.O_RDONLY)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def abort(connection: int) -> None:
    """End the connection, as an administrator would: whoever waits gets ECONNABORTED. Raises OSError."""
    fd = _open(connection, "abort", os.O_WRONLY)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _open(connection: int, name: str, flags: int) -> int:
    directory = _open_fusectl()
    try:
        return os.open(f"{connection}/{name}", flags | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


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
