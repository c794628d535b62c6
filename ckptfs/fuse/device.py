"""What is said on /dev/fuse beside libfuse: the INIT exchange, resend, EIO for what waits, backing files.

Used by whoever holds the connection: the holder process, or a worker that serves alone. Standard library
only, and light: the holder has to stay small.

Resend. A request that a dead worker had taken stays in the kernel's list of requests in progress and is
answered by nobody. The notification FUSE_NOTIFY_RESEND puts all of them back at the head of the queue,
and marks them with the highest bit of their unique number. It puts back what this process has read and
not answered as well: that is how :func:`survey` can look at the queue without keeping it.

Reading here must not block: between poll and read the process that asked may be killed and its request
be gone. O_NONBLOCK belongs to the open file, not to the descriptor, and pyfuse3's loop dies of EAGAIN:
so it is set only while no worker lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ckptfs.fuse import init_reply

# The ioctls and notifications of include/uapi/linux/fuse.h, Linux 6.9 and later.
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("=iIQ")
_NOTIFY_RESEND = 7

UNIQUE_RESEND = 1 << 63

# Requests that are not answered: reading them is the end of them.
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42
_NO_REPLY = frozenset((FORGET, INTERRUPT, BATCH_FORGET))
# The end of an open. Answering these for a worker would hide from it that a handle is gone.
RELEASE, RELEASEDIR = 18, 29


class Request(NamedTuple):
    """The head of a request that waits. ``unique`` is as it was read: the answer must repeat it."""

    unique: int
    opcode: int
    nodeid: int

    @property
    def identity(self) -> int:
        """The same number however often the request was sent again."""
        return self.unique & ~UNIQUE_RESEND


class Survey(NamedTuple):
    """``taken``: requests that a worker had taken and not answered when it died; ``waiting``: the rest."""

    taken: list[Request]
    waiting: list[Request]


def negotiate(
    device: int, wishes: init_reply.Wishes | None = None, *, timeout_seconds: float = 10.0
) -> init_reply.InitRequest:
    """Answer the INIT request of a connection that was just mounted. To be done once, before anything
    else is read. Raises OSError, :class:`init_reply.NotInit`."""
    poller = select.poll()
    poller.register(device, select.POLLIN)
    if not poller.poll(timeout_seconds * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "the kernel sent no INIT request")
    request = init_reply.parse(os.read(device, init_reply.READ_BUFFER_BYTES))
    os.write(device, init_reply.build(request, wishes))
    return request


def resend(device: int) -> None:
    """Put what was taken and not answered back into the queue. OSError (EINVAL) before Linux 6.9."""
    os.write(device, init_reply.REPLY_HEADER.pack(init_reply.REPLY_HEADER.size, _NOTIFY_RESEND, 0))


def answer_error(device: int, request: Request, number: int) -> None:
    """Whoever waits for ``request`` gets the errno. Nothing happens if nobody waits any more."""
    with contextlib.suppress(FileNotFoundError):
        os.write(device, init_reply.REPLY_HEADER.pack(init_reply.REPLY_HEADER.size, -number, request.unique))


def survey(device: int) -> Survey:
    """What waits for an answer, and which of it a dead worker had taken. No worker may be alive.

    Afterwards all of it is in this process's hands: answer what is to be answered, then :func:`resend`.
    FORGETs and INTERRUPTs are lost; nobody here counts lookups, and an interrupted reader stays killable.
    """
    with _nonblocking(device):
        waiting = _read_all(device)
        resend(device)
        again = _read_all(device)
    before = {request.identity for request in waiting}
    taken = [r for r in again if r.unique & UNIQUE_RESEND and r.identity not in before]
    were_taken = {request.identity for request in taken}
    return Survey(taken, [r for r in again if r.identity not in were_taken])


def is_connected(device: int) -> bool:
    """False when the connection was aborted, or its mount is gone and nobody has anything open."""
    poller = select.poll()
    poller.register(device, select.POLLIN)
    return not any(event & select.POLLERR for _, event in poller.poll(0))


def backing_open(device: int, fd: int) -> int:
    """Register the file behind ``fd`` as a backing file and answer its id; ``fd`` can be closed.

    OSError: EPERM without CAP_SYS_ADMIN or without passthrough in INIT, ELOOP for a file on a stacked
    file system, ENOTTY before Linux 6.9.
    """
    backing_id: int = fcntl.ioctl(device, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0)))
    return backing_id


def backing_close(device: int, backing_id: int) -> None:
    """Free a backing id. Handles that are open with it go on; new ones cannot use it."""
    fcntl.ioctl(device, _BACKING_CLOSE, bytearray(struct.pack("=I", backing_id)))


def _read_all(device: int) -> list[Request]:
    buffer = bytearray(init_reply.READ_BUFFER_BYTES)
    found: list[Request] = []
    while True:
        try:
            length = os.readv(device, [buffer])
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # interrupted while it was handed over
                continue
            raise
        if length < init_reply.REQUEST_HEADER.size:
            raise OSError(errno.EIO, "a short read from /dev/fuse")
        _, opcode, unique, nodeid = init_reply.REQUEST_HEADER.unpack_from(buffer)[:4]
        if opcode not in _NO_REPLY:
            found.append(Request(unique, opcode, nodeid))


@contextlib.contextmanager
def _nonblocking(device: int) -> Iterator[None]:
    flags = fcntl.fcntl(device, fcntl.F_GETFL)
    fcntl.fcntl(device, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        yield
    finally:
        fcntl.fcntl(device, fcntl.F_SETFL, flags)
