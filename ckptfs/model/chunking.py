"""Where a file is cut into chunks.

The cuts depend on the file's size and on its container's directory alone (a safetensors or GGUF header,
a zip's central directory), never on the bodies: a file can be laid out before its bytes have arrived.
A directory that contradicts itself or the size makes the file an ordinary one, cut on a plain grid.
The rules are part of the format version (docs/format.md, "Chunk boundaries"; docs/adr/0001): changing
one changes the ids of checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from ckptfs.errors import SourceChanged
from ckptfs.model import gguf, safetensors, zipdir
from ckptfs.model.boundaries import TARGET_CHUNK_BYTES, from_segments, grid
from ckptfs.model.prefix import Read

__all__ = ["HEAD_BYTES", "TARGET_CHUNK_BYTES", "Container", "Read", "lengths", "sniff"]

#: How many first bytes `sniff` wants to see (fewer when the file is shorter).
HEAD_BYTES = 16


class Container(Enum):
    PLAIN = "plain"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    ZIP = "zip"

    @property
    def directory_in_front(self) -> bool:
        """Whether `lengths` reads nothing but a prefix, in ascending order (so that a stream will do)."""
        return self is not Container.ZIP


_SEGMENTS: dict[Container, Callable[[int, Read], list[int] | None]] = {
    Container.SAFETENSORS: safetensors.segments,
    Container.GGUF: gguf.segments,
    Container.ZIP: zipdir.segments,
}


def sniff(head: bytes, size_bytes: int) -> Container:
    """What a file seems to be by its first `HEAD_BYTES` bytes. The directory has the last word."""
    if safetensors.looks_like(head, size_bytes):
        return Container.SAFETENSORS
    if gguf.looks_like(head):
        return Container.GGUF
    if zipdir.looks_like(head):
        return Container.ZIP
    return Container.PLAIN


def lengths(size_bytes: int, read: Read) -> list[int]:
    """The lengths of a file's chunks in file order.

    All are > 0, none is > TARGET_CHUNK_BYTES, their sum is ``size_bytes``. ``read(offset, length)``
    returns exactly ``length`` bytes and is never asked for bytes outside the file; what it raises
    passes through. When it returns fewer the file has changed: SourceChanged, for else the cuts would
    depend on when. Nothing else is raised, whatever the bytes are.
    """
    if size_bytes == 0:
        return []

    def read_all(offset: int, length: int) -> bytes:
        data = read(offset, length)
        if len(data) != length:
            raise SourceChanged(f"the content ends at byte {offset + len(data)}; its size was {size_bytes}")
        return data

    head = read_all(0, min(HEAD_BYTES, size_bytes))
    segments = _SEGMENTS.get(sniff(head, size_bytes))
    cuts = segments(size_bytes, read_all) if segments else None
    return grid(size_bytes) if cuts is None else from_segments(cuts)
