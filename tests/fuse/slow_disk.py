"""A disk that stops: shows a directory of blobs, and holds reads while a gate file exists: of the files whose
names are lines of it, of all files if it is empty.

``python slow_disk.py BACKING MOUNT GATE``. A file system below the store is where a slow disk really
is: the store, the view and the mount under test run unchanged. Reads are not cached (direct_io), and
this file system does not know RWF_NOWAIT, so each of them goes through a thread of the mount.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError


class SlowDisk(pyfuse3.Operations):
    def __init__(self, backing: str, gate: str) -> None:
        super().__init__()
        self._paths = {pyfuse3.ROOT_INODE: os.fsencode(backing)}
        self._gate = gate
        self._open: dict[int, str] = {}

    def _attributes(self, path: bytes) -> EntryAttributes:
        try:
            status = os.lstat(path)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        entry = EntryAttributes()
        root = path == self._paths[pyfuse3.ROOT_INODE]
        entry.st_ino = pyfuse3.ROOT_INODE if root else status.st_ino
        for field in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks"):
            setattr(entry, field, getattr(status, field))
        entry.attr_timeout = entry.entry_timeout = 0
        self._paths[entry.st_ino] = path
        return entry

    async def lookup(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        return self._attributes(os.path.join(self._paths[parent_inode], name))

    async def getattr(self, inode, ctx):  # type: ignore[no-untyped-def]
        return self._attributes(self._paths[inode])

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
        return inode

    async def readdir(self, fh, start_id, token):  # type: ignore[no-untyped-def]
        folder = self._paths[fh]
        for at, name in enumerate(sorted(os.listdir(folder)), 1):
            if at > start_id:
                attributes = self._attributes(os.path.join(folder, name))
                if not pyfuse3.readdir_reply(token, name, attributes, at):
                    return

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        fh = os.open(self._paths[inode], os.O_RDONLY)
        self._open[fh] = os.fsdecode(os.path.basename(self._paths[inode]))
        return FileInfo(fh=fh, direct_io=True)

    def _held(self, fh: int) -> bool:
        try:
            with open(self._gate) as gate:
                names = gate.read().split()
        except FileNotFoundError:
            return False
        return not names or self._open[fh] in names

    async def release(self, fh):  # type: ignore[no-untyped-def]
        os.close(fh)

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        while self._held(fh):
            await trio.sleep(0.01)
        return os.pread(fh, size, off)


def main() -> None:
    backing, mountpoint, gate = sys.argv[1:]
    pyfuse3.init(SlowDisk(backing, gate), mountpoint, {"fsname=slow_disk", "default_permissions"})

    async def serve() -> None:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                with trio.open_signal_receiver(signal.SIGTERM) as signals:
                    async for _ in signals:
                        pyfuse3.terminate()

            nursery.start_soon(stop)
            print("ready", flush=True)
            await pyfuse3.main(max_tasks=2000)
            nursery.cancel_scope.cancel()

    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
