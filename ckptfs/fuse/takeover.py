"""Serve a connection that is negotiated already: by the holder, or by a worker before this one.

libfuse takes the mountpoint "/dev/fd/N" for "mounted here already", but insists on an INIT request, and
the kernel sends that once in a connection's life. So it is told again, from the saved bytes:

1. a SEQPACKET socket pair (one write is one read, as on /dev/fuse); the INIT request goes in at one end,
   and the other end is descriptor N;
2. ``pyfuse3.init(operations, "/dev/fd/N", …)`` and ``pyfuse3.main()``: libfuse reads INIT from N;
3. inside ``Operations.init()``, in the middle of that request, N becomes /dev/fuse (dup2). libfuse writes
   its answer there, the kernel knows no such request (ENOENT), and libfuse takes that for one that was
   interrupted. What was negotiated is what the first answer said (init_reply.py);
4. then, where the kernel can, RESEND: what the worker before had taken comes again.

The loop's registration with epoll needs no care: closing the last descriptor of the socket ends it, and
trio registers N anew when it next waits.
"""

from __future__ import annotations

import os
import socket

from ckptfs.fuse import device


class Takeover:
    """One use::

        takeover = Takeover(device_fd, init_request, resend=True)
        pyfuse3.init(operations, takeover.mountpoint, options)   # operations.init() calls switch()
        await pyfuse3.main()
        pyfuse3.close(unmount=False)

    ``device_fd`` stays the caller's: libfuse gets a duplicate, which pyfuse3.close() closes. ``resend``:
    whether the connection was negotiated with it (InitRequest.has_resend).
    """

    def __init__(self, device_fd: int, init_request: bytes, *, resend: bool) -> None:
        self._device = device_fd
        self._resend = resend
        self._switched = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.send(init_request)
            # Readable also without `ours`: what was sent is still delivered.
        self._fd = theirs.detach()

    @property
    def mountpoint(self) -> str:
        return f"/dev/fd/{self._fd}"

    @property
    def switched(self) -> bool:
        return self._switched

    def switch(self) -> None:
        """Call it in ``Operations.init()``."""
        if self._switched:
            raise RuntimeError("a takeover is used once")
        os.dup2(self._device, self._fd, inheritable=False)
        self._switched = True
        if self._resend:
            device.resend(self._device)

    def abandon(self) -> None:
        """When pyfuse3.init() failed: libfuse has not got the descriptor."""
        os.close(self._fd)
