"""Who uses what: leases of jobs on checkpoints.

A lease is persistent, so a restarted daemon shows every job what it showed before. It ends when the
job is detached, when its time runs out, or with the process that it is bound to: that process is
watched through a pidfd, which also says so when it was killed. A process is named by its number and
its start time, because numbers are used again.

What is attached is what the mount shows: one directory per checkpoint that has a lease.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import structlog
import trio

from ckptfs.engine.config import EngineConfig
from ckptfs.errors import (
    CkptfsError,
    Conflict,
    MountError,
    NotFound,
    PermissionDenied,
    SpecificationError,
)
from ckptfs.model.digest import text_id
from ckptfs.model.names import check_job_id
from ckptfs.model.places import JOB_PATH, PATH_VARIABLE, PATH_VARIABLE_ALIAS
from ckptfs.model.records import JobCheckpoint, JobInfo
from ckptfs.store import Checkpoint, Lease, Store

log = structlog.get_logger(__name__)

_MAX_TTL_SECONDS = 366 * 24 * 3600.0

# When a lease could not be ended (a full disk, no descriptors left). Until then the job keeps it.
_TRY_AGAIN_SECONDS = 10.0

# The wall clock may jump: times are looked at this often at least.
_LOOK_SECONDS = 60.0


class Leases:
    """The leases of this node.

    A change is made in memory first, in one step with the checks before it, and then recorded by a
    thread: the index may be busy for seconds, and the event loop, which answers the mount, must not wait
    for it. What cannot be recorded is undone. ``changing`` is held over both, so that the two agree.
    """

    def __init__(self, store: Store, config: EngineConfig) -> None:
        self._store = store
        self._config = config
        #: Called whenever what is attached may have changed.
        self.on_change: Callable[[], None] = lambda: None
        self._leases: dict[tuple[str, int], Lease] = {
            (lease.job, lease.ordinal): lease for lease in store.leases()
        }
        self._attached: dict[str, Checkpoint] = {}
        self.changing = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._watched: set[tuple[str, int, int | None]] = set()
        self._soonest = trio.Event()
        self.refresh()

    # --- What others ask -------------------------------------------------------------------------

    def attached(self) -> dict[str, Checkpoint]:
        """The checkpoints that the mount shows, by name. Do not change it."""
        return self._attached

    def jobs_of(self, ordinal: int) -> list[str]:
        return sorted(job for job, of in self._leases if of == ordinal)

    def refresh(self) -> None:
        """Derive what is attached again: a lease or a name changed."""
        ordinals = {ordinal for _, ordinal in self._leases}
        found = (self._store.by_ordinal(ordinal) for ordinal in sorted(ordinals))
        self._attached = {c.name: c for c in found if c is not None}
        self.on_change()

    def jobs(self) -> list[JobInfo]:
        return [self.job(job) for job in sorted({job for job, _ in self._leases})]

    def job(self, job: str) -> JobInfo:
        leases = sorted(
            (lease for (of, _), lease in self._leases.items() if of == job), key=lambda x: x.ordinal
        )
        if not leases:
            raise NotFound(f"there is no job {job!r} with an attached checkpoint; `ckptfs jobs` lists them")
        checkpoints = [c for lease in leases if (c := self._store.by_ordinal(lease.ordinal)) is not None]
        return self._info(job, checkpoints, leases[0])

    def _info(self, job: str, checkpoints: list[Checkpoint], lease: Lease | None) -> JobInfo:
        mount = self._config.mount or ""
        alone = len(checkpoints) == 1
        path = os.path.join(mount, checkpoints[0].name) if alone else mount
        return JobInfo(
            job=job,
            checkpoints=[
                JobCheckpoint(
                    name=c.name,
                    id=text_id(c.digest),
                    source=os.path.join(mount, c.name),
                    target=JOB_PATH if alone else os.path.join(JOB_PATH, c.name),
                )
                for c in checkpoints
            ],
            path=path,
            env=dict.fromkeys((PATH_VARIABLE, PATH_VARIABLE_ALIAS), path) if checkpoints else {},
            created=lease.created if lease else 0.0,
            expires=lease.expires if lease else None,
            pid=lease.pid if lease else None,
        )

    # --- Changes ---------------------------------------------------------------------------------

    async def attach(
        self, job: str, checkpoints: list[Checkpoint], *, pid: int | None, ttl_seconds: float | None
    ) -> JobInfo:
        """Give a job leases, with ``changing`` held. Attaching again is the same as once, and renews the
        time. There is no await before the leases are seen by :meth:`jobs_of`.

        ``pid`` binds the leases to a process. Raises :class:`SpecificationError` for a bad job name or
        time, :class:`Conflict` for a job that is bound to another process.
        """
        if self._config.mount is None:
            raise MountError("this daemon runs without a mount (--no-mount): there is nothing to attach to")
        job = check_job_id(job) if job else "job-" + secrets.token_hex(6)
        if not checkpoints:
            raise SpecificationError("checkpoints", "name at least one checkpoint to attach")
        if ttl_seconds is not None and not 0 < ttl_seconds <= _MAX_TTL_SECONDS:
            raise SpecificationError("ttl_seconds", "a lease lasts more than 0 seconds and at most 366 days")
        mine = [lease for (of, _), lease in self._leases.items() if of == job]
        if not mine and len({of for of, _ in self._leases}) >= self._config.max_jobs:
            raise Conflict(
                f"{self._config.max_jobs} jobs are attached already ([jobs] max_jobs); detach some"
            )
        start = None
        if pid is not None:
            start = process_start(pid)
            if start is None:
                raise PermissionDenied(
                    f"process {pid}, which asked for the lease, is not to be seen from the daemon"
                )
        if any((lease.pid, lease.pid_start) != (pid, start) for lease in mine):
            raise Conflict(
                f"job {job!r} is bound to another process; detach it first or choose another --job"
            )
        now = time.time()
        expires = now + ttl_seconds if ttl_seconds is not None else None
        wanted = [Lease(job, c.ordinal, now, expires, pid, start) for c in checkpoints]
        # The other leases of the job live as long as these: a job has one life.
        wanted += [
            replace(old, expires=expires) for old in mine if old.ordinal not in {w.ordinal for w in wanted}
        ]
        before = dict(self._leases)
        for lease in wanted:
            old = self._leases.get((job, lease.ordinal))
            self._leases[job, lease.ordinal] = replace(lease, created=old.created) if old else lease
        await self._record(before, partial(self._store.put_leases, wanted))
        log.info("attached", job=job, checkpoints=[c.name for c in checkpoints], pid=pid, expires=expires)
        self._watch(job)
        self._soonest.set()
        return self.job(job)

    async def detach(self, job: str, ordinals: Iterable[int] | None = None, *, why: str = "asked") -> JobInfo:
        """End a job's leases, all or some; what is left is the answer. Raises :class:`NotFound`."""
        async with self.changing:
            was = self.job(job)
            mine = {ordinal for of, ordinal in self._leases if of == job}
            gone = mine if ordinals is None else set(ordinals)
            if not gone <= mine:
                raise NotFound(
                    f"job {job!r} has no lease on that checkpoint; `ckptfs jobs` shows what it has"
                )
            before = dict(self._leases)
            for ordinal in gone:
                del self._leases[job, ordinal]
            await self._record(before, partial(self._store.delete_leases, job, gone))
            log.info("detached", job=job, leases=len(gone), why=why)
            if gone != mine:
                return self.job(job)
            return JobInfo(job=job, checkpoints=[], path="", env={}, created=was.created)

    async def end_all_of(self, ordinal: int) -> None:
        """Nobody has a lease on a checkpoint any more: it is removed by force. With ``changing`` held;
        there is no await before the mount stops showing it."""
        before = dict(self._leases)
        jobs = self.jobs_of(ordinal)
        for job in jobs:
            del self._leases[job, ordinal]

        def delete() -> None:
            for job in jobs:
                self._store.delete_leases(job, [ordinal])

        await self._record(before, delete)
        for job in jobs:
            log.info("detached", job=job, leases=1, why="the checkpoint is removed by force")

    async def _record(self, before: dict[tuple[str, int], Lease], write: Callable[[], None]) -> None:
        """Show what was changed and make it last, or undo it."""
        try:
            self.refresh()
            await trio.to_thread.run_sync(write)
        except BaseException:
            self._leases = before
            self.refresh()
            raise

    # --- Leases that end by themselves -----------------------------------------------------------

    async def run(self) -> None:
        """Watch processes and times until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for job in {job for job, _ in self._leases}:
                self._watch(job)
            while True:
                self._soonest = trio.Event()
                with trio.move_on_after(await self._end_expired()):
                    await self._soonest.wait()

    async def _end_expired(self) -> float:
        """End what has run out of time; in how many seconds to look again."""
        now = time.time()
        for job in {lease.job for lease in self._leases.values() if lease.expires and lease.expires <= now}:
            if not await self._end(job, why="its time ran out"):
                return _TRY_AGAIN_SECONDS
        times = [lease.expires for lease in self._leases.values() if lease.expires]
        return min(_LOOK_SECONDS, max(0.0, min(times) - now)) if times else _LOOK_SECONDS

    async def _end(self, job: str, *, why: str) -> bool:
        """Detach in the background, where nobody hears of an error; False when it has to be tried again."""
        try:
            await self.detach(job, why=why)
        except CkptfsError as error:
            log.error("a lease could not be ended, trying again", job=job, why=why, reason=str(error))
            return False
        return True

    def _watch(self, job: str) -> None:
        lease = next((lease for (of, _), lease in self._leases.items() if of == job), None)
        if lease is None or lease.pid is None or self._nursery is None:
            return
        watch = (job, lease.pid, lease.pid_start)
        if watch not in self._watched:
            self._watched.add(watch)
            self._nursery.start_soon(self._until_exit, *watch)

    async def _until_exit(self, job: str, pid: int, start: int | None) -> None:
        try:
            await _exited(pid, start)
            # The job may have been detached since, and attached again by another process.
            while self._is_bound(job, pid, start):
                if await self._end(job, why="its process ended"):
                    break
                await trio.sleep(_TRY_AGAIN_SECONDS)
        finally:
            self._watched.discard((job, pid, start))

    def _is_bound(self, job: str, pid: int, start: int | None) -> bool:
        mine = {(lease.pid, lease.pid_start) for lease in self._leases.values() if lease.job == job}
        return mine == {(pid, start)}


async def _exited(pid: int, start: int | None) -> None:
    """Wait for the end of a process, which may have been long ago."""
    while True:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError as error:  # no descriptors left: that says nothing about the process
            log.error("a job's process cannot be watched, trying again", pid=pid, reason=str(error))
            await trio.sleep(_TRY_AGAIN_SECONDS)
            continue
        try:
            # Opened first, compared then: a number that was used again meanwhile shows here.
            if process_start(pid) == start:
                await trio.lowlevel.wait_readable(pidfd)
            return
        except OSError as error:
            log.error("a job's process cannot be watched, trying again", pid=pid, reason=str(error))
        finally:
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)
        await trio.sleep(_TRY_AGAIN_SECONDS)


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); None when it is
    gone, a zombie or not to be seen. Together with the number it names one process for ever.

    Raises OSError where that cannot be told (no descriptors left)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if fields[0] == b"Z" else int(fields[19])
