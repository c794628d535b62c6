"""The engine: everything that a node can be asked to do with checkpoints.

It owns the nursery in which creations and lease watches live, so work never belongs to the request
that started it. Its methods answer with wire records; errors are :mod:`ckptfs.errors`.

What keeps readers safe from removal: :meth:`Engine.remove` refuses while a job has a lease, while the
mount has an open file, or while something here reads the checkpoint. Between that check and the
moment when the checkpoint is marked as going there is no await, and everything that begins to read
asks for that mark first.
"""

from __future__ import annotations

import builtins
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

import structlog
import trio

from ckptfs.engine.assembly import Assembly
from ckptfs.engine.attach import Leases
from ckptfs.engine.catalog import Catalog
from ckptfs.engine.config import EngineConfig
from ckptfs.engine.content import Content
from ckptfs.engine.creations import Creations
from ckptfs.engine.reader import FileReader
from ckptfs.engine.verify import verify
from ckptfs.engine.view import View
from ckptfs.errors import CkptfsError, Conflict, InUse, NameTaken, NotFound, PermissionDenied
from ckptfs.model.names import check_checkpoint_name
from ckptfs.model.records import (
    AssembleReport,
    AttachRequest,
    CheckpointInfo,
    CreateRequest,
    JobInfo,
    StoreStatus,
    TreeEntry,
    VerifyReport,
)
from ckptfs.store import FORMAT_VERSION, Checkpoint, Store

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SWEEP_SECONDS = 600.0

# Threads for those who look (show, tree, cat, verify). A bound of their own, so that however many of them
# wait for a bad disk, changes and the mount's notices to the kernel still find a thread.
_LOOKERS = 16


