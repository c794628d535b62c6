"""Content whose cuts are not known before all of it has arrived."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from ckptfs.errors import SourceChanged, StoreError
from ckptfs.store import commit, rows
from ckptfs.store.index import Table

if TYPE_CHECKING:
    from ckptfs.store.draft import Draft


class LandingBlob:
    """The bytes of one file at their own offsets, before they are cut.

    A resumed file lands again in the blob that it has. Chunks that an earlier attempt recorded there may
    be in use elsewhere by now, so their bytes are compared, never written again.
    """

    def __init__(self, draft: Draft, blob: int, *, fresh: bool) -> None:
        self._draft = draft
        self._blob = blob
        self.size = 0
        draft.dirty.add(blob)
        #: (start, end) of what is recorded, in order.
        self._recorded: list[tuple[int, int]] = []
        if not fresh:
            commit.commit(draft.core)
            with draft.core.index.read() as reader:
                self._recorded = [
                    (rows.place_offset(key), rows.place_offset(key) + rows.place(body)[1])
                    for key, body in reader.scan(Table.BLOB_CHUNKS, rows.blob_key(blob))
                ]

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write, from one thread. Raises :class:`SourceChanged` where recorded bytes differ."""
        self._draft.check()
        at, end = offset, offset + len(data)
        first = bisect_right(self._recorded, (offset, offset)) - 1
        for start, stop in self._recorded[max(first, 0) :]:
            if start >= end:
                break
            if stop <= at:
                continue
            if start > at:
                self._draft.core.blobs.write(self._blob, at, data[at - offset : start - offset])
            at = max(at, start)
            self._compare(at, data[at - offset : min(stop, end) - offset])
            at = min(stop, end)
        if at < end:
            self._draft.core.blobs.write(self._blob, at, data[at - offset :])
        self.size = max(self.size, end)

    def _compare(self, offset: int, data: memoryview) -> None:
        there = bytearray(len(data))
        self.read_at(offset, memoryview(there))
        if there != data:
            raise SourceChanged(
                "the source has other bytes than when it was brought in before: create it again"
            )

    def read_at(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with what landed at the offset."""
        if self._draft.core.blobs.read(self._blob, offset, buffer) != len(buffer):
            raise StoreError("less was read back than was written: check the disk and the kernel log")
