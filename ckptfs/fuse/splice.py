"""Reads of what is in the page cache, answered by the extension without Python (_splice.c says how).

This module decides which files it may answer for: those that are open and that somebody goes on to read.
It is optional: where the extension is absent, or pyfuse3 does not ask it, reads are WarmReads' as ever.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import OrderedDict

from ckptfs.engine.reader import FileReader
from ckptfs.errors import CkptfsError
from ckptfs.fuse import channel

#: An extent takes 24 bytes, and laying out a file of so many takes 20 ms.
_EXTENTS_LIMIT = 1 << 16

#: In the extension's table: an extent that no blob has (zeros).
_NOWHERE = (1 << 64) - 1


class SplicedReads:
    """``blobs``: how many blobs are kept open for it; 0 switches it off. The files that were taken on
    first make room for new ones."""

    def __init__(self, blobs: int) -> None:
        self._limit = blobs if not channel.missing() else 0
        self._kept: OrderedDict[int, contextlib.ExitStack] = OrderedDict()  # by handle
        self._blobs: dict[int, int] = {}  # handle -> how many
        self._blobs_kept = 0
        channel.reads_clear()

    def read(self, handle: int, reader: FileReader | None, end: int) -> None:
        """A read up to ``end`` came to Python: if there is more of the file to be read, the extension
        takes it from here. ``reader``: None for a handle that is not known to be open."""
        if handle in self._kept or reader is None or end >= reader.size_bytes or not self._limit:
            return
        blobs = reader.blobs()
        if not blobs or len(blobs) > self._limit or reader.extent_count > _EXTENTS_LIMIT:
            return
        while self._blobs_kept + len(blobs) > self._limit:
            self._drop(next(iter(self._kept)))
        with contextlib.ExitStack() as stack:
            try:
                fds = array("q", [stack.enter_context(reader.open_blob(blob)).fd for blob in blobs])
            except (OSError, CkptfsError):
                return  # whoever reads there will be told
            index = {0: _NOWHERE, **{blob: at for at, blob in enumerate(blobs)}}
            extents = array("Q")
            for start, blob, offset in reader.extents():
                extents.extend((start, index[blob], offset))
            if not channel.reads_keep(handle, reader.size_bytes, extents.tobytes(), fds.tobytes()):
                # Not asked again while the file is open: what cannot be mapped will not be the next time.
                fds, blobs = array("q"), []
                stack.close()
            self._kept[handle] = stack.pop_all()
            self._blobs[handle] = len(blobs)
            self._blobs_kept += len(blobs)

    def release(self, handle: int) -> None:
        """The file's last handle was closed."""
        if handle in self._kept:
            self._drop(handle)

    def close(self) -> None:
        while self._kept:
            self._drop(next(iter(self._kept)))
        channel.reads_clear()

    def counters(self) -> dict[str, int]:
        found = channel.reads_statistics()
        return {
            "reads_spliced": found.get("answered", 0),
            "spliced_bytes": found.get("answered_bytes", 0),
            "spliced_files": found.get("kept", 0),
        }

    def _drop(self, handle: int) -> None:
        channel.reads_drop(handle)
        self._kept.pop(handle).close()
        self._blobs_kept -= self._blobs.pop(handle)
