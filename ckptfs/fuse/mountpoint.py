"""Is a directory fit to be mounted on? Every refusal says what is there and what to do."""

from __future__ import annotations

import errno
import os
import shlex
from functools import partial

import structlog
import trio

from ckptfs.errors import MountError
from ckptfs.fuse.kernel_mount import detach
from ckptfs.fuse.mountinfo import Mounted, at, settled_path

log = structlog.get_logger(__name__)

FSTYPE = "fuse.ckptfs"

# A live daemon answers stat of its root within milliseconds; one that is stopped never does.
_ANSWER_SECONDS = 3.0


async def prepare(path: str) -> tuple[str, str]:
    """Make sure that ``path`` is an empty directory on which nothing is mounted.

    A mount of ckptfs whose daemon is dead is taken away first. Answers the settled path and a note
    about what was done (empty: nothing). Raises :class:`MountError`.
    """
    _check_device()
    path = await trio.to_thread.run_sync(settled_path, path)
    note = ""
    while (mounted := at(path)) is not None:
        if mounted.fstype != FSTYPE:
            raise MountError(
                f"{path} is a mountpoint already ({mounted.source}, {mounted.fstype}); "
                "unmount that or choose another --mount"
            )
        await _clear_if_dead(path, mounted)
        note = f"a dead ckptfs mount was cleared from {path}"
        log.warning("a dead mount was cleared", mount=path, device=mounted.device)
    await trio.to_thread.run_sync(_check_directory, path)
    return path, note


async def _clear_if_dead(path: str, mounted: Mounted) -> None:
    alive: bool | None = None
    with trio.move_on_after(_ANSWER_SECONDS):
        alive = await trio.to_thread.run_sync(partial(_answers, path), abandon_on_cancel=True)
    if alive is None:
        raise MountError(
            f"{path} is a mount of a ckptfsd that does not answer; "
            f"stop that daemon, or abort its connection ({mounted.minor} in /sys/fs/fuse/connections) "
            f"and umount -l {path}"
        )
    if alive:
        raise MountError(f"{path} is the mount of another ckptfsd; stop that one or choose another --mount")
    try:
        await trio.to_thread.run_sync(partial(detach, path, lazy=True))
    except OSError as error:
        raise MountError(
            f"{path} holds the mount of a dead ckptfsd, and it cannot be unmounted "
            f"({error.strerror}): umount -l {path}"
        ) from error


def _answers(path: str) -> bool:
    try:
        # Not stat: the kernel answers that from its cache for as long as it keeps attributes, which is
        # very long here, whether anybody lives at the other end or not.
        os.statvfs(path)
    except OSError as error:
        # Of a mount whose daemon is gone: "Transport endpoint is not connected"; of an aborted one
        # ECONNABORTED. EACCES comes from a live mount of another user.
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


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
