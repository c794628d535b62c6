"""Read every stored chunk of a checkpoint and compare it with its digest.

Damage is told by checkpoint, path and offset, of every file that shows it: a shared chunk is read
once and may be in many files. Derived copies are read too: one that is wrong is dropped, and nothing is
lost with it (:mod:`ckptfs.engine.verify_copies`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from ckptfs.engine.config import MIB
from ckptfs.engine.ingest import new_buffer
from ckptfs.engine.verify_copies import Copies
from ckptfs.errors import StoreDamaged
from ckptfs.model import manifest as manifests
from ckptfs.model.chunking import TARGET_CHUNK_BYTES
from ckptfs.model.digest import digest, text_id
from ckptfs.model.names import show_path
from ckptfs.model.records import Damage, VerifyReport
from ckptfs.store import Checkpoint, Chunk, Store

_BATCH_BYTES = 64 * MIB
_READERS = 2


async def verify(
    store: Store, checkpoint: Checkpoint, manifest: manifests.Manifest, report: Callable[[int, int], None]
) -> VerifyReport:
    """``report(bytes_done, bytes_total)`` is called from the event loop as the work goes on.

    Only what is known of the chunks themselves is damage: raises the store's errors where it cannot tell.
    """
    places: dict[bytes, list[tuple[bytes, int, int]]] = {}
    for _, file in manifest.files():
        for offset, length, name in file.recipe():
            places.setdefault(name, []).append((file.path, offset, length))
    copies = Copies(store, checkpoint.ordinal, manifest)
    names = list(places)
    chunks = await trio.to_thread.run_sync(store.chunks, names)
    problems: dict[bytes, str] = {
        name: "it is not in the store" for name, chunk in zip(names, chunks, strict=True) if chunk is None
    }
    # In the order of the disk, not of the names.
    present = sorted((c for c in chunks if c is not None), key=lambda c: (c.blob, c.offset))
    total = sum(c.length for c in present) + copies.bytes_total
    done = 0
    send, receive = trio.open_memory_channel[list[Chunk]](0)
    limiter = trio.CapacityLimiter(_READERS)

    async def reader() -> None:
        nonlocal done
        buffer = new_buffer(TARGET_CHUNK_BYTES)
        async for batch in receive:
            problems.update(
                await trio.to_thread.run_sync(partial(_check, store, batch, buffer), limiter=limiter)
            )
            done += sum(c.length for c in batch)
            report(done, total)

    async with trio.open_nursery() as nursery:
        for _ in range(_READERS):
            nursery.start_soon(reader)
        async with send:
            for batch in _batches(present):
                await send.send(batch)

    def more(count_bytes: int) -> None:
        nonlocal done
        done += count_bytes
        trio.from_thread.run_sync(report, done, total)

    await trio.to_thread.run_sync(copies.check, more, limiter=limiter)
    if problems:
        # Creating the checkpoint again then writes these chunks again, for everybody who shares them.
        await trio.to_thread.run_sync(store.quarantine, list(problems))
    dropped = await trio.to_thread.run_sync(partial(copies.drop_wrong, damage=bool(problems)))
    damaged = [
        Damage(
            checkpoint=checkpoint.name,
            path=show_path(path),
            offset=offset,
            length=length,
            problem=problem,
        )
        for name, problem in problems.items()
        for path, offset, length in places[name]
    ]
    return VerifyReport(
        checkpoint=checkpoint.name,
        id=text_id(checkpoint.digest),
        chunks=len(names),
        bytes=total - copies.bytes_total,
        damaged=sorted(damaged, key=lambda d: (d.path, d.offset)),
        copies=copies.count,
        dropped=dropped,
    )


def _batches(chunks: list[Chunk]) -> list[list[Chunk]]:
    batches: list[list[Chunk]] = []
    size = _BATCH_BYTES
    for chunk in chunks:
        if size >= _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(chunk)
        size += chunk.length
    return batches


def _check(store: Store, batch: list[Chunk], buffer: memoryview) -> dict[bytes, str]:
    problems: dict[bytes, str] = {}
    for chunk in batch:
        data = buffer[: chunk.length]
        try:
            store.read_chunk(chunk, data)
        except StoreDamaged as error:
            problems[chunk.digest] = f"it cannot be read: {error}"
            continue
        if digest(data) != chunk.digest:
            problems[chunk.digest] = "its bytes do not match its digest"
    return problems
