"""A stream read ahead by a thread of its own, so that decompressing and hashing go on side by side."""

from __future__ import annotations

import threading
from collections import deque

from ckptfs.errors import Interrupted
from ckptfs.source.base import ByteStream

#: One piece of plain bytes. Small enough to be in the CPU's cache still when it is copied on.
PIECE_BYTES = 1 << 20
PIECES = 3


class Ahead:
    """Passes a stream on (:class:`~ckptfs.source.base.ByteStream`). Its thread begins with the first read
    and ends with the stream, its error, or :meth:`close`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self._free = deque(memoryview(bytearray(PIECE_BYTES)) for _ in range(PIECES))
        self._full: deque[tuple[memoryview, int]] = deque()
        self._taken = 0  # bytes of the first full piece that were passed on
        self._ended = False
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        if not buffer:
            return 0
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="source-ahead", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._full or self._ended or self._closed)
            if not self._full:
                if self._closed:
                    raise Interrupted("the source was closed while it was being read")
                if self._error is not None:
                    raise self._error
                return 0
            piece, size = self._full[0]
        # Only the reader takes pieces away, so this one stays as it is.
        count = min(len(buffer), size - self._taken)
        buffer[:count] = piece[self._taken : self._taken + count]
        self._taken += count
        if self._taken == size:
            with self._changed:
                self._full.popleft()
                self._free.append(piece)
                self._taken = 0
                self._changed.notify_all()
        return count

    def _run(self) -> None:
        try:
            while (piece := self._next_free()) is not None:
                got = filled = self._stream.readinto(piece)
                while got and filled < len(piece):
                    got = self._stream.readinto(piece[filled:])
                    filled += got
                with self._changed:
                    if filled:
                        self._full.append((piece, filled))
                    if not got:
                        self._ended = True
                    self._changed.notify_all()
                    if not got:
                        return
        except BaseException as error:
            with self._changed:
                self._error, self._ended = error, True
                self._changed.notify_all()

    def _next_free(self) -> memoryview | None:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            return None if self._closed else self._free.popleft()

    def close(self) -> None:
        """Stop reading ahead. The thread may yet wait for its own stream: see :meth:`join`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread, after what it may wait for was ended."""
        self.close()
        if self._thread is not None:
            self._thread.join()
