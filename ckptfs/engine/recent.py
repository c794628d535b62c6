"""Where the bytes of files lie that were open lately, so that opening one again asks the index for nothing.

Of a file of 1 GiB the index is asked 400 times: 3 ms of a CPU, which a job that reads the file past the
daemon would pay for each time that it opens it. What is remembered stays true: a chunk does not move while a
checkpoint uses it, also when it is mended, and the inode number of a checkpoint that is gone is never that of
another. Only damage must be seen, so what was looked up before some was found is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict

from ckptfs.engine.reader import FileReader
from ckptfs.store import Store

#: Files, and runs of bytes of one (24 bytes of memory each; a whole file has one).
RECENT_FILES = 4096
MOST_EXTENTS = 64


class RecentReaders:
    def __init__(self, store: Store, most: int = RECENT_FILES) -> None:
        self._store = store
        self._most = most
        self._readers: OrderedDict[int, FileReader] = OrderedDict()

    def __len__(self) -> int:
        return len(self._readers)

    def keep(self, inode: int, reader: FileReader) -> None:
        """The file's last handle is closed."""
        if reader.extent_count <= MOST_EXTENTS:
            self._readers[inode] = reader
            self._readers.move_to_end(inode)
            if len(self._readers) > self._most:
                self._readers.popitem(last=False)

    def take(self, inode: int) -> FileReader | None:
        """The file is opened."""
        reader = self._readers.pop(inode, None)
        return reader if reader and reader.damage_found == self._store.damage_found else None
