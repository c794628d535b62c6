"""Reads for the mount: inline what the page cache has, in a bounded number of threads what it has not.

How a warm read goes. In the page cache the bytes are a memory copy away, and handing that copy to a
thread costs more than the copy; on the disk they are milliseconds away, and waiting for them in the
event loop stops every other request. Which of the two it is only the kernel knows, so it is asked:
``preadv`` with RWF_NOWAIT copies what is in the page cache, and a thread reads the rest.

Who waits for whom. Each checkpoint has a share of the threads, and first waits for its share, then for a
thread. So a checkpoint whose bytes do not come takes its share and no more, and among the checkpoints
that want a thread none has more of its reads in the queue than that. Nothing else waits here: names and
attributes have threads of their own (:mod:`ckptfs.engine.view`).
"""

from __future__ import annotations

from collections import Counter

import trio

from ckptfs.engine.config import ReadLimits
from ckptfs.engine.reader import FileReader

#: The kernel sends no larger requests unless fs.fuse.max_pages_limit is raised (256 pages).
MAX_REQUEST_BYTES = 1 << 20


class WarmReads:
    """The answer of :meth:`read` is a view of a buffer that the next read may fill again. That is safe
    under one rule: the caller uses it up before its next await. pyfuse3 does: from the handler's
    return to the reply, which copies, nothing else of the event loop runs. Threads fill only buffers
    that were taken from the pool for them, in the event loop.
    """

    def __init__(self, limits: ReadLimits | None = None) -> None:
        self._limits = limits or ReadLimits()
        self.limiter = trio.CapacityLimiter(self._limits.warm_reads)
        self._shares: dict[int, trio.CapacityLimiter] = {}  # of checkpoints that wait for the disk now
        self.counters: Counter[str] = Counter(reads_inline=0, reads_in_thread=0, read_bytes=0)
        self._inline = memoryview(bytearray(MAX_REQUEST_BYTES))
        self._pool: list[memoryview] = []

    async def read(self, reader: FileReader, offset: int, length: int, *, checkpoint: int) -> memoryview:
        """Bytes of a file; fewer only at its end. ``checkpoint``: its ordinal, whose share is used."""
        length = reader.clamp(offset, length)
        if length > len(self._inline):
            self._inline = memoryview(bytearray(length))
        view = self._inline[:length]
        filled = reader.read_resident(offset, view) if length else 0
        self.counters["read_bytes"] += length
        if filled == length:
            self.counters["reads_inline"] += 1
            return view
        self.counters["reads_in_thread"] += 1
        # What was filled is read again: keeping it would cost a buffer for every reader that waits here,
        # and moving it into the thread's buffer would be the same copy.
        share = self._shares.get(checkpoint)
        if share is None:
            share = self._shares[checkpoint] = trio.CapacityLimiter(self._limits.warm_reads_each)
        try:
            async with share, self.limiter:
                buffer = self._take(length)
                part = buffer[:length]
                # Only the end of the session cancels a read; the thread and the buffer are left behind then.
                await trio.to_thread.run_sync(
                    reader.read_into, offset, part, limiter=_threads, abandon_on_cancel=True
                )
                self._pool.append(buffer)
        finally:
            # A task that was given a token keeps it in use, so idle means that nobody is here.
            if not share.borrowed_tokens and not share.statistics().tasks_waiting:
                self._shares.pop(checkpoint, None)
        return part

    def _take(self, length: int) -> memoryview:
        while self._pool:
            buffer = self._pool.pop()
            if len(buffer) >= length:
                return buffer
        return memoryview(bytearray(max(length, MAX_REQUEST_BYTES)))


# The bound is WarmReads.limiter, taken before the buffer. trio wants a limiter for the thread too, and its
# own of forty is everybody's: reads that wait for a disk would take it from all else.
_threads: trio.CapacityLimiter | None = trio.CapacityLimiter(1_000_000)
