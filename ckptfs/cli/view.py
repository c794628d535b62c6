"""A job's own view: its checkpoints, and only these, where jobs look for them.

Made in the job's mount namespace, out of copies of what the daemon has mounted:

1. the daemon's mount is kept open, so that it stays within our reach;
2. the places where jobs look are made, where they are missing;
3. every ckptfs mount that this namespace can see is covered, wherever it is. Covered, not unmounted:
   when the daemon comes back with a new mount, the kernel puts that beneath the cover too;
4. copies of the checkpoints' directories are put in place: one checkpoint flat, several in a
   directory of mounts by name.

Nothing of it touches the host: mounts of the namespace end with its last process.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ckptfs.cli import mounts
from ckptfs.errors import MountError
from ckptfs.model.places import JOB_PATH, JOB_PATH_ALIAS, PATH_VARIABLE, PATH_VARIABLE_ALIAS
from ckptfs.model.records import JobCheckpoint

PLACE, SECOND_PLACE = JOB_PATH, JOB_PATH_ALIAS

ENVIRONMENT = {PATH_VARIABLE: PLACE, PATH_VARIABLE_ALIAS: SECOND_PLACE}

_MOUNT_TYPE = "fuse.ckptfs"

_PATIENCE_SECONDS = 2.0  # a thousand times what the daemon needs
_PATIENCE_STEP_SECONDS = 0.005

T = TypeVar("T")


def enter(checkpoints: Sequence[JobCheckpoint]) -> None:
    """Put this process into a namespace with the view. It must have one thread."""
    directory = _working_directory()
    mounts.own_namespace()
    shown = [_Shown(c) for c in checkpoints]
    for path in (PLACE, SECOND_PLACE):
        _make_place(path)
    devices = {s.device for s in shown}
    for mount in mounts.visible(lambda m: m.kind == _MOUNT_TYPE or m.device in devices):
        mounts.cover(mount)
    if len(shown) == 1:
        shown[0].place(PLACE)
        shown[0].place(SECOND_PLACE)
    else:
        _directory_of_mounts(shown)
        mounts.place(mounts.clone(os.fsencode(PLACE), recursive=True), os.fsencode(SECOND_PLACE))
    for one in shown:
        one.close()
    _return_to(directory)


class _Shown:
    """A checkpoint's directory on the daemon's mount, still within reach when that is covered."""

    def __init__(self, checkpoint: JobCheckpoint) -> None:
        self.name = checkpoint.name
        parent, self._entry = os.path.split(os.fsencode(checkpoint.source))
        try:
            found = _patiently(lambda: os.stat(checkpoint.source))
            self._parent = os.open(parent, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise MountError(
                f"{self.name} is not to be seen at {checkpoint.source} ({error.strerror}):"
                " is the daemon's mount visible here? Inside another job's view it is not"
            ) from error
        self.device = (os.major(found.st_dev), os.minor(found.st_dev))

    def place(self, path: str) -> None:
        def copy_and_place() -> None:
            mounts.place(mounts.clone(self._entry, at=self._parent), os.fsencode(path))

        _patiently(copy_and_place)

    def close(self) -> None:
        os.close(self._parent)


def _patiently(step: Callable[[], T]) -> T:
    """Make a step, again where something is not there or not allowed, for a moment.

    The daemon tells the kernel of a name that came or went a moment after it has answered us. Until
    then the name can be missing, or its directory entry be one that the kernel is about to drop, and
    on such a one nothing can be mounted (ENOENT). And the root of a mount made by fusermount3 has no
    permissions until its attributes are first read; when they are invalidated in the midst of that,
    the kernel ignores the answer and says EACCES.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return step()
        except (OSError, MountError) as error:
            number = error.errno if isinstance(error, OSError) else error.data.get("number")
            if number not in (errno.ENOENT, errno.EACCES) or time.monotonic() > deadline:
                raise
        time.sleep(_PATIENCE_STEP_SECONDS)


def _directory_of_mounts(shown: list[_Shown]) -> None:
    place = os.fsencode(PLACE)
    mounts.small_tmpfs(place)
    for one in shown:
        directory = os.path.join(PLACE, one.name)
        os.mkdir(directory)
        one.place(directory)
    mounts.make_read_only(place)


def _make_place(path: str) -> None:
    """See that there is a directory to mount on.

    Where it can, it is simply made. Where not (no permission, a read-only root), the nearest directory
    above it is replaced, in this namespace, by one that has the same content and the missing path.
    """
    if mounts.is_directory(os.fsencode(path)):
        return
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        above = os.path.dirname(path)
        while not os.path.isdir(above):
            above = os.path.dirname(above)
        if above == "/":
            raise MountError(
                f"{path} is missing and cannot be made here ({error.strerror}): mkdir -p {path} as root, once"
            ) from error
        _imitate(above, path)


def _imitate(directory: str, path: str) -> None:
    """Replace ``directory`` by a small file system with the same children, and ``path`` below it."""
    copies: list[tuple[os.DirEntry[str], int]] = []
    links: list[tuple[str, str]] = []
    for entry in os.scandir(directory):
        if entry.is_symlink():
            links.append((entry.name, os.readlink(entry.path)))
        else:
            copies.append((entry, mounts.clone(os.fsencode(entry.path), recursive=True)))
    mounts.small_tmpfs(os.fsencode(directory))
    for name, target in links:
        os.symlink(target, os.path.join(directory, name))
    for entry, copy in copies:
        child = os.path.join(directory, entry.name)
        if stat.S_ISDIR(os.fstat(copy).st_mode):
            os.mkdir(child)
        else:
            os.close(os.open(child, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
        mounts.place(copy, os.fsencode(child))
    os.makedirs(path, mode=0o755, exist_ok=True)
    mounts.make_read_only(os.fsencode(directory))


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _return_to(directory: str) -> None:
    """Find the working directory again by its path: the old one may lead beneath a cover."""
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")
