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
import stat
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from ckptfs.engine.nodes import NAME_MAX_BYTES, ROOT_INODE, Attributes, Listed
from ckptfs.engine.view import View
from ckptfs.fuse.boundary import Faults, boundary
from ckptfs.fuse.listing import LARGE_DIRECTORY, BareEntry, Listers, bare_entry
from ckptfs.fuse.passthrough import Passthrough
from ckptfs.fuse.splice import SplicedReads
from ckptfs.fuse.takeover import Takeover

FOREVER_SECONDS = 365 * 24 * 3600.0
ROOT_SECONDS = 1.0

# A directory's handle is its inode number, with this bit when it is listed bare. Inode numbers have no
# such bit: ordinals are below 2**31 for as long as anybody can make checkpoints.
_BARE = 1 << 63

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
        #: Set by the session before the first request.
        self.passthrough: Passthrough | None = None
        self.takeover: Takeover | None = None
        self.spliced = SplicedReads(0)
        self.faults = Faults()
        self._listers = Listers()
        self._bare = bare_entry()
        self.counters: Counter[str] = Counter(lookups=0, opens=0)

    def init(self) -> None:
        # Called in the event loop, in the middle of INIT; whoever waits for the event runs after the
        # reply was written.
        assert self.takeover is not None
        self.takeover.switch()
        self.started.set()

    # --- Names and attributes ------------------------------------------------------------------------

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self.counters["lookups"] += 1
        found = await self._view.lookup(parent_inode, name)
        if found is not None:
            if not stat.S_ISDIR(found.mode):
                self._listers.looked_up(ctx.pid, parent_inode)
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
        entries = await self._view.child_count(inode)  # ESTALE when it is gone
        bare = (
            inode != ROOT_INODE and entries <= LARGE_DIRECTORY and not self._listers.wants_attributes(ctx.pid)
        )
        if not bare or self._bare is None:
            return inode
        self._listers.listed_bare(ctx.pid, inode)
        return inode | _BARE

    @boundary
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        children = await self._view.children(fh & ~_BARE, start_id)
        if fh & _BARE and self._bare is not None:
            _reply_bare(token, children, self._bare)
        else:
            _reply_full(token, children, ROOT_SECONDS if fh == ROOT_INODE else FOREVER_SECONDS)

    @boundary
    async def releasedir(self, fh: int) -> None:
        pass

    # --- Files ---------------------------------------------------------------------------------------

    @boundary
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FUSEError(errno.EROFS)
        self.counters["opens"] += 1
        assert self.passthrough is not None
        await self._view.open(inode)
        try:
            # The last wait of an open: what it decides is answered in this step.
            await self.passthrough.open(
                inode, self._view.native(inode), partial(self._view.check_joined, inode)
            )
        except BaseException:
            self._view.release(inode)
            raise
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> memoryview:  # type: ignore[override]
        # The boundary written out: this is the one handler where another coroutine would be felt.
        # pyfuse3 takes any contiguous buffer, and copies it before anything else runs (WarmReads).
        try:
            data = await self._view.read(fh, off, size)
            self.spliced.read(fh, self._view.reader_of(fh), off + size)
            return data
        except Exception as error:
            raise self.faults.answer("read", (fh, off, size), error) from None

    @boundary
    async def release(self, fh: int) -> None:
        assert self.passthrough is not None
        self._view.release(fh)
        if self._view.reader_of(fh) is None:
            self.spliced.release(fh)
        self.passthrough.release(fh)

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


def _reply_full(token: pyfuse3.ReaddirToken, children: Iterator[Listed], entry_seconds: float) -> None:
    """Names with attributes, until the reply is full."""
    # One object for all entries, and only what changed is set: readdir_reply copies it, and setting
    # fields is most of the work.
    entry = EntryAttributes()
    entry.st_blksize = _STATFS_BLOCK_BYTES
    entry.entry_timeout = entry_seconds
    reply = pyfuse3.readdir_reply
    mode_now = nlink_now = size_now = blocks_now = time_now = -1
    for name, following, inode, mode, nlink, size, blocks, time_ns in children:
        entry.st_ino = inode
        if mode != mode_now:
            entry.st_mode = mode_now = mode
        if nlink != nlink_now:
            entry.st_nlink = nlink_now = nlink
        if size != size_now:
            entry.st_size = size_now = size
        if blocks != blocks_now:
            entry.st_blocks = blocks_now = blocks
        if time_ns != time_now:
            time_now = time_ns
            entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
        entry.attr_timeout = ROOT_SECONDS if inode == ROOT_INODE else FOREVER_SECONDS
        if not reply(token, name, entry, following):
            break


def _reply_bare(token: pyfuse3.ReaddirToken, children: Iterator[Listed], bare: BareEntry) -> None:
    """Names; attributes only of directories."""
    reply = pyfuse3.readdir_reply
    entry, number, mode_now = bare.entry, bare.inode, -1
    for name, following, inode, mode, nlink, size, blocks, time_ns in children:
        if mode == mode_now:
            number.value = inode
        elif stat.S_ISDIR(mode):
            full = _entry(Attributes(inode, mode, nlink, size, blocks, time_ns), FOREVER_SECONDS)
            if not reply(token, name, full, following):
                break
            continue
        else:
            entry.st_mode = mode_now = mode
            number.value = inode
        if not reply(token, name, entry, following):
            break


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
