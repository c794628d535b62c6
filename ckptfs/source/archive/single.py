"""One compressed file: one file of the checkpoint, by its name without the suffix."""

from __future__ import annotations

from collections.abc import Callable

from ckptfs.source.archive.detect import name_inside
from ckptfs.source.base import ByteStream, SourceFile


def single_file(compressed: SourceFile, begin: Callable[[], ByteStream]) -> SourceFile:
    """Its size is not known before it is read: what formats say of it may be absent or wrong."""
    name = name_inside(compressed.path)
    return SourceFile(name, None, compressed.executable, f"{compressed.pin}!", stream=begin)
