"""Who is at the other end of a control connection, and what they may do.

The kernel says who connected (SO_PEERCRED, SO_PEERGROUPS: unix(7)); nothing that the client sends can
change it. Whoever may connect at all (the socket's mode and group) may use the read verbs.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

# From <asm-generic/socket.h>; Python's socket module has no name for it. Linux >= 4.13.
SO_PEERGROUPS = 59

_MAX_OPTION_BYTES = 1024  # the most that Python's getsockopt takes: 256 groups


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was at that moment. ``pid`` is 0 when it has no number in the
    daemon's PID namespace."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]  # supplementary ones and ``gid``


def peer_of(connection: socket.socket) -> Peer:
    """Raises OSError when the kernel does not say: then the connection must not be served."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", raw)
    if uid == 0xFFFFFFFF or gid == 0xFFFFFFFF:  # what a socket that never connected says
        raise OSError("the kernel does not know the peer")
    return Peer(pid=pid, uid=uid, gid=gid, groups=frozenset((gid, *_supplementary_groups(connection))))


def _supplementary_groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MAX_OPTION_BYTES)
    except OSError:  # ERANGE: there are more; ENOPROTOOPT: an old kernel. No right is drawn from them then.
        return ()
    return struct.unpack(f"{len(raw) // struct.calcsize('I')}I", raw)


@dataclass(frozen=True, slots=True)
class Permissions:
    """Who may use the admin verbs: root, the daemon's own user, and members of one group."""

    admin_gid: int | None = None
    daemon_uid: int = -1

    @classmethod
    def of_this_process(cls, admin_gid: int | None) -> Permissions:
        return cls(admin_gid=admin_gid, daemon_uid=os.geteuid())

    def is_owner(self, peer: Peer) -> bool:
        """Root, or the daemon's own user: whoever could as well start another daemon."""
        return peer.uid in (0, self.daemon_uid)

    def is_admin(self, peer: Peer) -> bool:
        if self.is_owner(peer):
            return True
        return self.admin_gid is not None and self.admin_gid in peer.groups
