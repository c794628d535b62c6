"""A derived copy that is being made: a file under a temporary name, until it is recorded or given up."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ckptfs.errors import StoreFull
from ckptfs.store import failure, kernel
from ckptfs.store.blobs import PIECE_BYTES, WRITEBACK_BYTES
from ckptfs.store.layout import TEMPORARY_PREFIX
from ckptfs.store.records import Why

if TYPE_CHECKING:
    from ckptfs.store.core import Core

#: Bytes that may come together before the disk is waited for. That cannot be cut short, and whoever takes the
#: store over waits for it too: 2.7 s at 100 MB/s. All of a large file at its end would be minutes.
_UNSYNCED_BYTES = 256 << 20

#: A file system says so when two ranges cannot share blocks: it has no such thing, these files are not
#: alike (one is not to be copied on write), or too many share the block already.
_CANNOT_SHARE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EMLINK)


class NewCopy:
    """The bytes of one file of a checkpoint, on their way. Begun all hole; one thread makes it, from its
    beginning to its end."""

    def __init__(self, core: Core, ordinal: int, entry: int, size_bytes: int, why: Why) -> None:
        self._core = core
        self.ordinal = ordinal
        self.entry = entry
        self.size_bytes = size_bytes
        self.why = why
        #: The blobs whose blocks it shares.
        self.blobs: set[int] = set()
        self.damage_found = core.damage_found
        #: What it takes of the disk beside what it shares; known when it is synced.
        self.physical_bytes = 0
        self._block_bytes = block_bytes(core)
        self._blocks_written = 0
        self._next_block = 0
        self._unsynced_bytes = 0
        self._gave_way = False
        self.path = core.layout.derived(ordinal, entry)
        folder, name = os.path.split(self.path)
        self.temporary = f"{folder}/{TEMPORARY_PREFIX}{name}"
        with failure.mapped("making a derived copy"):
            self._fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(self._fd, size_bytes)
            except BaseException:
                self.abandon()
                raise
        with core.state:
            core.unfinished.append(self)

    @property
    def bytes_written(self) -> int:
        """What it takes of the disk by now, beside what it shares."""
        return self._blocks_written * self._block_bytes

    def give_way(self) -> None:
        """Its room is needed: it is not to be finished. From any thread, which holds ``deriving``."""
        self._gave_way = True

    def check_way(self) -> None:
        """Raises :class:`StoreFull` when it is not to be finished."""
        if self._gave_way:
            raise StoreFull(
                f"a derived copy in the making (file {self.entry}) gave way to what needs its room: "
                "try again when that is over, if there is room then"
            )

    def clone(self, start: int, length: int, blob: int, offset: int) -> bool:
        """Share ``length`` bytes at ``offset`` of a blob; False when that cannot be: then they are to be
        written. For what may be shared see :func:`ckptfs.store.kernel.clone`."""
        self.check_way()
        try:
            with self._core.blobs.open(blob) as source:
                kernel.clone(source.fd, offset, length, self._fd, start)
        except OSError as error:
            if error.errno in _CANNOT_SHARE:
                return False
            raise failure.of(error, "sharing blocks with a derived copy") from error
        self.blobs.add(blob)
        return True

    def write(self, start: int, data: memoryview) -> None:
        self.check_way()
        with failure.mapped("writing a derived copy"):
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done : done + PIECE_BYTES], start + done)
            if len(data) >= WRITEBACK_BYTES:
                kernel.start_writeback(self._fd, start, len(data))
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= _UNSYNCED_BYTES:
                os.fdatasync(self._fd)
                self._unsynced_bytes = 0
        first = max(start // self._block_bytes, self._next_block)
        self._next_block = -(-(start + len(data)) // self._block_bytes)
        self._blocks_written += max(0, self._next_block - first)

    def sync(self) -> None:
        """Its bytes last. Closes it."""
        self.check_way()
        try:
            with failure.mapped("syncing a derived copy"):
                os.fdatasync(self._fd)
                blocks = os.fstat(self._fd).st_blocks * 512
                # Of a file that shares, st_blocks counts what it shares too.
                self.physical_bytes = self.bytes_written if self.blobs else blocks
        finally:
            self._close()

    def abandon(self) -> None:
        """Give it up, at any point before it is recorded."""
        self._close()
        with suppress(OSError):
            os.unlink(self.temporary)
        self.ended()

    def ended(self) -> None:
        """It is recorded, or given up."""
        with self._core.state, suppress(ValueError):
            self._core.unfinished.remove(self)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def can_share(core: Core) -> bool:
    """Whether the store's file system lets files share blocks: tried out, not looked up."""
    block = block_bytes(core)
    names = [
        f"{core.layout.derived_folder}/{TEMPORARY_PREFIX}share-{threading.get_ident()}-{which}"
        for which in "ab"
    ]
    fds: list[int] = []
    try:
        with failure.mapped("trying whether files can share blocks"):
            for name in names:
                fds.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            os.pwrite(fds[0], b"\1" * block, 0)
        try:
            kernel.clone(fds[0], 0, block, fds[1], 0)
        except OSError as error:
            if error.errno in _CANNOT_SHARE:
                return False
            raise failure.of(error, "trying whether files can share blocks") from error
        return True
    finally:
        for fd in fds:
            os.close(fd)
        for name in names:
            with suppress(OSError):
                os.unlink(name)


def block_bytes(core: Core) -> int:
    """The unit in which the store's file system gives out space and shares it."""
    with failure.mapped("asking for the block size"):
        return os.statvfs(core.layout.derived_folder).f_bsize
