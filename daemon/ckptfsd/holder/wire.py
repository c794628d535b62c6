"""The messages between holder and worker: JSON objects, one a datagram, over a SEQPACKET socket pair.

Descriptors travel with a message (SCM_RIGHTS). Who sends what:

===============  =============================  =====================================================
worker -> holder  fields                        meaning
===============  =============================  =====================================================
hello            version                        the worker lives and asks what to do
prepared                                        (standby) all that can be done ahead is done
ready            notes, configuration           serving; ``configuration``: as JSON, for whoever comes after a
                                                mistake was made in the file
paused                                          the mount and the store are let go, the process stays
open             id, with a descriptor          register a backing file; answered by ``opened``
close            backing                        free a backing id
keep             backings, more                 in use; when ``more`` is false all others are freed
listener         path, inode, with a            keep the control socket for the worker after this one
                 descriptor
failing          error                          why this worker is about to end
alive                                           heartbeat
upgrade          argv (or null: the same)       start a new worker and hand over to it
stop                                            stop everything, as SIGTERM does
lost             reason                         the connection ended under the worker
===============  =============================  =====================================================

===============  =============================  =====================================================
holder -> worker  fields                        meaning
===============  =============================  =====================================================
serve            protocol, connection, starts,  take the mount over; descriptors of /dev/fuse, of the
                 upgrades, configuration,       modes table and of the listener. ``starts``: workers before
                 listener                       this one; ``upgrades``: how many came to serve, with this
                                                one if it is one; ``connection``: ckptfs.fuse.connection;
                                                ``listener`` (if there is one): path, inode;
                                                ``configuration``: of the worker that was ready last
standby          native, spare                  prepare, say so and wait for ``serve``. ``native``: how many
                                                files are open past the daemon; ``spare``: to serve when the
                                                one that serves dies, which may be in weeks
spare            pid                            another worker waits for the death of this one (0: none does)
pause                                           let go of mount and store, say so and wait
resume                                          the other could not start: serve again (as ``serve``)
exit                                            end; the mount stays
stop                                            end; the mount goes
opened           id, backing or error (errno)
upgrade_failed   error                          the old worker goes on
===============  =============================  =====================================================
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
from collections.abc import Sequence
from typing import Any

ENVIRONMENT = "CKPTFSD_HOLDER_FD"

#: Raised when what a message means changes: a holder may be older than the workers that it starts. A worker
#: that does not know the number says so and ends, and the one before it goes on.
PROTOCOL = 1

MAX_BYTES = 65536
_MAX_DESCRIPTORS = 4

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(peer: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Raises OSError: BlockingIOError when the other end does not read, BrokenPipeError when it is gone."""
    ancillary = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
    peer.sendmsg([json.dumps(message).encode()], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def has_message(peer: socket.socket) -> bool:
    if peer.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(peer, select.POLLIN)
    return any(event & select.POLLIN for _, event in poller.poll(0))


def receive(peer: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors, which are the caller's to close; None: the other end is gone.

    Raises OSError, and ValueError for a message that is none.
    """
    size = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        data, ancillary, _, _ = peer.recvmsg(MAX_BYTES, size, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if not data:
        close_all(descriptors)
        return None
    try:
        message = json.loads(data)
        if not isinstance(message, dict) or not isinstance(message.get("do"), str):
            raise ValueError("a message without a verb")
    except (ValueError, RecursionError) as error:
        close_all(descriptors)
        raise ValueError(f"not a message: {error}") from None
    return message, list(descriptors)


def number(value: object, *, bits: int = 64) -> int:
    """What is to be a number in a message: of a request, a backing file, an inode. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"not a number: {value!r:.40}")
    return value


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
