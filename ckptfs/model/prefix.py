"""A container's directory is read in ascending order, block by block, and only so far as it reaches."""

from __future__ import annotations

from collections.abc import Callable

#: ``read(offset_bytes, length_bytes)`` returns exactly so many bytes of the file.
Read = Callable[[int, int], bytes]

#: No directory is read beyond this; the largest header met in the wild (100,000 tensors) has 12 MB.
DIRECTORY_LIMIT_BYTES = 32 * 1024 * 1024

#: No more tensors or members than this are looked at: it bounds the memory that a hostile directory
#: can make us take to about 100 MB.
SEGMENTS_LIMIT = 1 << 18


class Lie(Exception):
    """A directory contradicts itself or the file's size. Never leaves the model."""


class Prefix:
    """The beginning of a file as one growing buffer, with a position."""

    BLOCK_BYTES = 1024 * 1024

    def __init__(self, size_bytes: int, read: Read) -> None:
        self._limit_bytes = min(size_bytes, DIRECTORY_LIMIT_BYTES)
        self._read = read
        self.buffer = bytearray()
        self.position = 0

    def need(self, length_bytes: int) -> int:
        """Make sure that the next bytes are in the buffer; return where they start, and step past them."""
        start = self.position
        end = start + length_bytes
        if end > self._limit_bytes:
            raise Lie("the directory is longer than the file or the limit")
        while len(self.buffer) < end:
            have = len(self.buffer)
            want = min(max(self.BLOCK_BYTES, end - have), self._limit_bytes - have)
            self.buffer += self._read(have, want)
        self.position = end
        return start
