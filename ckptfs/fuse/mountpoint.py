"""Is a directory fit to be mounted on? Every refusal says what is there and what to do.

Nothing here looks at a path through a mount without a way out: a dead mount answers at once, but one whose
worker hangs never does. So that question is asked by a child process, which can be killed.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal

from ckptfs.errors import MountError
from ckptfs.fuse.kernel_mount import detach
from ckptfs.fuse.mountinfo import Mounted, at, settled_path

FSTYPE = "fuse.ckptfs"

# A live daemon answers within milliseconds, a dead mount at once; a stopped daemon never does.
_ANSWER_SECONDS = 3.0

# What a mount answers whose daemon is gone: not connected, or aborted.
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def prepare(path: str) -> tuple[str, str]:
    """Make sure that ``path`` is an empty directory on which nothing is mounted.

    A mount of ckptfs whose daemon is dead is taken away first. Answers the settled path and a note
    about what was done (empty: nothing). Raises :class:`MountError`.
    """
    _check_device()
    path = settled_path(path)
    note = ""
    while (mounted := at(path)) is not None:
        if mounted.fstype != FSTYPE:
            raise MountError(
                f"{path} is a mountpoint already ({mounted.source}, {mounted.fstype}); "
                "unmount that or choose another --mount"
            )
        _clear_if_dead(path, mounted)
        note = f"a dead ckptfs mount was cleared from {path}"
    _check_directory(path)
    return path, note


def _clear_if_dead(path: str, mounted: Mounted) -> None:
    answer = _ask(path)
    if answer is None:
        raise MountError(
            f"{path} is a mount of a ckptfsd that does not answer; stop that daemon, or abort its "
            f"connection: echo 1 > /sys/fs/fuse/connections/{mounted.minor}/abort; "
            f"umount -l {shlex.quote(path)}"
        )
    if answer not in _DEAD:  # EACCES comes from a live mount of another user
        raise MountError(f"{path} is the mount of another ckptfsd; stop that one or choose another --mount")
    try:
        detach(path, lazy=True)
    except OSError as error:
        raise MountError(
            f"{path} holds the mount of a dead ckptfsd, and it cannot be unmounted "
            f"({error.strerror}): umount -l {shlex.quote(path)}"
        ) from error


def _ask(path: str) -> int | None:
    """The errno of a statfs of ``path`` (0: none); None when it does not come back. Not stat: the kernel
    may answer that from what it remembers, also of a dead mount."""
    child = os.fork()
    if child == 0:
        try:
            os.statvfs(path)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(errno.EIO)
    pidfd = os.pidfd_open(child)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        answered = bool(poller.poll(_ANSWER_SECONDS * 1000))
        if not answered:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(status) if answered else None


def _check_device() -> None:
    if not os.path.exists("/dev/fuse"):
        raise MountError("there is no /dev/fuse: load the module (modprobe fuse), or pass the device in")


def _check_directory(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            first = next(entries, None)
    except FileNotFoundError as error:
        # Not made: what is missing may be a disk that should be mounted there, or a slip of the pen.
        raise MountError(
            f"the mountpoint {path} does not exist; make it (mkdir -p {shlex.quote(path)}) "
            "or choose another --mount"
        ) from error
    except NotADirectoryError as error:
        raise MountError(f"the mountpoint {path} is not a directory") from error
    except OSError as error:
        raise MountError(
            f"the mountpoint {path} cannot be used ({error.strerror}); "
            "make it, or choose another with --mount"
        ) from error
    if first is not None:
        raise MountError(
            f"the mountpoint {path} is not empty (it holds {first.name!r}); "
            "empty it or choose another --mount: a mount would hide what is there"
        )
