"""Which files get a derived copy, and when: by themselves after a creation, or because somebody asks.

One thing at a time. In the background each checkpoint is looked at, after its creation or after a
start; what takes nearly nothing is made, the rest as far as the limit goes, and only while nothing is being
created. Whoever asks, or wants to remove a checkpoint, does not wait for the background: it stops within
a few megabytes, and comes back later.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial

import structlog
import trio

from ckptfs.engine.config import EngineConfig
from ckptfs.engine.derive import Survey, Work
from ckptfs.engine.making import LaterError, Making, Report
from ckptfs.engine.room import reserve_bytes, room_for
from ckptfs.errors import CkptfsError, NotFound, StoreFull
from ckptfs.model.digest import text_id
from ckptfs.model.records import AssembleReport, Damage
from ckptfs.model.sizes import format_bytes
from ckptfs.store import Checkpoint, DerivedCopy, Store, Why

log = structlog.get_logger(__name__)


class Assembly:
    """``hold`` keeps a checkpoint from being removed; ``creating`` says whether anything is created now."""

    def __init__(
        self,
        store: Store,
        config: EngineConfig,
        hold: Callable[[Checkpoint], AbstractContextManager[None]],
        creating: Callable[[], bool],
    ) -> None:
        self._store = store
        self._config = config
        self._hold = hold
        self._creating = creating
        self._making = Making(store)
        self._working = trio.Lock()
        self._dropping = Making(store)  # whoever gives copies back waits for no other checkpoint's
        self._asking: dict[int, trio.Lock] = {}  # one request for a checkpoint at a time
        #: Ordinals to look at in the background; True: just created, others may make room for it.
        self._queue: dict[int, bool] = {}
        #: As the queue, for when nothing is created any more.
        self._later: dict[int, bool] = {}
        self._changed = trio.Event()
        #: Ordinals that the background keeps away from; None: all of them.
        self._aside: Counter[int | None] = Counter()
        self._at: int | None = None
        self._background = trio.CancelScope()
        self._left = trio.Event()
        self._stopped = False

    def counters(self) -> dict[str, int]:
        return {"derived_made": self._making.made, "derived_dropped": self._store.copies_dropped}

    # --- The background -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make what is to be made without being asked for, until cancelled."""
        await self._guarded(self._keep_limit)
        self.look()
        while True:
            ordinal = await self._next()
            fresh = self._queue.pop(ordinal)
            self._at, self._left = ordinal, trio.Event()
            try:
                with trio.CancelScope() as self._background:
                    async with self._working:
                        await self._guarded(partial(self._make_by_itself, ordinal, fresh=fresh))
                if self._background.cancelled_caught:
                    self._queue.setdefault(ordinal, fresh)
            finally:
                self._at = None
                self._left.set()

    def look(self, *, for_more: bool = True) -> None:
        """Have the background look at every checkpoint that it has not looked at, or (``for_more``) could do
        more for within the limit."""
        said = self._store.natives()
        for checkpoint in self._store.checkpoints():
            known = said.get(checkpoint.ordinal)
            if known is None:
                self._put(checkpoint.ordinal)
            elif for_more and known.wanted and self._config.derived_limit_bytes:
                copies = self._store.copy_totals(checkpoint.ordinal).copies
                if known.whole + known.small + copies < checkpoint.files:
                    self._put(checkpoint.ordinal)

    async def stop(self) -> None:
        """Let go of what is under way, and begin nothing more. Who asked for copies goes on."""
        self._stopped = True
        self._store.stop_waiting()
        if self._at is not None:
            self._background.cancel()
            await self._left.wait()

    def creation_ended(self, checkpoint: Checkpoint | None) -> None:
        """A creation is over, and made a checkpoint or did not: look at that soon, and go on with what had
        to wait."""
        if self._stopped:
            return
        if checkpoint is not None:
            self._put(checkpoint.ordinal, fresh=True)
        if not self._creating():
            for ordinal in list(self._later):
                self._put(ordinal, fresh=self._later.pop(ordinal))
            self.look(for_more=False)  # it may have mended what others shared with

    def _put(self, ordinal: int, *, fresh: bool = False) -> None:
        self._queue[ordinal] = fresh or self._queue.get(ordinal, False)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _next(self) -> int:
        while True:
            if not self._aside[None] and not self._stopped:
                for ordinal in self._queue:
                    if not self._aside[ordinal]:
                        return ordinal
            await self._changed.wait()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Nobody waits for the background's errors: they are logged, and the rest goes on."""
        try:
            await work()
        except NotFound:  # it was removed
            return
        except StoreFull as error:
            log.info("no room for derived copies", reason=str(error))
        except CkptfsError as error:
            log.error("derived copies could not be made", reason=str(error))
        except Exception as error:  # a defect must not end what goes on without derived copies
            log.error("derived copies could not be made", exc_info=error)

    async def _make_by_itself(self, ordinal: int, *, fresh: bool) -> None:
        checkpoint = self._store.by_ordinal(ordinal)
        if checkpoint is None:
            return
        with self._hold(checkpoint):
            survey = await self._making.survey(checkpoint)
            before = self._store.natives().get(ordinal)
            if before is not None and not before.wanted:
                await self._making.note(ordinal, survey, wanted=False)
                return
            free = [work for work in survey.shared if work.nearly_free]
            outcome = await self._making.make(checkpoint, self._that_fit(free), asked=False)
            if outcome.made + outcome.refused == len(
                free
            ):  # otherwise, and after a stop in the middle, it is looked at again
                await self._making.note(ordinal, survey, wanted=True)
            if self._config.derived_limit_bytes and survey.shared:
                try:
                    if self._creating():
                        raise LaterError
                    works = await self._making.thread(self._within_limit, ordinal, survey.shared, fresh)
                    await self._making.make(checkpoint, works, asked=False, pause=self._creating)
                except LaterError:
                    self._later[ordinal] = fresh

    def _that_fit(self, works: Iterable[Work], limit_bytes: int = 1 << 62) -> list[Work]:
        room = min(limit_bytes, self._store.disk_free_bytes() - reserve_bytes(self._store, self._config))
        chosen = []
        for work in works:
            if work.cost_bytes <= room:
                room -= work.cost_bytes
                chosen.append(work)
        return chosen

    def _within_limit(self, ordinal: int, shared: list[Work], fresh: bool) -> list[Work]:
        """Which files may have a copy that costs space. For a new checkpoint, those that were not used for
        the longest time make room."""
        limit = self._config.derived_limit_bytes
        works: list[Work] = []
        needed = 0
        for work in shared:
            if not work.nearly_free and needed + work.cost_bytes <= limit:
                works.append(work)
                needed += work.cost_bytes
        left = limit - self._store.copy_totals().limited_bytes
        if fresh and needed > left:

            def may_go(copy: DerivedCopy) -> bool:
                return copy.why is Why.LIMITED and copy.ordinal != ordinal

            self._store.make_room(needed - left, may_go=may_go)
            left = limit - self._store.copy_totals().limited_bytes
        return self._that_fit(works, left)

    async def _keep_limit(self) -> None:
        """Drop what is above the limit, which may have been lowered; what is open goes last."""
        await self._making.thread(self._drop_above_limit)

    def _drop_above_limit(self) -> None:
        def above() -> int:
            return self._store.copy_totals().limited_bytes - self._config.derived_limit_bytes

        if above() <= 0:
            return
        before = self._store.copy_totals()
        self._store.make_room(above(), may_go=lambda copy: copy.why is Why.LIMITED)
        for copy in self._store.copies():
            if above() <= 0 or self._stopped:
                break
            if copy.why is Why.LIMITED:
                self._store.drop_copies([(copy.ordinal, copy.entry)])
        dropped = before.copies - self._store.copy_totals().copies
        log.info("derived copies above the limit dropped", copies=dropped)

    # --- Who asks -------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def set_aside(self, ordinal: int | None = None) -> AsyncIterator[None]:
        """Keep the background away from a checkpoint, or from everything, while the body runs. When the
        body begins it has let go."""
        self._aside[ordinal] += 1
        try:
            if self._at is not None and ordinal in (None, self._at):
                self._background.cancel()
                await self._left.wait()
            yield
        finally:
            self._aside[ordinal] -= 1
            self._wake()

    @contextlib.asynccontextmanager
    async def _in_turn(self, ordinal: int) -> AsyncIterator[None]:
        lock = self._asking.setdefault(ordinal, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._asking.pop(ordinal, None)

    async def assemble(self, checkpoint: Checkpoint, report: Report) -> AssembleReport:
        """Give every file that shares chunks a derived copy. ``report(bytes_done, bytes_total)`` is called
        from a thread.

        Raises :class:`StoreFull` when there is no room for all of them beside the reserve.
        """
        async with self._in_turn(checkpoint.ordinal), self.set_aside(), self._working:
            survey = await self._making.survey(checkpoint)
            await self._making.thread(self._check_room, checkpoint, survey.shared)
            made, _, damaged = await self._making.make(checkpoint, survey.shared, asked=True, report=report)
            survey = await self._making.survey(checkpoint)
            await self._making.note(checkpoint.ordinal, survey, wanted=True)
        log.info("assembled", checkpoint=checkpoint.name, made=made, damaged=len(damaged))
        return self._report(checkpoint, survey, made=made, damaged=damaged)

    async def drop(self, checkpoint: Checkpoint) -> AssembleReport:
        """Give a checkpoint's derived copies back; none is made again before somebody asks."""
        async with self._in_turn(checkpoint.ordinal), self.set_aside(checkpoint.ordinal):
            entries = await self._dropping.thread(self._store.copied_entries, checkpoint.ordinal)
            gone = await self._dropping.thread(
                self._store.drop_copies, [(checkpoint.ordinal, entry) for entry in entries]
            )
            survey = await self._dropping.survey(checkpoint)
            await self._dropping.note(checkpoint.ordinal, survey, wanted=False)
        freed = gone.physical_bytes
        log.info("derived copies dropped", checkpoint=checkpoint.name, copies=gone.copies, bytes=freed)
        return self._report(checkpoint, survey, dropped=gone.copies, freed_bytes=freed)

    def _check_room(self, checkpoint: Checkpoint, works: list[Work]) -> None:
        """Copies of other checkpoints make room for what somebody asks for."""
        needed = sum(work.cost_bytes for work in works)
        free = room_for(self._store, self._config, needed, keep=checkpoint.ordinal)
        if needed > free:
            reserve = reserve_bytes(self._store, self._config)
            raise StoreFull(
                f"the derived copies of {checkpoint.name!r} need {format_bytes(needed)} and the store has "
                f"{format_bytes(max(0, free))} free beside its reserve of {format_bytes(reserve)}; "
                "remove checkpoints that nobody needs, or give the store a larger disk"
            )

    def _report(
        self,
        checkpoint: Checkpoint,
        survey: Survey,
        *,
        made: int = 0,
        dropped: int = 0,
        freed_bytes: int = 0,
        damaged: list[Damage] | None = None,
    ) -> AssembleReport:
        totals = self._store.copy_totals(checkpoint.ordinal)
        return AssembleReport(
            checkpoint=checkpoint.name,
            id=text_id(checkpoint.digest),
            made=made,
            dropped=dropped,
            freed_bytes=freed_bytes,
            files=survey.forms.total(),
            native_files=sum(count for form, count in survey.forms.items() if form.native),
            served_files={str(form): n for form, n in survey.forms.items() if not form.native},
            derived_files=totals.copies,
            derived_bytes=totals.physical_bytes,
            damaged=damaged or [],
        )
