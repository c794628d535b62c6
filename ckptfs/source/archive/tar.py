"""A plain tar: its members are ranges of it, so they can be read in any order, and remote ones without
fetching what lies between."""

from __future__ import annotations

import bisect

from ckptfs.errors import SourceCorrupt
from ckptfs.model.names import show_path
from ckptfs.source.archive.codec import Expansion
from ckptfs.source.archive.members import (
    LONGEST_HEADER_BYTES,
    check_rest,
    is_root,
    raw,
    runs_of,
    walk,
    without_content,
)
from ckptfs.source.base import Ranged, SourceFile
from ckptfs.source.blocks import Blocks
from ckptfs.source.limits import Opening
from ckptfs.source.listing import Listing
from ckptfs.source.seekable import SeekableView, SubRange

#: How far after the end mark a plain tar is looked at: its padding is rarely over 10 KiB.
_LOOKED_AT_BYTES = 64 << 10


def list_tar(opening: Opening, blocks: Blocks, pin: str, listing: Listing, label: str) -> None:
    """Put the members of the tar in ``blocks`` into the listing."""
    view = SeekableView(blocks, label, LONGEST_HEADER_BYTES)
    for number, member in enumerate(walk(view, label)):
        if number % 256 == 0:
            opening.check_cancelled()
        entry = without_content(member)
        if entry is not None:
            if not is_root(entry.path):
                listing.add(entry)
            continue
        path = raw(member.name)
        runs = runs_of(member, label)
        stored_bytes = member.size if runs is None else sum(length for _, length in runs)
        if member.offset_data + stored_bytes > blocks.size_bytes:
            raise SourceCorrupt(f"{label} is truncated: it ends in the middle of {show_path(path)}")
        content = SubRange(blocks, member.offset_data, stored_bytes)
        listing.add(
            SourceFile(
                path,
                member.size,
                bool(member.mode & 0o111),
                f"{pin}@{member.offset_data}",
                ranged=content if runs is None else Sparse(content, runs, member.size),
            )
        )
    rest = bytearray(min(_LOOKED_AT_BYTES, blocks.size_bytes - view.tell()))
    blocks.read_at(view.tell(), memoryview(rest))
    check_rest(memoryview(rest), label)
    if listing.total_bytes is not None:
        Expansion(label, opening.limits).check(blocks.size_bytes, listing.total_bytes)


class Sparse:
    """A file with holes, of which only the runs of data are stored, one after the other
    (:class:`~ckptfs.source.base.Ranged`)."""

    def __init__(self, stored: Ranged, runs: list[tuple[int, int]], size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._stored = stored
        self._starts = [offset for offset, _ in runs]
        self._runs: list[tuple[int, int, int]] = []  # (offset in the file, length, offset in the store)
        at = 0
        for offset, length in runs:
            self._runs.append((offset, length, at))
            at += length

    def read_at(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        buffer[:] = bytes(len(buffer))
        for start, length, at in self._runs[max(0, bisect.bisect_right(self._starts, offset) - 1) :]:
            if start >= end:
                break
            first, last = max(start, offset), min(start + length, end)
            if first < last:
                self._stored.read_at(at + first - start, buffer[first - offset : last - offset])
