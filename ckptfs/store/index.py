"""The index: LMDB tables with checked rows, one writer, readers anywhere. The only door to lmdb.

Every value ends in the xxh3 of its key and body, because LMDB does not check what it reads back. LMDB's
own errors leave here as :class:`StoreDamaged`, :class:`StoreFull` or :class:`StoreError`.

Never ``writemap`` (a full disk would be SIGBUS) and no readahead (the tables are read at random).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

import lmdb
from xxhash import xxh3_64_digest

from ckptfs.errors import StoreDamaged, StoreError, StoreFull
from ckptfs.store import kernel, rows

REMEDY = "stop the daemon and run `ckptfsd rebuild --store DIR`"

#: Address space, not disk: the file grows as rows come. 32 GiB index about 100 million chunks.
DEFAULT_MAP_SIZE_BYTES = 32 << 30

#: Disk space held behind the end of the index, so that a removal can be recorded on a full disk.
HEADROOM_BYTES = 8 << 20

_FULL = (
    "the store's disk is full (writing the index): remove checkpoints that nobody needs, "
    "or give the store a larger disk"
)

_CHECKSUM_BYTES = 8
_READERS = 512
_COUNTERS_KEY = b"counters"


class Table(IntEnum):
    """The tables. In the environment each is named as here, in lower case (docs/format.md)."""

    META = 0  # "counters" -> Counters
    CHECKPOINTS = 1  # ordinal -> CheckpointRow
    NAMES = 2  # name -> ordinal
    OWNERS = 3  # ordinal, entry -> blob shaped like that file
    CHUNKS = 4  # digest -> length, blob, offset, fingerprint, refs
    BLOB_CHUNKS = 5  # blob, offset -> digest, length
    BLOBS = 6  # blob -> BlobRow
    DRAFTS = 7  # ordinal -> DraftRow
    DRAFT_FILES = 8  # ordinal, file key -> DraftFileRow
    DRAFT_CHUNKS = 9  # ordinal, file key, chunk index -> digest, length
    LEASES = 10  # job NUL ordinal -> LeaseRow
    PENDING = 11  # kind, number or digest -> what a crash must not forget
    DERIVED = 12  # ordinal, entry -> DerivedRow
    NATIVES = 13  # ordinal -> NativesRow


#: Tables that a store which was made before them lacks: they are made when it is opened.
_LATER = (Table.DERIVED, Table.NATIVES)


def seal(key: bytes, body: bytes) -> bytes:
    return body + xxh3_64_digest(key + body)


def _opened(table: Table, key: bytes, value: bytes) -> bytes:
    body = value[:-_CHECKSUM_BYTES]
    if xxh3_64_digest(key + body) != value[-_CHECKSUM_BYTES:]:
        raise StoreDamaged(
            f"the index is damaged (a row of its table {table.name.lower()} fails its checksum): {REMEDY}"
        )
    return body


class Reader:
    """One consistent view of the tables. Valid inside the ``with`` that made it."""

    def __init__(self, txn: Any, handles: list[Any]) -> None:
        self._txn = txn
        self._handles = handles

    def get(self, table: Table, key: bytes) -> bytes | None:
        value = self._txn.get(key, db=self._handles[table])
        return None if value is None else _opened(table, key, value)

    def scan(self, table: Table, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """``(key, body)`` of every row whose key begins with the prefix, in key order."""
        with self._txn.cursor(self._handles[table]) as cursor:
            if not (cursor.set_range(prefix) if prefix else cursor.first()):
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key, _opened(table, key, value)

    def count(self, table: Table) -> int:
        return int(self._txn.stat(self._handles[table])["entries"])

    def counters(self) -> rows.Counters:
        body = self.get(Table.META, _COUNTERS_KEY)
        if body is None:
            raise StoreDamaged(f"the index is empty or damaged (it has no counters): {REMEDY}")
        return rows.counters(body)


class Writer(Reader):
    """The one write transaction. ``total`` holds the counters; what it says at the end is committed."""

    def __init__(self, txn: Any, handles: list[Any]) -> None:
        super().__init__(txn, handles)
        self.total = self.counters()
        self._before = self.total

    def put(self, table: Table, key: bytes, body: bytes) -> None:
        self._txn.put(key, seal(key, body), db=self._handles[table])

    def put_all(self, table: Table, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Put many rows; fastest when they come in key order."""
        with self._txn.cursor(self._handles[table]) as cursor:
            cursor.putmulti([(key, seal(key, body)) for key, body in items])

    def delete(self, table: Table, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._handles[table]))

    def delete_all(self, table: Table, prefix: bytes, limit: int = 1 << 62) -> int:
        """Delete up to ``limit`` rows whose keys begin with the prefix; how many there were."""
        gone = 0
        with self._txn.cursor(self._handles[table]) as cursor:
            found = cursor.set_range(prefix)
            while found and gone < limit and cursor.key().startswith(prefix):
                found = cursor.delete()
                gone += 1
        return gone

    def add(self, *, chunks: int = 0, stored_bytes: int = 0, physical_bytes: int = 0) -> None:
        self.total = self.total._replace(
            chunks=self.total.chunks + chunks,
            stored_bytes=self.total.stored_bytes + stored_bytes,
            physical_bytes=self.total.physical_bytes + physical_bytes,
        )

    def finish(self) -> None:
        if self.total != self._before:
            self.put(Table.META, _COUNTERS_KEY, rows.pack_counters(self.total))


