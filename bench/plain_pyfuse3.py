"""A peer of the read benchmark: files served by pyfuse3 with everything left at its default.

``python -m bench.plain_pyfuse3 MOUNTPOINT FILE...`` shows each FILE by its name until SIGTERM. It does what
a filesystem written from pyfuse3's examples does: ``pread`` inline, nothing tuned. At the end it prints how
many read requests of which size it had, as JSON: {bytes: count}.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys
from collections import Counter

import pyfuse3
import trio

FIRST_INODE = pyfuse3.ROOT_INODE + 1


class Files(pyfuse3.Operations):
    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self._inodes = {os.fsencode(os.path.basename(p)): FIRST_INODE + i for i, p in enumerate(paths)}
        self._fds = {FIRST_INODE + i: os.open(p, os.O_RDONLY) for i, p in enumerate(paths)}
        self.requests: Counter[int] = Counter()

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
        elif inode in self._fds:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o444)
            entry.st_size = os.fstat(self._fds[inode]).st_size
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent_inode != pyfuse3.ROOT_INODE or name not in self._inodes:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(pyfuse3.InodeT(self._inodes[name]))

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self.requests[size] += 1
        return os.pread(self._fds[fh], size, off)


def main() -> None:
    mountpoint, *paths = sys.argv[1:]
    files = Files(paths)
    options = set(pyfuse3.default_options)
    options.add("fsname=plain_pyfuse3")
    pyfuse3.init(files, mountpoint, options)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    async for _ in signals:
                        pyfuse3.terminate()
                        return

            nursery.start_soon(stop_on_signal)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)
    print(json.dumps(files.requests), flush=True)


if __name__ == "__main__":
    main()
