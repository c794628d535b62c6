"""One file of a checkpoint, read without the mount (`ckptfs cat`)."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ckptfs.engine.reader import FileReader


class Content:
    """``size_bytes`` and :meth:`read`; close it, or the checkpoint cannot be removed."""

    def __init__(
        self, reader: FileReader, size_bytes: int, limiter: trio.CapacityLimiter, on_close: Callable[[], None]
    ) -> None:
        self._reader = reader
        self._limiter = limiter
        self._on_close: Callable[[], None] | None = on_close
        self.size_bytes = size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes at ``offset``; shorter only at the end of the file."""
        return bytes(
            await trio.to_thread.run_sync(self._reader.read_blocking, offset, length, limiter=self._limiter)
        )

    def close(self) -> None:
        if self._on_close is not None:
            self._reader.close()
            self._on_close()
            self._on_close = None
