"""A small file system for the tests of passthrough, takeover and holder: the files of one directory.

``mirror_worker.py DIRECTORY STATS [MOUNTPOINT]``. With a holder (its environment says so) it serves the
holder's connection, else it mounts at MOUNTPOINT by itself and unmounts when stdin ends. It does with pyfuse3
what ckptfs.fuse.session does, and nothing more.

The names of the files say how they behave: ``served*`` goes through the daemon always, ``late*`` until
``DIRECTORY/.whole`` exists, ``slow*`` and ``poison*`` go through it too and take 0.2 s, or kill the worker,
at each read; ``worse*`` kills it at each open. All others are native. STATS counts, over all workers, in
words of 8 bytes: :data:`COUNTERS`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator

from ckptfs.fuse import channel  # before pyfuse3: it must find the extension's symbol

# isort: split
import pyfuse3
import structlog
import trio

from ckptfs.fuse.channel import Backings, OwnBackings
from ckptfs.fuse.connection import Connection, Terms, connect
from ckptfs.fuse.mode_table import ModeTable
from ckptfs.fuse.modes import Modes
from ckptfs.fuse.passthrough import Native, Passthrough
from ckptfs.fuse.takeover import Takeover
from ckptfs.fuse.ticker import ticking
from ckptfsd.worker_link import HolderLink

COUNTERS = (
    "starts",
    "opens",
    "reads",
    "releases",
    "granted",
    "files_open_native",
    "files_open_served",
    "pid",
)

_SERVED = ("served", "slow", "poison", "worse")


class Stats:
    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, 8 * len(COUNTERS))
        self._words = memoryview(mmap.mmap(fd, 8 * len(COUNTERS))).cast("Q")
        os.close(fd)

    def add(self, name: str, more: int = 1) -> None:
        self._words[COUNTERS.index(name)] += more

    def set(self, name: str, value: int) -> None:
        self._words[COUNTERS.index(name)] = value


def read_stats(path: str) -> dict[str, int]:
    with open(path, "rb") as file:
        return dict(zip(COUNTERS, struct.unpack(f"={len(COUNTERS)}Q", file.read()), strict=True))


class Mirror(pyfuse3.Operations):
    def __init__(self, directory: str, stats: Stats, passthrough: Passthrough) -> None:
        super().__init__()
        self._directory = directory
        self._stats = stats
        self._passthrough = passthrough
        # Sorted: inodes are the same in each worker.
        self._names = [b"", b"", *sorted(os.fsencode(n) for n in os.listdir(directory) if n[0] != ".")]
        self._fds: dict[int, int] = {}
        self._granted = channel.statistics().get("granted", 0)
        self.takeover: Takeover | None = None

    def init(self) -> None:
        assert self.takeover is not None
        self.takeover.switch()

    def _path(self, inode: int) -> str:
        return os.path.join(self._directory, os.fsdecode(self._names[inode]))

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = 3600
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
        elif inode < len(self._names):
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o444)
            entry.st_size = os.stat(self._path(inode)).st_size
        else:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name not in self._names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(pyfuse3.InodeT(self._names.index(name)))

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        self._stats.add("opens")
        name = self._names[inode].decode()
        if name.startswith("worse"):
            os.abort()
        native: Native | None = None
        if not name.startswith(_SERVED) and (
            not name.startswith("late") or os.path.exists(os.path.join(self._directory, ".whole"))
        ):

            @contextlib.contextmanager
            def native() -> Iterator[int]:
                fd = os.open(self._path(inode), os.O_RDONLY)
                try:
                    yield fd
                finally:
                    os.close(fd)

        try:
            await self._passthrough.open(inode, native)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        trio.lowlevel.current_trio_token().run_sync_soon(self._count)  # after the reply
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=False)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self._stats.add("reads")
        name = self._names[fh].decode()
        if name.startswith("slow"):
            await trio.sleep(0.2)
        if name.startswith("poison"):
            os.abort()
        if fh not in self._fds:
            self._fds[fh] = os.open(self._path(fh), os.O_RDONLY)
        return os.pread(self._fds[fh], size, off)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._passthrough.release(fh)
        self._stats.add("releases")
        trio.lowlevel.current_trio_token().run_sync_soon(self._count)

    def _count(self) -> None:
        for name in ("files_open_native", "files_open_served"):
            self._stats.set(name, self._passthrough.statistics()[name])
        granted = channel.statistics().get("granted", 0)
        self._stats.add("granted", granted - self._granted)
        self._granted = granted

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for inode in range(max(2, start_id), len(self._names)):
            attributes = await self.getattr(pyfuse3.InodeT(inode))
            name = pyfuse3.FileNameT(self._names[inode])
            if not pyfuse3.readdir_reply(token, name, attributes, inode + 1):
                return


class Worker:
    def __init__(self, directory: str, stats_path: str) -> None:
        self._directory = directory
        self._stats = Stats(stats_path)
        self._stats.add("starts")
        self._stats.set("pid", os.getpid())
        self._ended = trio.Event()

    async def serve(
        self, nursery: trio.Nursery, connection: Connection, backings: Backings, why_not: str = ""
    ) -> None:
        self._ended = trio.Event()
        passthrough = Passthrough(Modes(ModeTable(connection.modes_fd)), backings, why_not=why_not)
        await backings.keep(passthrough.restore())
        operations = Mirror(self._directory, self._stats, passthrough)
        takeover = operations.takeover = Takeover(
            connection.fuse_fd, connection.offered.raw, resend=connection.resend
        )
        pyfuse3.init(operations, takeover.mountpoint, set())
        nursery.start_soon(self._loop)

    async def _loop(self) -> None:
        try:
            await pyfuse3.main(min_tasks=8, max_tasks=1000)
        finally:
            pyfuse3.close(unmount=False)
            self._ended.set()

    async def leave(self) -> None:
        """Let go of the connection; what was read from it is answered."""
        pyfuse3.terminate()
        await self._ended.wait()

    async def run_held(self, link: HolderLink) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            link.hello("mirror")
            connection: Connection | None = None
            async for order in link.orders:
                if order.verb == "standby":
                    if os.path.exists(os.path.join(self._directory, ".cannot-start")):
                        os._exit(9)
                    link.prepared()
                elif order.verb in ("serve", "resume"):
                    dies = os.path.exists(os.path.join(self._directory, ".dies-on-serve"))
                    if dies and order.verb == "serve":
                        os._exit(8)
                    assert order.introduction is not None
                    connection = order.introduction.connection
                    await self.serve(nursery, connection, link)
                    link.ready()
                    nursery.start_soon(self._end_with_loop, link)
                elif order.verb == "pause":
                    await self.leave()
                    assert connection is not None
                    connection.close()
                    link.paused()
                elif order.verb in ("exit", "stop"):
                    if connection is not None and not self._ended.is_set():
                        await self.leave()
                    break
            nursery.cancel_scope.cancel()

    async def _end_with_loop(self, link: HolderLink) -> None:
        await self._ended.wait()
        link.lost("the loop ended")

    async def run_alone(self, mountpoint: str) -> None:
        connection = connect(mountpoint, Terms(allow_other=True))
        fd, offered = connection.fuse_fd, connection.offered
        drop_privileges("MIRROR_LATER_USER")
        why_not = channel.missing() or channel.missing_in_kernel(offered)
        why_not = why_not or await channel.missing_in_store(OwnBackings(fd), self._directory)
        async with trio.open_nursery() as nursery:
            await self.serve(nursery, connection, OwnBackings(fd), why_not)
            print(why_not or "native", flush=True)
            await trio.lowlevel.FdStream(os.dup(0)).receive_some()
            connection.unmount()
            await self.leave()
            connection.close()


def drop_privileges(variable: str) -> None:
    if user := int(os.environ.get(variable, "0")):
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


async def main() -> None:
    worker = Worker(sys.argv[1], sys.argv[2])
    link = HolderLink.from_environment(os.environ)
    with ticking():
        if link is not None:
            await worker.run_held(link)
        else:
            await worker.run_alone(sys.argv[3])


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trio.run(main)
