"""The one file of the disk that has all bytes of a checkpoint's file: its blob, or its derived copy."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import structlog

from ckptfs.engine.nodes import split
from ckptfs.engine.reader import FileReader
from ckptfs.errors import CkptfsError
from ckptfs.store import Store

log = structlog.get_logger(__name__)

Native = Callable[[], AbstractContextManager[int]]


def native_file(store: Store, inode: int, reader: FileReader) -> Native | None:
    """What gives a descriptor of the file, for as long as it is entered; None when it is neither whole nor
    has a derived copy. Copies come and go: to be asked at each open."""
    if reader.native_blob:
        return partial(blob_file, store, reader)
    ordinal, node = split(inode)
    try:
        size = store.copy_size(ordinal, node - 1)
    except CkptfsError as error:  # nobody needs the copy
        log.error("a derived copy is not used", inode=inode, reason=str(error))
        return None
    return CopyFile(store, ordinal, node - 1, reader.size_bytes) if size == reader.size_bytes else None


def keeps_damage(store: Store, inode: int, reader: FileReader, backing: object) -> bool:
    """Whether those who have the file open read a derived copy that went with damage. ``backing``: what
    :func:`native_file` said when they opened it."""
    if reader.native_blob:  # which is mended in place
        return False
    copy = backing if isinstance(backing, CopyFile) else None
    # What an earlier process opened may be any copy that the file ever had: all damage that was found in
    # this process counts. What that one found we do not know, and refuse nothing for it.
    since = copy.damage_found if copy else 0
    if store.damage_found == since:
        return False
    ordinal, node = split(inode)
    if store.last_damage(ordinal, node - 1, reader.blobs()) <= since:
        return False
    return not (copy and copy.is_there())


@contextlib.contextmanager
def blob_file(store: Store, reader: FileReader) -> Iterator[int]:
    """A descriptor of a file's own blob. OSError where that is not what it was: reads then come to us, and
    say what is wrong."""
    try:
        handle = store.blob(reader.native_blob)
    except CkptfsError as error:
        raise OSError(error.errno, str(error)) from error
    with handle:
        if os.fstat(handle.fd).st_size != reader.size_bytes:
            # The kernel would answer the end of the file where bytes are missing.
            raise OSError(errno.EIO, f"blob {reader.native_blob:016x} has not the size of the file")
        yield handle.fd


class CopyFile:
    """The derived copy that a file has now."""

    def __init__(self, store: Store, ordinal: int, entry: int, size_bytes: int) -> None:
        #: Damage that was found later may be in it.
        self.damage_found = store.damage_found
        self._store = store
        self._key = ordinal, entry
        self._size_bytes = size_bytes
        self._inode = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[int]:
        """OSError where the copy has just gone, or is not what it was."""
        fd = self._store.open_copy(*self._key)
        try:
            status = os.fstat(fd)
            if status.st_size != self._size_bytes:
                raise OSError(errno.EIO, "the derived copy has not the size of the file")
            self._inode = status.st_ino
            yield fd
        finally:
            os.close(fd)

    def is_there(self) -> bool:
        """Whether the copy that was opened is the file's copy still. (Its number is no other file's: the
        kernel has it open.)"""
        try:
            if self._store.copy_size(*self._key) is None:  # the row goes first, and a file may stay
                return False
            fd = self._store.open_copy(*self._key, use=False)
        except (OSError, CkptfsError):
            return False
        try:
            return os.fstat(fd).st_ino == self._inode
        finally:
            os.close(fd)
