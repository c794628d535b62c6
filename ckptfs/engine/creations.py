"""All creations of this daemon: starts them, bounds how many run, forgets them when they are done.

Finished creations live on in the store (as checkpoints, or as failed drafts with their reason), so
this holds only those that are under way.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import structlog
import trio

from ckptfs.engine.config import EngineConfig
from ckptfs.engine.creation import Creation
from ckptfs.errors import CkptfsError, Conflict, NameTaken, NotFound, SpecificationError
from ckptfs.model.names import check_checkpoint_name
from ckptfs.model.records import CreateRequest
from ckptfs.source.open import check_request
from ckptfs.store import Checkpoint, Store

log = structlog.get_logger(__name__)

# Threads of one creation beside its workers: the commit, and one for listing, opening and closing.
_EXTRA_THREADS = 2
_MAX_WAITING = 1000


class Creations:
    def __init__(self, store: Store, config: EngineConfig) -> None:
        self._store = store
        self._config = config
        self._running: dict[str, Creation] = {}
        self._slots = trio.CapacityLimiter(config.max_creations)
        #: Called when a creation is over, with the checkpoint that it made, if it did.
        self.on_end: Callable[[Checkpoint | None], None] = lambda checkpoint: None
        self.counters = {"creations_started": 0, "creations_failed": 0, "creations_ready": 0}

    def active(self) -> list[Creation]:
        return list(self._running.values())

    def is_busy(self) -> bool:
        """Whether anything is being created, or waits for its turn. From any thread."""
        return bool(self._running)

    def by_name(self, name: str) -> Creation | None:
        return next((c for c in self._running.values() if c.request.name == name), None)

    def start(self, request: CreateRequest, nursery: trio.Nursery) -> Creation:
        """Check what can be checked at once, then go on in the nursery.

        Raises :class:`SpecificationError` for a bad request and :class:`NameTaken`.
        """
        request.name = check_checkpoint_name(request.name)
        check_request(request.source_uri, request.source_type, request.source_options)
        if self._store.by_name(request.name) is not None:
            raise NameTaken(
                f"there is a checkpoint {request.name!r} already and checkpoints are immutable: "
                "choose another name, or remove or rename that one"
            )
        other = self.by_name(request.name)
        if other is not None:
            raise NameTaken(
                f"a checkpoint {request.name!r} is being created already ({other.id}): "
                "wait for it or cancel it"
            )
        if len(self._running) >= _MAX_WAITING:
            raise SpecificationError("name", f"{_MAX_WAITING} creations are waiting already; try again later")
        creation = Creation(self._store, self._config, request, "c-" + secrets.token_hex(10))
        self._running[creation.id] = creation
        self.counters["creations_started"] += 1
        nursery.start_soon(self._run, creation)
        return creation

    async def _run(self, creation: Creation) -> None:
        has_slot = False
        try:
            with creation.waiting:  # a cancelled one needs no turn to say that it ended
                await self._slots.acquire()
                has_slot = True
            workers = max(self._config.workers, self._config.remote_workers)
            await creation.run(trio.CapacityLimiter(workers + _EXTRA_THREADS))
        finally:
            if has_slot:
                self._slots.release()
            self.counters["creations_ready" if creation.checkpoint else "creations_failed"] += 1
            del self._running[creation.id]
            self.on_end(creation.checkpoint)

    async def stop(self) -> None:
        """Interrupt all creations; what they brought in stays for a resume."""
        for creation in self.active():
            creation.cancel(daemon_stops=True)
        for creation in self.active():
            await creation.done.wait()

    def sweep(self) -> None:
        """Give back the bytes of failed creations that nobody resumed. Blocks; call in a thread."""
        oldest = time.time() - self._config.draft_retention_seconds
        active = {c.id for c in self.active()}
        for draft in self._store.drafts():
            if draft.creation in active or draft.created >= oldest:
                continue
            try:
                self._store.drop_draft(draft.ordinal)
            except (NotFound, Conflict):  # somebody removed it, or goes on with it, this very moment
                continue
            except CkptfsError as error:
                log.error("could not forget a failed creation", checkpoint=draft.name, reason=str(error))
            else:
                log.info("failed creation forgotten", checkpoint=draft.name, bytes=draft.bytes_kept)
