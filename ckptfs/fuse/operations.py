"""Kernel requests to the view and back: an adapter, with one boundary around every handler.

What the kernel keeps. Inside a checkpoint nothing ever changes, so entries (also those that do not
exist) and attributes are valid for ever and pages survive between opens. In the root names come and
go: entries are valid for a second at most, are invalidated when they change, and a name that does not
exist is never remembered.

What never arrives. The mount is MS_RDONLY with default_permissions: the kernel answers most attempts to
change something, and all questions of access, by itself. The handlers here answer EROFS for the rest,
and for all of it after somebody remounted it read-write.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from ckptfs.engine.view import NAME_MAX_BYTES, ROOT_INODE, Attributes, View
from ckptfs.fuse.boundary import Faults, boundary

FOREVER_SECONDS = 365 * 24 * 3600.0
ROOT_SECONDS = 1.0

# statfs counts in these. Not the readahead size: tools take it for the unit of allocation.
_STATFS_BLOCK_BYTES = 4096


def _read_only(name: str) -> Callable[..., Coroutine[Any, Any, NoReturn]]:
    async def refuse(self: CheckpointOperations, *args: Any) -> NoReturn:
        raise FUSEError(errno.EROFS)

    refuse.__name__ = refuse.__qualname__ = name
    return refuse


class CheckpointOperations(pyfuse3.Operations):
    """``started`` is set when the kernel and libfuse have agreed on the protocol."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self.started = trio.Event()
        self.faults = Faults()
        self.counters: Counter[str] = Counter(lookups=0, opens=0)

    def init(self) -> None:
        # Called in the event loop, in the middle of INIT; whoever waits for the event runs after the
        # reply was written.
        self.started.set()

    # --- Names and attributes ------------------------------------------------------------------------

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self.counters["lookups"] += 1
        found = await self._view.lookup(parent_inode, name)
        if found is not None:
            return _entry(found, ROOT_SECONDS if parent_inode == ROOT_INODE else FOREVER_SECONDS)
        if parent_inode == ROOT_INODE:
            raise FUSEError(errno.ENOENT)  # not remembered: it may be attached the next moment
        absent = EntryAttributes()
        absent.st_ino = 0  # remembered: "there is no such name"
        absent.entry_timeout = FOREVER_SECONDS
        return absent

    @boundary
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self._view.attributes(inode), FOREVER_SECONDS)

    @boundary
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._view.readlink(inode)

    @boundary
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        if mode & os.W_OK:
            raise FUSEError(errno.EROFS)
        return True

    @boundary
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(pyfuse3.ENOATTR)

    @boundary
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return []

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        totals = self._view.totals()
        stats = StatvfsData()
        stats.f_bsize = stats.f_frsize = _STATFS_BLOCK_BYTES
        stats.f_blocks = -(-totals.bytes // _STATFS_BLOCK_BYTES)
        stats.f_bfree = stats.f_bavail = 0
        stats.f_files = totals.entries
        stats.f_ffree = stats.f_favail = 0
        stats.f_namemax = NAME_MAX_BYTES
        return stats

    # --- Directories ---------------------------------------------------------------------------------

    @boundary
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        await self._view.attributes(inode)  # ESTALE when it is gone
        return inode

    @boundary
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # One object for all entries: readdir_reply copies it, and making one costs more than all else.
        entry = EntryAttributes()
        entry.st_blksize = _STATFS_BLOCK_BYTES
        entry.entry_timeout = ROOT_SECONDS if fh == ROOT_INODE else FOREVER_SECONDS
        previous: Attributes | None = None
        reply = pyfuse3.readdir_reply
        for name, attributes, following in await self._view.children(fh, start_id):
            if previous is None or attributes[1:] != previous[1:]:
                _fill(entry, attributes)
            else:
                entry.st_ino = attributes.inode
            previous = attributes
            if not reply(token, name, entry, following):
                break

    @boundary
    async def releasedir(self, fh: int) -> None:
        pass

    # --- Files ---------------------------------------------------------------------------------------

    @boundary
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FUSEError(errno.EROFS)
        self.counters["opens"] += 1
        await self._view.open(inode)
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> memoryview:  # type: ignore[override]
        # The boundary written out: this is the one handler where another coroutine would be felt.
        # pyfuse3 takes any contiguous buffer, and copies it before anything else runs (WarmReads).
        try:
            return await self._view.read(fh, off, size)
        except Exception as error:
            raise self.faults.answer("read", (fh, off, size), error) from None

    @boundary
    async def release(self, fh: int) -> None:
        self._view.release(fh)

    # --- Everything that would change something --------------------------------------------------------

    setattr = _read_only("setattr")
    mknod = _read_only("mknod")
    mkdir = _read_only("mkdir")
    unlink = _read_only("unlink")
    rmdir = _read_only("rmdir")
    symlink = _read_only("symlink")
    rename = _read_only("rename")
    link = _read_only("link")
    create = _read_only("create")
    write = _read_only("write")
    setxattr = _read_only("setxattr")
    removexattr = _read_only("removexattr")

    def stacktrace(self) -> None:
        """pyfuse3 would print all stacks when root sets the attribute fuse_stacktrace; nobody asked."""


def _entry(attributes: Attributes, entry_seconds: float) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_blksize = _STATFS_BLOCK_BYTES
    entry.entry_timeout = entry_seconds
    _fill(entry, attributes)
    return entry


def _fill(entry: EntryAttributes, attributes: Attributes) -> None:
    inode, mode, nlink, size, blocks, time_ns = attributes
    entry.st_ino = inode
    entry.st_mode = mode
    entry.st_nlink = nlink
    entry.st_size = size
    entry.st_blocks = blocks
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
    entry.attr_timeout = ROOT_SECONDS if inode == ROOT_INODE else FOREVER_SECONDS
