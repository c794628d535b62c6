"""One file where it lies: what every kind of place answers when the source is a single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckptfs.source.base import SourceFile
from ckptfs.source.blocks import LOCAL_BLOCK_BYTES, REMOTE_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """``kind``, ``key`` and ``label`` are those of the source (``label`` names it in messages, without
    secrets); ``head`` is the file's beginning if it was seen; ``close`` ends its connections."""

    kind: str
    key: str
    label: str
    file: SourceFile
    close: Callable[[], None]
    head: bytes | None = None

    @property
    def remote(self) -> bool:
        return self.kind != "local"

    @property
    def block_bytes(self) -> int:
        return REMOTE_BLOCK_BYTES if self.remote else LOCAL_BLOCK_BYTES

    def beginning(self, count_bytes: int) -> bytes:
        """The first bytes of the file; fewer only where the file has fewer."""
        if self.head is not None:
            return self.head[:count_bytes]
        ranged = self.file.ranged
        assert ranged is not None
        data = bytearray(min(count_bytes, ranged.size_bytes))
        ranged.read_at(0, memoryview(data))
        return bytes(data)
