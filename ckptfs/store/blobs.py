"""Blob files: made, written at offsets, punched, opened. Knows nothing of chunks or the index.

Descriptors are kept in a bounded least-recently-used cache; one that is in use is never closed, whoever
evicts it. Readers get read-only descriptors.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType

from ckptfs.store import failure, kernel
from ckptfs.store.layout import Layout

#: Idle descriptors kept open. Each costs a kernel file object only; the limit keeps a store of many
#: blobs within an ordinary RLIMIT_NOFILE of 1024 together with everything else that a daemon opens.
DEFAULT_OPEN_BLOBS = 256

#: How much one read or pwrite takes; for reads ckptfs/source/local.py says why. A pwrite ends at multiples of
#: this in the file: the kernel caches what
#: one call writes in folios as large as the call and its alignment allow (256 KiB at an odd offset become
#: 128, 64, 32, ... KiB in scattered memory), and who reads or maps them pays for each until they leave the
#: cache: of a copy made by cp (64 KiB) a fresh blob reached 0.98 read and 1.02 mapped at odd offsets, 1.02
#: and 1.11 like this. Very large ones come from memory that was never touched before, which is slow on
#: virtual machines: 2 GiB in calls of 4 MiB took 3-14 s, in calls of 64-512 KiB 0.5-1.8 s (ext4, Linux 6.18).
PIECE_BYTES = 128 << 10

#: Ask for early write-back only where it pays for the system call.
WRITEBACK_BYTES = 256 << 10

#: A hole up to the end of a blob is asked for this much further: only then does the last, partial block
#: go back too.
_PAST_THE_END = 1 << 20


class BlobHandle:
    """A blob's descriptor, held open until the ``with`` ends."""

    __slots__ = ("_doomed", "_files", "_key", "_uses", "fd")

    def __init__(self, files: BlobFiles, key: tuple[int, bool], fd: int) -> None:
        self._files = files
        self._key = key
        self._uses = 0
        self._doomed = False
        self.fd = fd

    def __enter__(self) -> BlobHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._files._give_back(self)


