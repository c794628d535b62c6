"""Small reads of a Ranged, served from whole blocks that are kept a while.

The directories and small members of an archive lie close together. Reading them one by one from a
remote object would cost a request each; a block of a megabyte costs one for all of them. Readers that
want the same block wait for one fetch. Large reads go straight through.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ckptfs.source.base import Ranged

#: A request's fixed cost equals the transfer of roughly this much.
REMOTE_BLOCK_BYTES = 1 << 20
LOCAL_BLOCK_BYTES = 64 << 10
#: Blocks kept: more than the engine has readers, so they do not push out each other's.
KEPT_BLOCKS = 24


class _Block:
    __slots__ = ("data", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytearray | None = None


class Blocks:
    """A Ranged over another one (:class:`~ckptfs.source.base.Ranged`)."""

    def __init__(self, ranged: Ranged, block_bytes: int) -> None:
        self.size_bytes = ranged.size_bytes
        self.block_bytes = block_bytes
        self._ranged = ranged
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    def read_at(self, offset: int, buffer: memoryview) -> None:
        if len(buffer) > self.block_bytes // 2:
            self._ranged.read_at(offset, buffer)
            return
        done = 0
        while done < len(buffer):
            number, start = divmod(offset + done, self.block_bytes)
            data = self._block(number)
            part = memoryview(data)[start : start + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def _block(self, number: int) -> bytearray:
        with self._lock:
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = _Block()
                if len(self._blocks) > KEPT_BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
        with block.lock:
            if block.data is None:
                start = number * self.block_bytes
                data = bytearray(min(self.block_bytes, self.size_bytes - start))
                self._ranged.read_at(start, memoryview(data))
                block.data = data
            return block.data
