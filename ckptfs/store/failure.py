"""Foreign errors become ours at this door: what the disk says, in words that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ckptfs.errors import PermissionDenied, StoreDamaged, StoreError, StoreFull

#: What says that the disk has no room.
FULL = (errno.ENOSPC, errno.EDQUOT)

#: What a read answers where the bytes themselves are lost: the disk's word, or the file system's. All else
#: (no descriptor or memory left, no permission) says nothing of them.
LOST = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ, errno.ENODATA)


def of(error: OSError, doing: str) -> StoreError | PermissionDenied:
    """The error to raise for a failed system call; ``doing`` completes "… failed while …"."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in FULL:
        return StoreFull(
            f"the store's disk is full ({reason}, {doing}): remove checkpoints that nobody needs, "
            "or give the store a larger disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(
            f"the store cannot be used ({reason}, {doing}): it must belong to the daemon's user "
            "and lie on a writable file system"
        )
    if error.errno == errno.ENOENT:
        return StoreDamaged(f"a file of the store is missing ({doing}): run `ckptfsd rebuild --store DIR`")
    return StoreError(f"the store's disk failed ({reason}, {doing}): check the disk and the kernel log")


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise of(error, doing) from error
