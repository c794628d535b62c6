"""The kernel's edge: the only room that knows pyfuse3. An adapter; it decides nothing.

- ``session``       one mount from mountpoint to end: connect, serve, disconnect
- ``operations``    kernel requests to the engine's view
- ``boundary``      what no exception of a handler gets past; faults counted and logged
- ``errno_table``   what an exception becomes
- ``mountpoint``    is the directory fit to be mounted on; dead mounts are cleared
- ``kernel_mount``  mount(2) or fusermount3, and the way back
- ``mountinfo``     what is mounted where, without touching it
- ``tuning``        readahead, set after mounting
- ``ticker``        the cure for pyfuse3's blocking read

Reads past the daemon, and a mount that outlives it:

- ``passthrough``   opens and releases of files, where some are native
- ``modes``         the rules about how an inode is open; ``mode_table`` keeps that for the next process
- ``channel``       the extension, who registers files with the kernel, and why it may not work
- ``splice``        reads of what is in the page cache, answered by the extension without Python
- ``init_reply``    the first exchange with the kernel, as bytes
- ``device``        what is said on /dev/fuse beside libfuse: INIT, resend, errors, backing files
- ``takeover``      serve a connection that somebody else has made

Importing this package is cheap, and so are kernel_mount, mountinfo, tuning, init_reply and device: the
holder process uses them and must stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Before any module of this room imports pyfuse3: that must find the extension's symbols.
from ckptfs.fuse import channel as channel

if TYPE_CHECKING:
    from ckptfs.fuse.session import FuseSession as FuseSession
    from ckptfs.fuse.session import MountConfig as MountConfig

__all__ = ["FuseSession", "MountConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ckptfs.fuse' has no attribute {name!r}")
    from ckptfs.fuse import session

    return getattr(session, name)
