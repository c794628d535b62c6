"""The making of derived copies, step by step in one thread: look at a checkpoint's files, then batch after
batch of them. What goes before what, and who waits for whom, is said in :mod:`ckptfs.engine.assembly`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import structlog
import trio

from ckptfs.engine.derive import ChunkDamaged, Deriver, NotShared, Survey, Work
from ckptfs.engine.forms import Form
from ckptfs.errors import StoreFull
from ckptfs.model import manifest as manifests
from ckptfs.model.names import show_path
from ckptfs.model.records import Damage
from ckptfs.store import Checkpoint, Natives, NewCopy, Store

log = structlog.get_logger(__name__)

# Copies are recorded in batches: one transaction and one sync of the folder for so many, or so much.
_BATCH_FILES = 64
_BATCH_BYTES = 256 << 20

T = TypeVar("T")
Report = Callable[[int, int], None]


class Outcome(NamedTuple):
    """``made`` copies; ``refused``: files whose blocks could not be shared after all."""

    made: int
    refused: int
    damaged: list[Damage]


class LaterError(Exception):
    """A creation has begun: what costs space waits."""


class Making:
    """One caller at a time; it can be cancelled, and the thread stops within a few megabytes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._deriver: Deriver | None = None
        self._limiter = trio.CapacityLimiter(1)
        self.made = 0

    async def survey(self, checkpoint: Checkpoint) -> Survey:
        return await self.thread(self._look, checkpoint)

    def _look(self, checkpoint: Checkpoint) -> Survey:
        manifest = manifests.decode(self._store.manifest(checkpoint.digest))
        return self._tool().survey(checkpoint.ordinal, manifest, trio.from_thread.check_cancelled)

    def _tool(self) -> Deriver:
        if self._deriver is None:
            self._deriver = Deriver(self._store)
        return self._deriver

    async def note(self, ordinal: int, survey: Survey, *, wanted: bool) -> None:
        """Remember that a checkpoint was looked at. ``wanted``: copies may be made without being asked for.
        One with damage is to be looked at again: somebody may mend it."""
        if survey.forms[Form.DAMAGED] and wanted:
            await self.thread(self._store.look_again, {ordinal})
            return
        said = Natives(survey.forms[Form.WHOLE], survey.forms[Form.SMALL], wanted)
        await self.thread(self._store.put_natives, ordinal, said)

    async def make(
        self,
        checkpoint: Checkpoint,
        works: list[Work],
        *,
        asked: bool,
        report: Report = lambda done, total: None,
        pause: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Make copies, batch by batch. A batch that is cut short leaves none."""
        total = sum(work.file.size_bytes for work in works)
        made = refused = done = 0
        damaged: list[Damage] = []

        def step(count_bytes: int) -> None:
            nonlocal done
            trio.from_thread.check_cancelled()
            if pause():
                raise LaterError
            done += count_bytes
            report(done, total)

        for batch in _batches(works):
            try:
                kept, unshared, hurt = await self.thread(
                    self._make_batch, checkpoint.ordinal, batch, asked, step
                )
            except StoreFull as error:
                raise StoreFull(f"checkpoint {checkpoint.name!r}: {error}") from error
            made += kept
            refused += unshared
            self.made += kept
            for chunk in hurt:
                damaged.append(
                    Damage(
                        checkpoint=checkpoint.name,
                        path=show_path(chunk.path),
                        offset=chunk.offset,
                        length=chunk.length,
                        problem=chunk.problem,
                    )
                )
                log.error("damage found", checkpoint=checkpoint.name, reason=str(chunk))
        if made and not asked:
            log.info("files made native", checkpoint=checkpoint.name, files=made)
        if refused:
            hint = "`ckptfs assemble` copies them, which takes their size"
            log.info("blocks cannot be shared", checkpoint=checkpoint.name, files=refused, hint=hint)
        return Outcome(made, refused, damaged)

    def _make_batch(
        self, ordinal: int, batch: list[Work], asked: bool, step: Callable[[int], None]
    ) -> tuple[int, int, list[ChunkDamaged]]:
        copies: list[NewCopy] = []
        refused = 0
        hurt: list[ChunkDamaged] = []
        try:
            for work in batch:
                try:
                    copies.append(self._tool().make(ordinal, work, asked=asked, step=step))
                except ChunkDamaged as error:
                    hurt.append(error)
                except NotShared:
                    refused += 1
        except BaseException:
            for copy in copies:
                copy.abandon()
            raise
        # Recorded first: what was begun before a damage was noted would be given up with it.
        kept = self._store.record_copies(copies, check=trio.from_thread.check_cancelled)
        if hurt:
            self._store.quarantine([error.digest for error in hurt])
        return len(kept), refused, hurt

    async def thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._limiter)


def _batches(works: list[Work]) -> list[list[Work]]:
    batches: list[list[Work]] = []
    size = _BATCH_BYTES
    for work in works:
        if size >= _BATCH_BYTES or len(batches[-1]) >= _BATCH_FILES:
            batches.append([])
            size = 0
        batches[-1].append(work)
        size += work.cost_bytes
    return batches
