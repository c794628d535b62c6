"""How a file that lies in pieces is put together in one place: what can share blocks, what must be copied.

A file system with reflinks lets two files share whole blocks, where both have them at offsets that are
multiples of the block size. So a run of bytes that lies in another file at an offset which differs by whole
blocks is shared but for its edges, and one that is shifted by anything else has to be copied. The last
block of a file may be shared though it is not full, if it is the last one in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Clone(NamedTuple):
    """``length`` bytes at ``start`` of the file share the blocks at ``offset`` of ``blob``."""

    start: int
    length: int
    blob: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``copies`` are ``(start, end)`` of the file, in order; no two touch. What is in neither is zeros."""

    clones: list[Clone]
    copies: list[tuple[int, int]]

    def cost_bytes(self, block_bytes: int) -> int:
        """What the copies take of the disk: every block that one of them touches."""
        blocks = following = 0
        for start, end in self.copies:
            first = max(start // block_bytes, following)
            following = -(-end // block_bytes)
            blocks += max(0, following - first)
        return blocks * block_bytes


def plan(
    extents: Iterable[tuple[int, int, int, int]],
    size_bytes: int,
    *,
    share_bytes: int,
    blob_size: Callable[[int], int],
) -> Plan:
    """Plan a file of ``size_bytes`` from its extents ``(start, length, blob, offset)``, blob 0 for zeros.

    ``share_bytes`` is the unit of sharing, a power of two; 0 where nothing can be shared. ``blob_size`` is
    asked about the blob that has the file's end only.
    """
    clones: list[Clone] = []
    copies: list[tuple[int, int]] = []

    def copy(start: int, end: int) -> None:
        if start == end:
            return
        if copies and copies[-1][1] == start:
            copies[-1] = (copies[-1][0], end)
        else:
            copies.append((start, end))

    for start, length, blob, offset in extents:
        end = start + length
        if not blob:
            continue
        if not share_bytes or (start - offset) % share_bytes:
            copy(start, end)
            continue
        first = -(-start // share_bytes) * share_bytes
        last = end // share_bytes * share_bytes
        if end == size_bytes and last != end and blob_size(blob) == offset + length:
            last = end
        if first < last:
            copy(start, first)
            clones.append(Clone(first, last - first, blob, offset + first - start))
            copy(last, end)
        else:
            copy(start, end)
    return Plan(clones, copies)
