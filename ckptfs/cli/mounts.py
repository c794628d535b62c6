"""The system calls of a mount namespace, which Python 3.11 has no names for.

Numbers and flags are the kernel's (include/uapi/linux/{mount,sched}.h; 428 and 429 are the same on
every architecture). A failure is a MountError that says what was tried.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckptfs.errors import MountError

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 32, 4096, 16384, 1 << 19
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    mount_id: int
    device: tuple[int, int]
    point: bytes
    kind: str


def own_namespace() -> None:
    """Put this process, which must have one thread, into a mount namespace of its own.

    With the right to (root) nothing else changes. Without, a user namespace that maps only this user
    gives the right; the command that is executed later has no more rights than before. Mounts made here
    stay here; those that the host makes later still arrive.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        _user_namespace()
    _mount(None, b"/", None, _MS_REC | _MS_SLAVE, None, "keep mounts inside the job")


def _user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        raise _forbidden(ctypes.get_errno())
    try:
        for path, text in (
            ("/proc/self/setgroups", b"deny"),
            ("/proc/self/uid_map", b"%d %d 1" % (uid, uid)),
            ("/proc/self/gid_map", b"%d %d 1" % (gid, gid)),
        ):
            with open(path, "wb", buffering=0) as file:
                file.write(text)
    except OSError as error:
        raise _forbidden(error.errno or errno.EPERM) from error


def _forbidden(number: int) -> MountError:
    return MountError(
        f"this system does not let user {os.geteuid()} make a mount namespace ({os.strerror(number)}):"
        " use root, or have user namespaces allowed (sysctl user.max_user_namespaces,"
        " kernel.apparmor_restrict_unprivileged_userns), or use `ckptfs attach` instead"
    )


def clone(path: bytes, *, at: int = _AT_FDCWD, recursive: bool = False) -> int:
    """A descriptor of a detached copy of what is mounted at ``path``, from there downwards.

    ``at``: a directory's descriptor that a relative path starts from.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    descriptor: int = _libc.syscall(_SYS_OPEN_TREE, at, path, flags)
    if descriptor < 0:
        raise _failed("take the mount at", path)
    return descriptor


def place(descriptor: int, path: bytes) -> None:
    """Mount a detached copy at ``path`` and close its descriptor."""
    result = _libc.syscall(_SYS_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)
    failure = _failed("mount a checkpoint at", path) if result != 0 else None
    os.close(descriptor)
    if failure is not None:
        raise failure


def small_tmpfs(path: bytes) -> None:
    """An empty file system for a few directories; fill it, then :func:`make_read_only`."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(b"ckptfs", path, b"tmpfs", flags, b"size=1m,mode=0755", "make a directory of mounts at")


def make_read_only(path: bytes) -> None:
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(None, path, None, flags, None, "make read-only")


def cover(mount: Mount) -> None:
    """Put nothing where something is: the job cannot get beneath it."""
    try:
        if is_directory(mount.point):
            small_tmpfs(mount.point)
            make_read_only(mount.point)
        else:
            place(clone(b"/dev/null"), mount.point)
    except MountError:
        if _is_on_top(mount):
            raise
        # It has gone meanwhile: somebody else's daemon has stopped.


def is_directory(path: bytes) -> bool:
    """Told by the kernel alone (O_PATH): stat would ask the mount's server, which may hang or be dead."""
    try:
        os.close(os.open(path, os.O_PATH | os.O_DIRECTORY))
    except OSError:
        return False
    return True


def visible(wanted: Callable[[Mount], bool]) -> Iterator[Mount]:
    """Those of the wanted mounts that a path of this namespace leads to, each as it is when its turn
    comes. Others are not touched: some may hang (a dead NFS server)."""
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = [_parse(line) for line in file]
    for mount in mounts:
        if wanted(mount) and _is_on_top(mount):
            yield mount


def _parse(line: bytes) -> Mount:
    fields = line.split()
    major, minor = fields[2].split(b":")
    kind = fields[fields.index(b"-") + 1]
    return Mount(
        int(fields[0]), (int(major), int(minor)), _unescape(fields[4]), kind.decode(errors="replace")
    )


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _is_on_top(mount: Mount) -> bool:
    try:
        descriptor = os.open(mount.point, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False  # no path leads there
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
            return any(line.split() == [b"mnt_id:", str(mount.mount_id).encode()] for line in file)
    finally:
        os.close(descriptor)


def _mount(
    source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None, what: str
) -> None:
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), data) != 0:
        raise _failed(what, target)


def _failed(what: str, path: bytes) -> MountError:
    number = ctypes.get_errno()
    return MountError(f"cannot {what} {os.fsdecode(path)}: {os.strerror(number)}", number=number)
