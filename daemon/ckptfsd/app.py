"""The one place where the concrete parts meet, and the order in which they start and stop.

Start: store (locked, checked, recovered), control socket (bound: whoever connects now waits), engine,
mount, control interface, "ready". Each step that fails undoes those before it, and says one line.

Stop (SIGTERM, SIGINT, SIGHUP): "stopping", control interface (requests under way get a few seconds),
mount, engine (creations are interrupted; what arrived is kept), control socket, store. A second signal
cuts the waiting short.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import time
from dataclasses import asdict
from functools import partial

import trio

from ckptfs import __version__
from ckptfs.engine.config import EngineConfig
from ckptfs.engine.engine import Engine
from ckptfs.errors import CkptfsError
from ckptfs.fuse.session import FuseSession, MountConfig
from ckptfs.model.records import StatusInfo
from ckptfs.store import Store
from ckptfsd.config import Config, Effective
from ckptfsd.control.app import build
from ckptfsd.control.face import Control
from ckptfsd.control.peer import Permissions
from ckptfsd.doctor import diagnose
from ckptfsd.listener import ControlSocket, group_id
from ckptfsd.logging import configure, get_logger, ready_line
from ckptfsd.notify import Notifier
from ckptfsd.server import ControlServer, ServerLimits

_log = get_logger(__name__)

# Hardly anything here makes cycles, and a checkpoint of 100,000 files is a million objects to walk: at
# Python's 700 allocations the collector took an eighth of the CPU of such a creation.
_GC_THRESHOLDS = (50_000, 20, 20)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(effective: Effective) -> None:
    """Serve until a signal. Raises :class:`CkptfsError` when it cannot start or go on."""
    config = effective.config
    configure(config.log)
    _log.debug("starting", version=__version__, pid=os.getpid(), config=effective.file or "defaults")
    raise_open_files_limit()
    gc.set_threshold(*_GC_THRESHOLDS)
    admin_gid = group_id(config.control.admin_group, "admin_group") if config.control.admin_group else None
    permissions = Permissions.of_this_process(admin_gid)
    # Before trio and its threads: the store checks its index in a child process.
    store = Store.open(
        config.store.path, map_size_bytes=config.store.map_size_bytes, open_blobs=config.store.open_blobs
    )
    try:
        if store.recovery:
            _log.info("put right what was left undone", store=store.path, **asdict(store.recovery))
        with ControlSocket(
            config.control.socket, mode=config.control.socket_mode, group=config.control.socket_group
        ) as control_socket:
            daemon = Daemon(config, store, control_socket, permissions)
            try:
                trio.run(daemon.serve, strict_exception_groups=True)
            except BaseExceptionGroup as group:
                raise _first_cause(group) from group
        _log.info("stopped")
    finally:
        store.close()


class Daemon:
    """A running daemon: its parts, and what `status` says of them."""

    def __init__(
        self, config: Config, store: Store, control_socket: ControlSocket, permissions: Permissions
    ) -> None:
        self._config = config
        self._started = time.time()
        self._notifier = Notifier(os.environ)
        self._engine = Engine(store, engine_config(config))
        self._fuse: FuseSession | None = None
        if config.mount.enabled:
            self._fuse = FuseSession(self._engine.view, config.mount.path, config=mount_config(config))
        control = Control(
            engine=self._engine,
            status=self.status,
            doctor=partial(diagnose, config, running=True),
            permissions=permissions,
            max_body_bytes=config.control.max_body_bytes,
            body_timeout_seconds=config.control.body_timeout_seconds,
        )
        self._server = ControlServer(
            build(control, version=__version__), control_socket.socket, server_limits(config)
        )
        self._stop = trio.Event()
        self._starting = trio.CancelScope()
        self._server_ended: trio.Event | None = None

    async def serve(self) -> None:
        async with trio.open_nursery() as outer:
            await outer.start(self._watch_signals)
            async with self._engine, trio.open_nursery() as services:
                with self._starting:
                    await self._start(services)
                    await self._stop.wait()
                await self._stop_serving()
                services.cancel_scope.cancel()  # unmounts
            outer.cancel_scope.cancel()

    async def _start(self, services: trio.Nursery) -> None:
        if self._fuse is not None:
            await services.start(self._run_mount, self._fuse)
        await services.start(self._run_server)
        services.start_soon(self._notifier.watchdog)
        self._announce()

    async def _run_mount(self, fuse: FuseSession, task_status: trio.TaskStatus[None]) -> None:
        await fuse.run(task_status=task_status)

    async def _run_server(self, task_status: trio.TaskStatus[None]) -> None:
        self._server_ended = ended = trio.Event()
        await self._server.run(task_status=task_status)
        ended.set()

    async def _stop_serving(self) -> None:
        self._notifier.send(STOPPING=1, STATUS="stopping")
        _log.info("stopping")
        self._server.stop()
        if self._server_ended is not None:
            await self._server_ended.wait()

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                _log.info("signal", signal=signal.Signals(number).name)
                if self._stop.is_set():
                    self._server.stop(hurry=True)
                self._stop.set()
                self._starting.cancel()

    def _announce(self) -> None:
        control = self._config.control
        mount = self._fuse.mountpoint if self._fuse else "none"
        line = ready_line(store=self._config.store.path, mount=mount, socket=control.socket)
        _log.info(line)
        _tell(line)
        self._notifier.send(READY=1, STATUS=line)

    def status(self) -> StatusInfo:
        fuse = self._fuse
        counters = {**self._engine.counters(), **self._server.statistics()}
        if fuse is not None:
            counters |= fuse.counters()
        return StatusInfo(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            socket=self._config.control.socket,
            mount=fuse.mountpoint if fuse else "",
            mounted=fuse.mounted if fuse else False,
            mount_note=fuse.notes if fuse else "started without a mount",
            store=self._engine.store_status(),
            jobs=self._engine.jobs_count(),
            creations=counters.get("creations_active", 0),
            counters=counters,
        )


def engine_config(config: Config) -> EngineConfig:
    """Every limit of the engine, from the configuration."""
    return EngineConfig(
        mount=config.mount.path if config.mount.enabled else None,
        max_creations=config.ingest.max_creations,
        max_checkpoint_bytes=config.store.max_checkpoint_bytes,
        max_entries=config.source.max_entries,
        reserve_free_bytes=config.store.reserve_free_bytes,
        workers=config.ingest.workers,
        remote_workers=config.ingest.remote_workers,
        buffer_bytes=config.ingest.buffer_bytes,
        commit_bytes=config.ingest.commit_bytes,
        commit_seconds=config.ingest.commit_seconds,
        draft_retention_seconds=config.drafts.retention_hours * 3600,
        connect_timeout_seconds=config.source.connect_timeout_seconds,
        read_timeout_seconds=config.source.read_timeout_seconds,
        min_throughput_bytes_per_second=config.source.min_throughput_bytes_per_second,
        retries=config.source.retries,
        max_jobs=config.jobs.max_jobs,
    )


def mount_config(config: Config) -> MountConfig:
    return MountConfig(
        read_ahead_kib=config.mount.read_ahead_kib,
        max_background=config.mount.max_background,
        passthrough=config.mount.passthrough,
        max_tasks=config.mount.max_requests,
        stop_grace_seconds=config.mount.stop_grace_seconds,
    )


def server_limits(config: Config) -> ServerLimits:
    return ServerLimits(
        max_connections=config.control.max_connections,
        send_timeout_seconds=config.control.send_timeout_seconds,
        idle_timeout_seconds=config.control.idle_timeout_seconds,
        stop_grace_seconds=config.control.stop_grace_seconds,
    )


def raise_open_files_limit() -> None:
    """As many descriptors as we are allowed: the soft limit of 1024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tell(line: str) -> None:
    """One line on standard output, unless that is where the log goes too, or nobody is there."""
    try:
        if not os.path.samestat(os.fstat(1), os.fstat(2)):
            print(line, flush=True)
    except OSError:
        _log.debug("standard output takes nothing")


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the daemon: ours before a stranger's, an error before an interruption."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions
        else:
            leaves.append(error)

    def rank(error: BaseException) -> float:
        ranks = (CkptfsError, Exception)
        return next((n for n, kind in enumerate(ranks) if isinstance(error, kind)), math.inf)

    return min(leaves, key=rank)