class Index:
    """An open index. Transactions are short; nothing blocks inside one but the index itself."""

    def __init__(self, folder: str, *, map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES, create: bool) -> None:
        # On btrfs every change of a mapped page takes new room, and without any the answer is SIGBUS: a full
        # disk would end whoever reads. So both files are written in place. Nobody else has the lock file
        # open (the store is locked), and an old one may be of the other kind: LMDB makes it anew.
        if kernel.write_in_place(folder):
            with suppress(FileNotFoundError):
                os.unlink(f"{folder}/lock.mdb")
        with _foreign():
            self._env = lmdb.open(
                folder,
                map_size=map_size_bytes,
                max_dbs=len(Table) + 4,
                max_readers=_READERS,
                create=create,
                readahead=False,
                mode=0o600,
            )
        try:
            with _foreign(), self._env.begin(write=True) as txn:
                self._handles = [
                    self._env.open_db(t.name.lower().encode(), txn=txn, create=create or t in _LATER)
                    for t in Table
                ]
                if create:
                    first = rows.pack_counters(rows.Counters(1, 1, 0, 0, 0))
                    sealed = seal(_COUNTERS_KEY, first)
                    txn.put(_COUNTERS_KEY, sealed, db=self._handles[Table.META], overwrite=False)
            self._data = os.open(f"{folder}/data.mdb", os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            self._env.close()
            raise
        self.keep_headroom()

    def close(self) -> None:
        os.close(self._data)
        self._env.close()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with _foreign(), self._env.begin() as txn:
            yield Reader(txn, self._handles)

    def lookup(self, table: Table, key: bytes) -> bytes | None:
        """One row in a view of its own. (A put does this for every chunk: without the context managers
        it takes a third of the time.)"""
        try:
            txn = self._env.begin()
            try:
                value = txn.get(key, db=self._handles[table])
            finally:
                txn.abort()
        except lmdb.Error as error:
            raise _ours(error) from error
        return None if value is None else _opened(table, key, value)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """The write transaction: committed and on the disk when the block ends, undone if it raises."""
        try:
            with self._env.begin(write=True) as txn:
                writer = Writer(txn, self._handles)
                yield writer
                writer.finish()
        except lmdb.Error as error:
            if getattr(error, "code", 0) == errno.EIO and self._disk_is_full():
                raise StoreFull(_FULL) from error  # LMDB says EIO when a write was cut short
            raise _ours(error) from error

    def _disk_is_full(self) -> bool:
        status = os.fstatvfs(self._data)
        return status.f_bavail * status.f_frsize < HEADROOM_BYTES

    def keep_headroom(self) -> None:
        """Allocate disk blocks behind the end of the index. Best effort: a full disk keeps what it has."""
        status = os.fstat(self._data)
        if status.st_blocks * 512 - status.st_size < HEADROOM_BYTES // 2:
            with suppress(OSError):
                kernel.reserve(self._data, status.st_size, HEADROOM_BYTES)


@contextmanager
def _foreign() -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise _ours(error) from error


def _ours(error: lmdb.Error) -> StoreError:
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(
            "the index has reached its map size: raise store.map_size_bytes in the configuration"
        )
    if isinstance(error, lmdb.DiskError) or code in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(_FULL)
    if code in (errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOMEM, errno.EMFILE):
        return StoreError(f"the index cannot be used ({error}): check the disk and the kernel log")
    return StoreDamaged(f"the index is damaged ({error}): {REMEDY}")
