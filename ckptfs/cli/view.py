"""A job's own view: its checkpoints, and only these, where jobs look for them.

Made in the job's mount namespace, out of copies of what the daemon has mounted:

1. copies of the checkpoints' directories are taken while the daemon's mount is still in sight;
2. the places where jobs look are made, where they are missing;
3. every ckptfs mount that this namespace can see is covered, wherever it is. Covered, not unmounted:
   when the daemon comes back with a new mount, the kernel puts that beneath the cover too;
4. the copies are put in place: one checkpoint flat, several in a directory of mounts by name.

Nothing of it touches the host: mounts of the namespace end with its last process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ckptfs.cli import mounts
from ckptfs.errors import MountError
from ckptfs.model.records import JobCheckpoint

PLACE = "/opt/trainml/checkpoint"
SECOND_PLACE = "/opt/ml/checkpoint"  # where the rebranded service puts it: the same files again

ENVIRONMENT = {"TRAINML_CHECKPOINT_PATH": PLACE, "ML_CHECKPOINT_PATH": SECOND_PLACE}

_MOUNT_TYPE = "fuse.ckptfs"


def enter(checkpoints: Sequence[JobCheckpoint]) -> None:
    """Put this process into a namespace with the view. It must have one thread."""
    directory = _working_directory()
    mounts.own_namespace()
    devices = {_device(c) for c in checkpoints}
    copies = [(c.name, mounts.clone(os.fsencode(c.source))) for c in checkpoints]
    for place in (PLACE, SECOND_PLACE):
        _make_place(place)
    for mount in mounts.visible():
        if mount.kind == _MOUNT_TYPE or mount.device in devices:
            mounts.cover(mount.point)
    if len(copies) == 1:
        mounts.place(copies[0][1], os.fsencode(PLACE))
    else:
        _directory_of_mounts(copies)
    mounts.place(mounts.clone(os.fsencode(PLACE), recursive=True), os.fsencode(SECOND_PLACE))
    _return_to(directory)


def _device(checkpoint: JobCheckpoint) -> tuple[int, int]:
    try:
        found = os.stat(checkpoint.source)
    except OSError as error:
        raise MountError(
            f"{checkpoint.name} is not to be seen at {checkpoint.source} ({error.strerror}):"
            " is the daemon's mount visible here? Inside another job's view it is not"
        ) from error
    return os.major(found.st_dev), os.minor(found.st_dev)


def _directory_of_mounts(copies: list[tuple[str, int]]) -> None:
    place = os.fsencode(PLACE)
    mounts.small_tmpfs(place)
    for name, copy in copies:
        directory = os.path.join(place, os.fsencode(name))
        os.mkdir(directory)
        mounts.place(copy, directory)
    mounts.make_read_only(place)


def _make_place(path: str) -> None:
    """See that there is a directory to mount on.

    Where it can, it is simply made. Where not (no permission, a read-only root), the nearest directory
    above it is replaced, in this namespace, by one that has the same content and the missing path.
    """
    if os.path.isdir(path):
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
