"""The one file of the disk that has all bytes of a checkpoint's file: its blob, or its derived copy."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ckptfs.engine.reader import FileReader
from ckptfs.errors import CkptfsError
from ckptfs.store import Store


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
