"""What an exception becomes when it leaves a handler: one table, with a reason where it is debatable.

pyfuse3 ends its loop, and with it the mount, when a handler raises anything but FUSEError; so
:func:`answer_for` has an answer for everything.
"""

from __future__ import annotations

import errno

from ckptfs.engine.nodes import Answer
from ckptfs.errors import CkptfsError

# Of errors that the daemon's own system calls met, only these mean the same to the job. All others
# would tell it something false: ENOENT of a blob is not "no such file in your checkpoint" but lost
# bytes, EBADF not its descriptor, ENOSPC not its disk, EACCES not its permission.
_SAME_TO_THE_JOB = frozenset({errno.EIO, errno.ENOMEM, errno.ETIMEDOUT})


def answer_for(error: Exception) -> int:
    """The errno that a system call on the mount returns for this exception."""
    if isinstance(error, Answer):
        return error.errno or errno.EIO
    if isinstance(error, CkptfsError):
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in _SAME_TO_THE_JOB:
        return error.errno
    return errno.EIO


def is_fault(error: Exception) -> bool:
    """Whether a person should hear of it. An :class:`Answer` is what was asked for."""
    return not isinstance(error, Answer)