class Engine:
    """``async with Engine(store, config) as engine:``; leaving it interrupts what is under way."""

    def __init__(self, store: Store, config: EngineConfig) -> None:
        self._store = store
        self._config = config
        self._creations = Creations(store, config)
        self._leases = Leases(store, config)
        self._catalog = Catalog(store, self._creations, self._leases.jobs_of)
        self.view = View(store, self._leases.attached, config.reads)
        self._leases.on_change = self.view.refresh
        self._lookers = trio.CapacityLimiter(_LOOKERS)
        self._reading: Counter[int] = Counter()  # ordinals that something here reads
        self._going: set[int] = set()  # ordinals that are being removed
        self._renaming: set[int] = set()
        self._assembly = Assembly(store, config, self._hold, self._creations.is_busy)
        self._creations.on_end = self._assembly.creation_ended
        self._nursery: trio.Nursery | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._nursery.start_soon(self._leases.run)
        self._nursery.start_soon(self._sweep)
        self._nursery.start_soon(self._assembly.run)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._nursery is not None
        with trio.CancelScope(shield=True):
            await self.stop_work()
        self._nursery.cancel_scope.cancel()
        await self._stack.aclose()

    async def stop_background(self) -> None:
        """Make no more derived copies without being asked: somebody waits for the store."""
        await self._assembly.stop()

    async def stop_work(self) -> None:
        """That, and interrupt what is being created; what arrived is kept. Everything else goes on."""
        await self.stop_background()
        await self._creations.stop()

    async def _sweep(self) -> None:
        while True:
            for work in (self._creations.sweep, self._store.settle, self._store.note_use):
                try:
                    await trio.to_thread.run_sync(work)
                except CkptfsError as error:  # a full disk: tried again, and who needs it now is told
                    log.error("what failed creations left could not be given back", reason=str(error))
            await trio.sleep(_SWEEP_SECONDS)
            self._assembly.look()

    # --- Creation --------------------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> CheckpointInfo:
        """Start a creation and answer at once; ask for its id to follow it."""
        assert self._nursery is not None, "the engine has not been entered"
        return self._creations.start(request, self._nursery).info()

    async def cancel(self, ref: str) -> CheckpointInfo:
        """Stop a creation; what arrived is kept for a resume. Answers when it has stopped."""
        found = self._catalog.find(ref)
        if found.under_way is None:
            raise Conflict(f"checkpoint {found.name!r} is not being created: there is nothing to cancel")
        found.under_way.cancel()
        await found.under_way.done.wait()
        return found.under_way.info()

    # --- Looking ---------------------------------------------------------------------------------

    def list(self) -> builtins.list[CheckpointInfo]:
        return self._catalog.list()

    def get(self, ref: str) -> CheckpointInfo:
        return self._catalog.info(self._catalog.find(ref))

    async def show(self, ref: str) -> CheckpointInfo:
        found = self._catalog.find(ref)
        info = self._catalog.info(found)
        if found.ready is not None:
            with self._hold(found.ready):
                await self._look(self._catalog.add_usage, found.ready, info)
        return info

    async def tree(self, ref: str, path: bytes = b"") -> builtins.list[TreeEntry]:
        checkpoint = self._catalog.ready(ref)
        with self._hold(checkpoint):
            return await self._look(self._catalog.tree, checkpoint, path)

    async def open_content(self, ref: str, path: bytes) -> Content:
        """A file's bytes; the caller closes it."""
        checkpoint = self._catalog.ready(ref)
        hold = contextlib.ExitStack()
        hold.enter_context(self._hold(checkpoint))
        try:
            index, file = await self._look(self._catalog.file, checkpoint, path)
            own = await self._look(self._store.own_blobs, checkpoint.ordinal)
            reader = await self._look(FileReader, self._store, file, own.get(index, 0))
        except BaseException:
            hold.close()
            raise
        return Content(reader, file.size_bytes, self._lookers, hold.close)

    async def verify(self, ref: str, report: Callable[[int, int], None]) -> VerifyReport:
        checkpoint = self._catalog.ready(ref)
        with self._hold(checkpoint):
            manifest = await self._look(self._catalog.manifest, checkpoint)
            result = await verify(self._store, checkpoint, manifest, report)
        if result.damaged:
            log.error("damage found", checkpoint=checkpoint.name, places=len(result.damaged))
        if result.dropped:
            log.error("wrong derived copies dropped", checkpoint=checkpoint.name, copies=len(result.dropped))
            self._assembly.look()  # what costs nothing is made anew
        return result

    # --- Derived copies --------------------------------------------------------------------------

    async def assemble(self, ref: str, report: Callable[[int, int], None]) -> AssembleReport:
        """Give every file that shares chunks a derived copy, so that the kernel can read it without us."""
        checkpoint = self._catalog.ready(ref)
        with self._hold(checkpoint):
            return await self._assembly.assemble(checkpoint, report)

    async def drop_derived(self, ref: str) -> AssembleReport:
        """Give the derived copies back. Who reads one goes on to."""
        checkpoint = self._catalog.ready(ref)
        with self._hold(checkpoint):
            return await self._assembly.drop(checkpoint)

    async def _look(self, call: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._lookers)

    def store_status(self) -> StoreStatus:
        checkpoints = self._store.checkpoints()
        derived = self._store.copy_totals()
        return StoreStatus(
            path=self._store.path,
            checkpoints=len(checkpoints),
            chunks=self._store.chunk_count(),
            logical_bytes=sum(c.size_bytes for c in checkpoints),
            stored_bytes=self._store.stored_bytes(),
            physical_bytes=self._store.physical_bytes(),
            files=sum(c.files for c in checkpoints),
            native_files=sum(said.whole for said in self._store.natives().values()) + derived.copies,
            derived_files=derived.copies,
            derived_bytes=derived.physical_bytes,
            derived_limit_bytes=self._config.derived_limit_bytes,
            disk_free_bytes=self._store.disk_free_bytes(),
            disk_total_bytes=self._store.disk_total_bytes(),
            format=FORMAT_VERSION,
        )

    def counters(self) -> dict[str, int]:
        return {
            **self._creations.counters,
            **self.view.counters(),
            **self._assembly.counters(),
            "creations_active": len(self._creations.active()),
        }

    def jobs_count(self) -> int:
        return len(self._leases.jobs())

    # --- Names and removal -----------------------------------------------------------------------

    async def rename(self, ref: str, new_name: str) -> CheckpointInfo:
        checkpoint = self._catalog.ready(ref)
        new_name = check_checkpoint_name(new_name)
        if self._creations.by_name(new_name) is not None:
            raise NameTaken(f"a checkpoint {new_name!r} is being created; choose another name")
        jobs = self._leases.jobs_of(checkpoint.ordinal)
        if jobs:
            # Their paths hold the name.
            raise InUse(
                f"checkpoint {checkpoint.name!r} is used by {len(jobs)} job(s): {', '.join(jobs[:5])}; "
                "it can be renamed when they are detached",
                jobs=jobs,
            )
        if checkpoint.ordinal in self._renaming:
            raise Conflict(f"checkpoint {checkpoint.name!r} is being renamed already")
        with self._hold(checkpoint):
            self._renaming.add(checkpoint.ordinal)
            try:
                await trio.to_thread.run_sync(self._store.rename, checkpoint.ordinal, new_name)
            finally:
                self._renaming.discard(checkpoint.ordinal)
        self._leases.refresh()
        renamed = self._store.by_ordinal(checkpoint.ordinal)
        assert renamed is not None
        log.info("renamed", checkpoint=checkpoint.name, to=new_name)
        return self._catalog.ready_info(renamed)

    async def remove(self, ref: str, *, force: bool = False) -> CheckpointInfo:
        """Remove a checkpoint, or forget a failed creation. ``force`` ends its leases first, but never
        takes bytes from under an open file."""
        found = self._catalog.find(ref)
        info = self._catalog.info(found)
        if found.under_way is not None:
            raise InUse(
                f"checkpoint {found.name!r} is still being created; `ckptfs cancel` stops that first", jobs=[]
            )
        if found.failed is not None:
            await trio.to_thread.run_sync(self._store.drop_draft, found.failed.ordinal)
        elif found.ready is not None:
            info.freed_bytes = await self._remove_ready(found.ready, force=force)
        info.status = "archived"
        info.jobs = []
        return info

    async def _remove_ready(self, checkpoint: Checkpoint, *, force: bool) -> int:
        """Answers how many bytes it gave back."""
        ordinal, name = checkpoint.ordinal, checkpoint.name
        async with self._leases.changing, self._assembly.set_aside(ordinal):
            self._check_unused(ordinal, name, force=force)
            self._going.add(ordinal)
            try:
                await self._leases.end_all_of(ordinal)
                self._check_closed(ordinal, name, force=force)  # it could be opened until now
            except BaseException:
                self._going.discard(ordinal)
                raise
        self.view.disown(ordinal)
        try:
            report = await trio.to_thread.run_sync(self._store.remove, ordinal)
        finally:
            self._going.discard(ordinal)
            self._leases.refresh()
        log.info("removed", checkpoint=name, bytes_freed=report.bytes_freed, chunks_freed=report.chunks_freed)
        return report.bytes_freed

    def _check_unused(self, ordinal: int, name: str, *, force: bool) -> None:
        if ordinal in self._going:
            raise InUse(f"checkpoint {name!r} is being removed already", jobs=[])
        jobs = self._leases.jobs_of(ordinal)
        if jobs and not force:
            raise InUse(
                f"checkpoint {name!r} is used by {len(jobs)} job(s): {', '.join(jobs[:5])}"
                f"{', …' if len(jobs) > 5 else ''}; detach them first, or remove with --force",
                jobs=jobs,
            )
        if self._reading[ordinal]:
            raise InUse(
                f"checkpoint {name!r} is being read (cat, verify, show, assemble); try again after that",
                jobs=jobs,
            )
        self._check_closed(ordinal, name, force=force)

    def _check_closed(self, ordinal: int, name: str, *, force: bool) -> None:
        jobs = self._leases.jobs_of(ordinal)
        inherited = self.view.inherited_files(ordinal)
        open_files = self.view.open_files(ordinal) - inherited
        if open_files:
            raise InUse(
                f"{open_files} file(s) of checkpoint {name!r} are open in a process; "
                "it can be removed when they are closed",
                jobs=jobs,
            )
        if inherited and not force:
            raise InUse(
                f"{inherited} file(s) of checkpoint {name!r} were open before the daemon's worker was "
                "replaced, and may still be; if no process has them open, remove with --force (one that does "
                "gets errors then, never wrong bytes)",
                jobs=jobs,
            )

    @contextlib.contextmanager
    def _hold(self, checkpoint: Checkpoint) -> Iterator[None]:
        """While the body runs, the checkpoint is not removed."""
        if checkpoint.ordinal in self._going:
            raise NotFound(f"checkpoint {checkpoint.name!r} is being removed")
        self._reading[checkpoint.ordinal] += 1
        try:
            yield
        finally:
            self._reading[checkpoint.ordinal] -= 1
            if not self._reading[checkpoint.ordinal]:
                del self._reading[checkpoint.ordinal]

    # --- Jobs ------------------------------------------------------------------------------------

    async def attach(self, request: AttachRequest, *, peer_pid: int | None) -> JobInfo:
        """Attach checkpoints for a job. ``peer_pid`` is who asks, as the kernel says."""
        if request.bind_to_caller and not peer_pid:
            raise PermissionDenied(
                "the lease cannot be bound to the calling process: the daemon does not see it "
                "(another pid namespace); attach with a job name and detach it when the job ends"
            )
        async with self._leases.changing:
            checkpoints = self._to_attach(request.checkpoints)
            info = await self._leases.attach(
                request.job,
                checkpoints,
                pid=peer_pid if request.bind_to_caller else None,
                ttl_seconds=request.ttl_seconds,
            )
        # 0.25 s for 100,000 files; otherwise the first `find` pays it.
        for checkpoint in checkpoints:
            await self.view.load(checkpoint.ordinal)
        return info

    def _to_attach(self, refs: builtins.list[str]) -> builtins.list[Checkpoint]:
        checkpoints: builtins.list[Checkpoint] = []
        for ref in refs:
            checkpoint = self._catalog.ready(ref)
            if checkpoint.ordinal in self._going:
                raise NotFound(f"checkpoint {checkpoint.name!r} is being removed")
            if checkpoint.ordinal in self._renaming:
                raise Conflict(f"checkpoint {checkpoint.name!r} is being renamed; attach it by its new name")
            if checkpoint not in checkpoints:
                checkpoints.append(checkpoint)
        return checkpoints

    async def detach(self, job: str, refs: builtins.list[str] | None = None) -> JobInfo:
        if not refs:
            return await self._leases.detach(job)
        return await self._leases.detach(job, [self._catalog.ready(ref).ordinal for ref in refs])

    def jobs(self) -> builtins.list[JobInfo]:
        return self._leases.jobs()
