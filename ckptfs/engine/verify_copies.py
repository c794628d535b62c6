"""The derived copies of a checkpoint, compared with the digests of its chunks."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from ckptfs.engine.ingest import new_buffer
from ckptfs.model.chunking import TARGET_CHUNK_BYTES
from ckptfs.model.digest import digest as digest_of
from ckptfs.model.manifest import File, Manifest
from ckptfs.model.names import show_path
from ckptfs.model.records import DroppedCopy
from ckptfs.store import Store


class Copies:
    """Those that there are now. ``bytes_total`` is what :meth:`check` reads, at most."""

    def __init__(self, store: Store, ordinal: int, manifest: Manifest) -> None:
        self._store = store
        self._ordinal = ordinal
        copied = store.copied_entries(ordinal)
        self._files = {entry: file for entry, file in manifest.files() if entry in copied}
        self._wrong: dict[int, str] = {}
        self.count = len(self._files)
        self.bytes_total = sum(file.size_bytes for file in self._files.values())

    def check(self, step: Callable[[int], None]) -> None:
        """Read them all. In a thread of trio's; ``step`` is called with bytes that were read."""
        buffer = new_buffer(TARGET_CHUNK_BYTES)
        for entry, file in self._files.items():
            try:
                fd = self._store.open_copy(self._ordinal, entry, use=False)
            except FileNotFoundError:  # it was given back, for room or because somebody wished it
                continue
            except OSError as error:
                self._wrong[entry] = f"it cannot be opened: {error.strerror}"
                continue
            try:
                problem = _problem(fd, file, buffer, step)
            finally:
                os.close(fd)
            if problem:
                self._wrong[entry] = problem

    def drop_wrong(self, *, damage: bool) -> list[DroppedCopy]:
        """Drop what is wrong. ``damage``: some was found in the checkpoint's chunks, and what has gone
        meanwhile went with that."""
        if damage:
            for entry in self._files.keys() - self._store.copied_entries(self._ordinal):
                self._wrong.setdefault(entry, "it shared blocks with a damaged chunk")
        self._store.drop_copies([(self._ordinal, entry) for entry in self._wrong], wrong=True)
        if self._wrong:
            self._store.look_again({self._ordinal})
        return [
            DroppedCopy(path=show_path(self._files[entry].path), problem=problem)
            for entry, problem in sorted(self._wrong.items())
        ]


def _problem(fd: int, file: File, buffer: memoryview, step: Callable[[int], None]) -> str:
    """What is wrong with a copy; empty when nothing is."""
    if os.fstat(fd).st_size != file.size_bytes:
        return f"it has {os.fstat(fd).st_size} bytes instead of {file.size_bytes}"
    for offset, length, name in file.recipe():
        trio.from_thread.check_cancelled()
        data = buffer[:length]
        try:
            got = os.preadv(fd, [data], offset)
            while 0 < got < length and (more := os.preadv(fd, [data[got:]], offset + got)):
                got += more
        except OSError as error:
            return f"it cannot be read at offset {offset}: {error.strerror}"
        if got != length or digest_of(data) != name:
            return f"its bytes at offset {offset} do not match their digest"
        step(length)
    return ""