class BlobFiles:
    """All blob files of a store. Thread-safe."""

    def __init__(self, layout: Layout, open_limit: int = DEFAULT_OPEN_BLOBS) -> None:
        self._layout = layout
        #: Asked when the disk is full, with how much is missing: whether the write is worth another try.
        self.make_room: Callable[[int], bool] = lambda wanted_bytes: False
        self._open_limit = open_limit
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, bool], BlobHandle] = OrderedDict()

    def create(self, blob: int, size_bytes: int) -> None:
        """Make a blob file of a size, all hole."""
        path = self._layout.blob(blob)
        with failure.mapped("making a blob"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = self._with_room(1, os.open, path, flags, 0o600)
            try:
                os.ftruncate(fd, size_bytes)
            except BaseException:
                os.close(fd)
                os.unlink(path)
                raise
        self._adopt((blob, True), fd).close()

    def restore(self, blob: int) -> None:
        """Make a blob file anew whose file is gone; what somebody else has made meanwhile stays as it is."""
        with failure.mapped("making a blob"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            fd = self._with_room(1, os.open, self._layout.blob(blob), flags, 0o600)
        self._adopt((blob, True), fd).close()

    def resize(self, blob: int, size_bytes: int) -> None:
        with self.writable(blob) as handle, failure.mapped("sizing a blob"):
            os.ftruncate(handle.fd, size_bytes)

    def extend(self, blob: int, size_bytes: int) -> None:
        """Give a blob that was cut short its size back."""
        with self.writable(blob) as handle, failure.mapped("sizing a blob"):
            if os.fstat(handle.fd).st_size < size_bytes:
                os.ftruncate(handle.fd, size_bytes)

    def open(self, blob: int) -> BlobHandle:
        """Open for reading; close the handle when done (or use it as a context manager)."""
        return self._take((blob, False))

    def writable(self, blob: int) -> BlobHandle:
        return self._take((blob, True))

    def write(self, blob: int, offset: int, data: memoryview) -> None:
        with self.writable(blob) as handle, failure.mapped("writing a blob"):
            done = 0
            length = len(data)
            while done < length:
                stop = done + PIECE_BYTES - (offset + done) % PIECE_BYTES
                done += self._with_room(length - done, os.pwrite, handle.fd, data[done:stop], offset + done)
            if length >= WRITEBACK_BYTES:
                kernel.start_writeback(handle.fd, offset, length)

    def _with_room(self, wanted_bytes: int, call: Callable[..., int], *arguments: object) -> int:
        """Make a system call, again where the disk is full and room could be made."""
        while True:
            try:
                return call(*arguments)
            except OSError as error:
                if error.errno not in failure.FULL or not self.make_room(wanted_bytes):
                    raise

    def read(self, blob: int, offset: int, buffer: memoryview) -> int:
        """Fill the buffer; the number of bytes got is smaller only at the end of the blob."""
        with self.open(blob) as handle, failure.mapped("reading a blob"):
            done = 0
            while done < len(buffer):
                got = os.preadv(handle.fd, [buffer[done : done + PIECE_BYTES]], offset + done)
                if not got:
                    break
                done += got
            return done

    def sync(self, blobs: list[int], created: list[int]) -> dict[int, int]:
        """Make the blobs' bytes, and the names of the created ones, last; their physical sizes in bytes.

        Write-back of all is waited for before the first fdatasync: the file system then commits its
        journal once for all of them, not once for each.
        """
        physical: dict[int, int] = {}
        with failure.mapped("syncing blobs"):
            if len(blobs) > 1:
                for blob in blobs:
                    with self.writable(blob) as handle:
                        kernel.wait_writeback(handle.fd)
            for blob in blobs:
                with self.writable(blob) as handle:
                    os.fdatasync(handle.fd)
                    physical[blob] = os.fstat(handle.fd).st_blocks * 512
            for folder in sorted({self._layout.blob_folder(blob) for blob in created}):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        return physical

    def punch(self, blob: int, gaps: list[tuple[int, int]]) -> int:
        """Give back ``(start, end)`` ranges; an end of -1 is the end of the blob. Its physical size now."""
        with self.writable(blob) as handle, failure.mapped("punching a blob"):
            size = os.fstat(handle.fd).st_size
            for start, end in gaps:
                stop = size + _PAST_THE_END if end < 0 else end
                _punch(handle.fd, start, stop)
            return os.fstat(handle.fd).st_blocks * 512

    def in_use(self, blob: int) -> bool:
        """Whether anybody has the blob open or mapped, in this process or through the kernel."""
        self.forget(blob)
        with failure.mapped("asking who uses a blob"):
            try:
                return kernel.in_use(self._layout.blob(blob))
            except FileNotFoundError:
                return False

    def physical_bytes(self, blob: int) -> int:
        """What a blob takes on the disk; 0 when there is no such file."""
        try:
            return os.stat(self._layout.blob(blob)).st_blocks * 512
        except FileNotFoundError:
            return 0

    def size_bytes(self, blob: int) -> int:
        """How long a blob's file is; 0 when there is none, and then what is cached of it is closed."""
        try:
            return os.stat(self._layout.blob(blob)).st_size
        except FileNotFoundError:
            self.forget(blob)
            return 0

    def unlink(self, blob: int) -> None:
        """Remove a blob file if it is there. Those who hold it open keep reading."""
        self.forget(blob)
        with failure.mapped("removing a blob"):
            try:
                os.unlink(self._layout.blob(blob))
            except FileNotFoundError:
                return

    def forget(self, blob: int) -> None:
        """Close what is cached of a blob."""
        with self._lock:
            for key in ((blob, False), (blob, True)):
                handle = self._open.pop(key, None)
                if handle is not None:
                    self._doom(handle)

    def close(self) -> None:
        with self._lock:
            for handle in self._open.values():
                self._doom(handle)
            self._open.clear()

    def _take(self, key: tuple[int, bool]) -> BlobHandle:
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:
                self._open.move_to_end(key)
                handle._uses += 1
                return handle
        flags = os.O_RDWR if key[1] else os.O_RDONLY | os.O_NOATIME
        with failure.mapped(f"opening blob {key[0]:016x}"):
            fd = os.open(self._layout.blob(key[0]), flags | os.O_CLOEXEC)
        return self._adopt(key, fd)

    def _adopt(self, key: tuple[int, bool], fd: int) -> BlobHandle:
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:  # another thread was faster
                os.close(fd)
            else:
                handle = self._open[key] = BlobHandle(self, key, fd)
            self._open.move_to_end(key)
            handle._uses += 1
            while len(self._open) > self._open_limit:
                _, oldest = self._open.popitem(last=False)
                self._doom(oldest)
            return handle

    def _give_back(self, handle: BlobHandle) -> None:
        with self._lock:
            handle._uses -= 1
            if handle._doomed and handle._uses == 0:
                os.close(handle.fd)

    def _doom(self, handle: BlobHandle) -> None:
        handle._doomed = True
        if handle._uses == 0:
            os.close(handle.fd)


def _punch(fd: int, start: int, stop: int) -> None:
    """On a full disk whole blocks only: to zero a part of one takes a new one on btrfs, and wherever it is
    shared; and a removal is what gives room back."""
    try:
        kernel.punch(fd, start, stop - start)
    except OSError as error:
        block = os.fstatvfs(fd).f_bsize
        first, last = -(-start // block) * block, stop // block * block
        if error.errno not in failure.FULL or (first, last) == (start, stop):
            raise
        if first < last:
            kernel.punch(fd, first, last - first)
