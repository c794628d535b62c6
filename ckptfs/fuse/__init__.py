"""The kernel's edge: the only room that knows pyfuse3. An adapter; it decides nothing.

- ``session``       one mount from mountpoint to end: connect, serve, disconnect
- ``operations``    kernel requests to the engine's view
- ``boundary``      what no exception of a handler gets past; faults counted and logged
- ``errno_table``   what an exception becomes
- ``mountpoint``    is the directory fit to be mounted on; dead mounts are cleared
- ``kernel_mount``  mount(2) or fusermount3, and the way back
- ``mountinfo``     what is mounted where, without touching it
- ``tuning``        readahead and background requests, set after mounting
- ``ticker``        the cure for pyfuse3's blocking read
"""

from ckptfs.fuse.session import FuseSession, MountConfig

__all__ = ["FuseSession", "MountConfig"]
