"""EIO for requests that workers died with.

Called between the death of one worker and the introduction of the next: nobody else reads the device.
"""

from __future__ import annotations

import errno

from ckptfs.fuse import device
from ckptfsd.holder.policy import Death, Restarts

# Waiting for these is nobody, and a worker that never hears of them thinks that the handle is open: they
# are given up only if a worker may have died of them.
_CLOSES = (device.RELEASE, device.RELEASEDIR)


def give_up(fd: int, restarts: Restarts, death: Death) -> int:
    """Let ``restarts`` decide about all that waits on ``fd`` (of /dev/fuse); the rest is put back. Answers
    how many got EIO. Raises OSError."""
    found = device.survey(fd)
    waiting = [request for request in found.waiting if request.opcode not in _CLOSES]
    condemned = restarts.condemn(
        (request.identity for request in found.taken), (request.identity for request in waiting), death
    )
    for request in (*found.taken, *waiting):
        if request.identity in condemned:
            device.answer_error(fd, request, errno.EIO)
    device.resend(fd)
    return len(condemned)
