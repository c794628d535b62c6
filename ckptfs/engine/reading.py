"""The middle of a creation: everything that a source holds comes into the draft.

Worker threads move the bytes (:mod:`ckptfs.engine.ingest`); this decides which thread brings what.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from ckptfs.engine import ingest
from ckptfs.engine.config import EngineConfig
from ckptfs.engine.ingest import Meter
from ckptfs.errors import SourceTooLarge
from ckptfs.model.admission import Admission
from ckptfs.model.chunking import TARGET_CHUNK_BYTES
from ckptfs.model.sizes import format_bytes
from ckptfs.source.base import (
    Source,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceHardlink,
    SourceLink,
    SourceSpecial,
)
from ckptfs.store import Draft, DraftFile

# Small files are read, cut and put in batches: one hop to a thread for many of them.
_BATCH_FILES = 256
_SMALL_BYTES = 1 << 20

T = TypeVar("T")


async def in_thread(limiter: trio.CapacityLimiter, call: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(call, limiter=limiter)


class Reading:
    """What was found so far: ``admission`` holds the tree, ``files`` each path's executable bit and bytes,
    ``hardlinks`` what is another name of a file."""

    def __init__(self, draft: Draft, config: EngineConfig, meter: Meter) -> None:
        self.admission = Admission(max_entries=config.max_entries)
        self.files: dict[bytes, tuple[bool, DraftFile]] = {}
        self.hardlinks: list[SourceHardlink] = []
        self._draft = draft
        self._config = config
        self._meter = meter

    def listed(self, source: Source) -> list[SourceFile]:
        """Hold everything that a listed source has against the rules; the files that are to be read."""
        files: list[SourceFile] = []
        for entry in source.entries():
            self._meter.check()
            file = self._admit(entry)
            if file is not None:
                files.append(file)
                self._meter.found(file.size_bytes or 0)
                if self._meter.bytes_total > self._config.max_checkpoint_bytes:
                    raise SourceTooLarge(
                        f"the source holds more than the {format_bytes(self._config.max_checkpoint_bytes)} "
                        "that one checkpoint may have (store.max_checkpoint_bytes)"
                    )
        return files

    def in_order(self, source: Source) -> None:
        """Read a sequential source, in one thread: the decompressor is what it waits for."""
        buffer = ingest.new_buffer(self._config.buffer_bytes)
        for entry in source.entries():
            self._meter.check()
            file = self._admit(entry)
            if file is None:
                continue
            self._meter.found(0)
            draft_file = self._draft.file(ingest.file_key(file), file.size_bytes)
            self._bring_whole_stream(file, draft_file, buffer)
            self.files[file.path] = (file.executable, draft_file)

    async def in_any_order(
        self, source: Source, listed: list[SourceFile], limiter: trio.CapacityLimiter
    ) -> None:
        """Fan listed files out over workers, each with a buffer of its own."""
        workers = self._config.local_workers() if source.kind == "local" else self._config.remote_workers
        send, receive = trio.open_memory_channel[Callable[[memoryview], None]](workers)

        async def work() -> None:
            buffer = ingest.new_buffer(self._config.buffer_bytes)
            async for bring in receive:
                with self._meter.failing_together():
                    await in_thread(limiter, partial(bring, buffer))

        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work)
            async with send:
                await self._hand_out(listed, send, limiter, local=source.kind == "local")

    async def _hand_out(
        self,
        listed: list[SourceFile],
        send: trio.MemorySendChannel[Callable[[memoryview], None]],
        limiter: trio.CapacityLimiter,
        *,
        local: bool,
    ) -> None:
        batch: list[tuple[SourceFile, DraftFile]] = []
        batch_bytes = 0
        # Over a network a run is one request, and what a cancelled request had brought is lost.
        run_bytes = self._config.buffer_bytes if local else TARGET_CHUNK_BYTES
        for file in listed:
            make = partial(self._draft.file, ingest.file_key(file), file.size_bytes)
            # A resumed file brings all its chunks' records along: of a large one too many for this loop.
            large = file.size_bytes is None or file.size_bytes > _SMALL_BYTES
            draft_file = await in_thread(limiter, make) if large else make()
            self.files[file.path] = (file.executable, draft_file)
            if file.ranged is None:
                await send.send(partial(self._bring_stream, file, draft_file))
                continue
            assert file.size_bytes is not None
            if file.size_bytes > _SMALL_BYTES:
                runs = await in_thread(
                    limiter, partial(ingest.plan, file, draft_file, run_bytes, self._meter)
                )
                self._meter.runs_planned(file.path, len(runs))
                for run in runs:
                    await send.send(partial(self._bring_run, run))
                continue
            batch.append((file, draft_file))
            batch_bytes += file.size_bytes
            if len(batch) == _BATCH_FILES or batch_bytes > 4 * _SMALL_BYTES:
                await send.send(partial(self._bring_small, batch))
                batch, batch_bytes = [], 0
        if batch:
            await send.send(partial(self._bring_small, batch))

    def _bring_run(self, run: ingest.Run, buffer: memoryview) -> None:
        ingest.bring_run(run, buffer, self._meter)

    def _bring_small(self, batch: list[tuple[SourceFile, DraftFile]], buffer: memoryview) -> None:
        ingest.bring_small(batch, buffer, self._meter)

    def _bring_stream(self, file: SourceFile, draft_file: DraftFile, buffer: memoryview) -> None:
        lengths = draft_file.lengths
        if lengths is not None and file.size_bytes is not None and len(draft_file.known) == len(lengths):
            self._meter.moved(file.size_bytes, reused=True)
            self._meter.file_done()
        else:
            self._bring_whole_stream(file, draft_file, buffer)

    def _bring_whole_stream(self, file: SourceFile, draft_file: DraftFile, buffer: memoryview) -> None:
        assert file.stream is not None
        with contextlib.closing(file.stream()) as stream:
            ingest.bring_stream(file, draft_file, stream, buffer, self._meter)

    def _admit(self, entry: SourceEntry) -> SourceFile | None:
        """Hold one entry against the rules; returns it when it is a file whose bytes are to be read."""
        admission = self.admission
        if isinstance(entry, SourceFile):
            admission.file(entry.path, entry.executable)
            return entry
        if isinstance(entry, SourceDirectory):
            admission.directory(entry.path)
        elif isinstance(entry, SourceLink):
            admission.link(entry.path, entry.target)
        elif isinstance(entry, SourceHardlink):
            admission.file(entry.path, False)
            self.hardlinks.append(entry)
        elif isinstance(entry, SourceSpecial):
            admission.special(entry.path, entry.what)
        return None
