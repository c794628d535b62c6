"""A remote object fetched into a local file, in parallel ahead of its reader, resumable.

A compressed tar can only be read from its beginning; were it streamed straight from the network, a
broken creation would fetch everything again. So it is fetched in parts into the creation's spool
directory, and read from there as the parts arrive. Beside the data lies a journal with one record per
part: its number and the fingerprint of its bytes. A later opening compares what is on the disk with
the journal and fetches only what is missing or different, so neither file needs to be synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import tempfile
import threading
from collections import deque

import xxhash
from blake3 import blake3

from ckptfs.errors import CkptfsError, Interrupted, StoreError, StoreFull
from ckptfs.source.base import ByteStream, SourceFile
from ckptfs.source.limits import Opening
from ckptfs.source.listing import check_size

#: One request each; ranges of 4 to 16 MiB are the fastest.
PART_BYTES = 8 << 20
#: Requests in flight. Each thread holds one part in memory.
THREADS = 6
_RECORD = struct.Struct("<QQ")


class Spool:
    """The object's bytes (:class:`~ckptfs.source.base.Ranged`); reads wait for what has not arrived."""

    def __init__(self, opening: Opening, file: SourceFile, label: str) -> None:
        assert file.ranged is not None
        self.size_bytes = file.ranged.size_bytes
        self._ranged = file.ranged
        self._opening = opening
        self._label = label
        self._changed = threading.Condition()
        self._arrived = bytearray((self.size_bytes + PART_BYTES - 1) // PART_BYTES)
        self._arrived_bytes = 0
        self._waiting = deque(range(len(self._arrived)))
        self._error: BaseException | None = None
        self._closed = False
        self._files = _Files(opening, file, label)
        self._journal = self._files.read_journal()
        try:
            self._files.reserve(self.size_bytes)
            self._report()
        except BaseException:
            self._files.close()
            raise
        self._threads = [
            threading.Thread(target=self._fetch_parts, name="source-spool", daemon=True)
            for _ in range(min(THREADS, len(self._arrived)))
        ]
        for thread in self._threads:
            thread.start()

    def read_at(self, offset: int, buffer: memoryview) -> None:
        if not buffer:
            return
        first, last = offset // PART_BYTES, (offset + len(buffer) - 1) // PART_BYTES
        for number in range(first, last + 1):
            self._wait_for(number)
        self._files.read_at(offset, buffer)

    def _wait_for(self, number: int) -> None:
        with self._changed:
            while not self._arrived[number]:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise Interrupted(f"{self._label}: the source was closed while it was being fetched")
                self._changed.wait()

    def _fetch_parts(self) -> None:
        try:
            buffer = memoryview(bytearray(PART_BYTES))
            while True:
                with self._changed:
                    if self._closed or self._error is not None or not self._waiting:
                        return
                    number = self._waiting.popleft()
                self._opening.check_cancelled()
                start = number * PART_BYTES
                part = buffer[: min(PART_BYTES, self.size_bytes - start)]
                self._bring(number, start, part)
                with self._changed:
                    self._arrived[number] = 1
                    self._arrived_bytes += len(part)
                    self._changed.notify_all()
                self._report()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _bring(self, number: int, start: int, part: memoryview) -> None:
        if self._files.holds(start, part, self._journal.get(number)):
            return
        self._ranged.read_at(start, part)
        self._files.write_part(number, start, part)

    def _report(self) -> None:
        if self._opening.report is not None:
            self._opening.report(self._arrived_bytes, self.size_bytes)

    def stop(self) -> None:
        """Let go of whoever waits here. The files stay open until :meth:`close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop fetching. What arrived stays in the spool directory, which the engine removes."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._files.close()


class SpooledStream:
    """As :class:`Spool`, for a server that cannot answer ranges: fetched whole before it is read.

    Its size may be known only then, and a broken fetch begins anew.
    """

    def __init__(self, opening: Opening, file: SourceFile, label: str) -> None:
        assert file.stream is not None
        self._files = _Files(opening, file, label)
        try:
            self._files.forget()
            self._files.reserve(file.size_bytes or 0)
            stream = file.stream()
            try:
                self.size_bytes = self._fetch(opening, stream, file.size_bytes or 0, label)
            finally:
                stream.close()
        except BaseException:
            self._files.close()
            raise

    def _fetch(self, opening: Opening, stream: ByteStream, total_bytes: int, label: str) -> int:
        buffer = memoryview(bytearray(PART_BYTES))
        done = 0
        while got := stream.readinto(buffer):
            self._files.write_at(done, buffer[:got])
            done += got
            check_size(label, done, opening.limits)
            if opening.report is not None:
                opening.report(done, total_bytes)
            opening.check_cancelled()
        return done

    def read_at(self, offset: int, buffer: memoryview) -> None:
        self._files.read_at(offset, buffer)

    def stop(self) -> None:
        """Nobody waits here: everything has arrived."""

    def close(self) -> None:
        self._files.close()


def spooled(opening: Opening, file: SourceFile, label: str) -> Spool | SpooledStream:
    return SpooledStream(opening, file, label) if file.ranged is None else Spool(opening, file, label)


class _Files:
    """The data and the journal in the spool directory, named for the pinned version."""

    def __init__(self, opening: Opening, file: SourceFile, label: str) -> None:
        self._label = label
        self._own = None if opening.spool else tempfile.TemporaryDirectory(prefix="ckptfs-spool-")
        directory = opening.spool or (self._own.name if self._own else "")
        name = "archive-" + blake3(f"{label}\0{file.pin}".encode("utf-8", "surrogateescape")).hexdigest(8)
        self._lock = threading.Lock()
        self._data = self._journal = -1
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            for other in os.listdir(directory):
                if other.startswith("archive-") and not other.startswith(name):
                    os.unlink(os.path.join(directory, other))  # of a version that is not there any more
            path = os.path.join(directory, name)
            self._data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._journal = os.open(
                path + ".parts", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            self.close()
            raise self._at_door(error) from error

    def read_journal(self) -> dict[int, int]:
        """Part numbers with the fingerprints of their bytes. Later records replace earlier ones."""
        with open(os.dup(self._journal), "rb") as journal:
            data = journal.read()
        whole = len(data) // _RECORD.size * _RECORD.size
        os.ftruncate(self._journal, whole)  # a crash may have torn the last one
        return dict(_RECORD.iter_unpack(data[:whole]))

    def forget(self) -> None:
        os.ftruncate(self._journal, 0)
        os.ftruncate(self._data, 0)

    def reserve(self, size_bytes: int) -> None:
        """Fail now if the disk has no room, not in hours."""
        status = os.fstat(self._data)
        missing = size_bytes - status.st_blocks * 512
        disk = os.fstatvfs(self._data)
        free = disk.f_bavail * disk.f_frsize
        if missing > free:
            raise StoreFull(
                f"{self._label} must be fetched before it can be unpacked: that takes {missing:,} bytes and "
                f"the store's disk has {free:,} free; make room, or unpack the archive beforehand",
                missing_bytes=missing,
            )

    def write_part(self, number: int, start: int, part: memoryview) -> None:
        self.write_at(start, part)
        record = _RECORD.pack(number, xxhash.xxh3_64_intdigest(part))
        try:
            with self._lock:
                os.write(self._journal, record)
        except OSError as error:
            raise self._at_door(error) from error

    def write_at(self, offset: int, data: memoryview) -> None:
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._data, data[done:], offset + done)
        except OSError as error:
            raise self._at_door(error) from error

    def read_at(self, offset: int, buffer: memoryview) -> None:
        try:
            done = 0
            while done < len(buffer):
                got = os.preadv(self._data, [buffer[done:]], offset + done)
                if not got:
                    raise StoreError(f"{self._label}: its spool file in the store became shorter")
                done += got
        except OSError as error:
            raise self._at_door(error) from error

    def holds(self, start: int, part: memoryview, fingerprint: int | None) -> bool:
        """Whether a part that the journal knows is on the disk as it arrived. Overwrites ``part``."""
        if fingerprint is None or start + len(part) > os.fstat(self._data).st_size:
            return False
        self.read_at(start, part)
        return xxhash.xxh3_64_intdigest(part) == fingerprint

    def _at_door(self, error: OSError) -> CkptfsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"{self._label} does not fit: the store's disk is full; remove checkpoints")
        return StoreError(
            f"{self._label} cannot be fetched into the store's spool directory: "
            f"{os.strerror(error.errno or errno.EIO)}"
        )

    def close(self) -> None:
        for descriptor in (self._data, self._journal):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._data = self._journal = -1
        if self._own is not None:
            self._own.cleanup()
