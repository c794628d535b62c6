"""The one place where the concrete parts meet, and the order in which they start and stop.

With a mount the daemon is the holder (ckptfsd.holder), which this process becomes, and workers
(ckptfsd.worker), of which one is a :class:`Daemon` on the holder's connection. Without a mount it is a
Daemon alone.

Start: store (locked, checked, recovered), control socket (whoever connects now waits), engine, mount,
control interface, "ready". Each step that fails undoes those before it, and says one line.

End: control interface (requests under way get a few seconds), creations (interrupted; what arrived is
kept), mount, control socket, store; before all of them the making of derived copies. When another worker
goes on, the mount is served for as long as possible, and what is in flight at the end is that one's. A
second signal cuts the waiting short.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import trio

from ckptfs import __version__
from ckptfs.engine.engine import Engine
from ckptfs.errors import CkptfsError, Conflict, MountError
from ckptfs.fuse.connection import Connection
from ckptfs.fuse.mountinfo import at
from ckptfs.fuse.session import FuseSession
from ckptfs.model.records import DoctorCheck, StatusInfo
from ckptfs.store import Store
from ckptfsd import shown
from ckptfsd.config import Config, Effective, encode
from ckptfsd.control.app import build
from ckptfsd.control.face import Control
from ckptfsd.control.peer import Permissions
from ckptfsd.doctor import Running, diagnose
from ckptfsd.limits import engine_config, mount_config, server_limits
from ckptfsd.listener import ControlSocket, group_id
from ckptfsd.logging import configure, get_logger, ready_line
from ckptfsd.notify import Notifier
from ckptfsd.server import ControlServer
from ckptfsd.worker_link import HolderLink, Introduction, Order

_log = get_logger(__name__)

# Hardly anything here makes cycles, and a checkpoint of 100,000 files is a million objects to walk: at
# Python's 700 allocations the collector took an eighth of the CPU of such a creation.
_GC_THRESHOLDS = (50_000, 20, 20)

# How long a thread that computes in Python keeps the interpreter from the event loop, each time that the loop
# comes back from the kernel. While a manifest of 100,000 files was decoded (0.3 s), a turn of the loop took
# 8 ms with Python's 5 ms, about 2 ms with this; the decoding took as long.
_SWITCH_SECONDS = 0.0005

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# What the next worker is not kept waiting for: it gets the requests that are in flight.
_HANDOVER_GRACE_SECONDS = 0.5

# When the connection ended under us: how long the holder has to say what to do.
_LOST_SECONDS = 10.0


def prepare_process(effective: Effective) -> None:
    """Log, limits and garbage collection of the process that is going to serve."""
    configure(effective.config.log)
    _log.debug("starting", version=__version__, pid=os.getpid(), config=effective.file or "defaults")
    raise_open_files_limit()
    # Credentials of creations are in memory, and a core is a file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_SECONDS)


def serve(effective: Effective, held: Held | None = None) -> Order:
    """Serve until a signal or an order; which one. Raises :class:`CkptfsError` when it cannot start or go
    on."""
    config = effective.config
    admin_gid = group_id(config.control.admin_group, "admin_group") if config.control.admin_group else None
    permissions = Permissions.of_this_process(admin_gid)
    if held is not None:
        shown.check(config.store.path, held.introduction.connection)
    # Before trio and its threads: the store checks its index in a child process.
    store = Store.open(
        config.store.path, map_size_bytes=config.store.map_size_bytes, open_blobs=config.store.open_blobs
    )
    try:
        if held is not None:
            shown.note(config.store.path, held.introduction.connection)
        if store.recovery:
            _log.info("put right what was left undone", store=store.path, **asdict(store.recovery))
        with ControlSocket(
            config.control.socket,
            mode=config.control.socket_mode,
            group=config.control.socket_group,
            inherited=held.introduction.listener if held else None,
        ) as control_socket:
            if held is not None:
                held.link.leave_listener(
                    control_socket.socket.fileno(), control_socket.path, control_socket.inode
                )
            daemon = Daemon(config, store, control_socket, permissions, held)
            try:
                trio.run(daemon.serve, strict_exception_groups=True)
            except BaseExceptionGroup as group:
                raise _first_cause(group) from group
            finally:  # also for the worker after one that failed: who is in the queue waits for that one
                control_socket.stays = held is not None and not daemon.orphaned
        return daemon.ended_by
    finally:
        store.close()


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker has from its holder."""

    link: HolderLink
    introduction: Introduction
    #: Ask for another worker, started by this Python interpreter (empty: the same).
    upgrade: Callable[[str], None]
    #: Why the last upgrade failed, if it did while this worker had let go of everything for it.
    upgrade_note: str = ""


class Daemon:
    """A running daemon: its parts, and what `status` says of them."""

    def __init__(
        self,
        config: Config,
        store: Store,
        control_socket: ControlSocket,
        permissions: Permissions,
        held: Held | None,
    ) -> None:
        self._config = config
        self._held = held
        self._started = time.time()
        self._notifier = Notifier(os.environ)
        self._engine = Engine(store, engine_config(config))
        self._fuse: FuseSession | None = None
        if held is not None:
            self._fuse = FuseSession(
                self._engine.view, held.introduction.connection, held.link, config=mount_config(config)
            )
        control = Control(
            engine=self._engine,
            status=self.status,
            doctor=self.doctor,
            upgrade=self.upgrade,
            permissions=permissions,
            max_body_bytes=config.control.max_body_bytes,
            body_timeout_seconds=config.control.body_timeout_seconds,
        )
        self._server = ControlServer(
            build(control, version=__version__), control_socket.socket, server_limits(config)
        )
        self._end = trio.Event()
        self._starting = trio.CancelScope()
        self._server_ended: trio.Event | None = None
        self._upgrade_asked = False
        self._upgrade_note = held.upgrade_note if held else ""
        self.ended_by = Order("stop")
        #: The holder is dead: what it would do at the end is ours.
        self.orphaned = False

    async def serve(self) -> None:
        async with trio.open_nursery() as outer:
            await outer.start(self._watch_signals)
            if self._held is not None:
                await outer.start(self._held.link.run)
                outer.start_soon(self._follow, self._held.link)
            async with self._engine, trio.open_nursery() as services:
                with self._starting:
                    await self._start(services)
                    await self._end.wait()
                await self._stop_serving()
                services.cancel_scope.cancel()  # lets go of the mount
            if self.orphaned and self._held is not None:
                await trio.to_thread.run_sync(_unmount, self._held.introduction.connection)
            outer.cancel_scope.cancel()

    async def _start(self, services: trio.Nursery) -> None:
        if self._fuse is not None:
            await services.start(self._run_mount, self._fuse)
        await services.start(self._run_server)
        services.start_soon(self._notifier.watchdog)
        self._announce()

    async def _run_mount(self, fuse: FuseSession, task_status: trio.TaskStatus[None]) -> None:
        try:
            await fuse.run(task_status=task_status)
        except MountError as error:
            if self._held is None or self.orphaned:
                raise
            _log.error("the mount was lost", mount=fuse.mountpoint, reason=error.message)
            self._held.link.lost(error.message)
            with trio.move_on_after(_LOST_SECONDS):
                await self._end.wait()  # told to leave for another connection
            if not self._end.is_set():
                raise
            await trio.lowlevel.checkpoint()  # cancelled, if it is the start that ended so

    async def _run_server(self, task_status: trio.TaskStatus[None]) -> None:
        self._server_ended = ended = trio.Event()
        await self._server.run(task_status=task_status)
        ended.set()

    async def _stop_serving(self) -> None:
        self._notifier.send(STOPPING=1, STATUS="stopping")
        _log.info("stopping" if self.ended_by.verb == "stop" else "handing over", order=self.ended_by.verb)
        hands_over = self.ended_by.verb != "stop"
        self._server.stop(grace_seconds=_HANDOVER_GRACE_SECONDS if hands_over else math.inf)
        await self._engine.stop_background()  # meanwhile requests end
        if self._server_ended is not None:
            await self._server_ended.wait()
        await self._engine.stop_work()  # readers are served meanwhile
        if self._fuse is not None and hands_over:
            self._fuse.hurry(_HANDOVER_GRACE_SECONDS)

    # --- Orders ----------------------------------------------------------------------------------------

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        # A terminal's end, or somebody's wish for a reload, is the holder's business where there is one.
        numbers = _STOP_SIGNALS if self._held is not None else (*_STOP_SIGNALS, signal.SIGHUP)
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                _log.info("signal", signal=signal.Signals(number).name)
                if self._end.is_set():
                    self._server.stop(hurry=True)
                elif self._held is not None and not self.orphaned:
                    self._held.link.stop()  # the whole daemon is meant, and the order comes back
                else:
                    self._end_with(Order("stop"))

    async def _follow(self, link: HolderLink) -> None:
        """What the holder says, until it is time to end."""
        while not self._end.is_set():
            order = await link.orders.receive()
            if order.verb == "upgrade_failed":
                self._upgrade_asked = False
                self._upgrade_note = order.reason
                _log.error("the upgrade failed, this worker goes on", reason=order.reason)
            elif order.verb == "gone":
                self.orphaned = True
            else:
                self._end_with(order)

    def _end_with(self, order: Order) -> None:
        self.ended_by = order
        self._end.set()
        self._starting.cancel()

    def upgrade(self, python: str) -> None:
        """Ask the holder for another worker; ``python`` is the interpreter that starts it, or empty."""
        if self._held is None:
            raise Conflict("this daemon serves no mount, so nothing is lost when it is restarted: do that")
        if self.orphaned:
            raise Conflict("the holder of this daemon is dead: restart ckptfsd when no job reads")
        if self._upgrade_asked:
            raise Conflict("an upgrade is under way already; `ckptfs status` shows when it is over")
        self._upgrade_asked, self._upgrade_note = True, ""
        self._held.upgrade(python)

    # --- What is said ----------------------------------------------------------------------------------

    def _announce(self) -> None:
        control = self._config.control
        mount = self._fuse.mountpoint if self._fuse else "none"
        line = ready_line(store=self._config.store.path, mount=mount, socket=control.socket)
        _log.info(line)
        if self._held is None or self._held.introduction.starts == 0:
            _tell(line)
        self._notifier.send(READY=1, STATUS=line)
        if self._held is not None and self._fuse is not None:
            self._held.link.ready(self._fuse.notes, encode(self._config))

    async def doctor(self) -> list[DoctorCheck]:
        why_not = self._fuse.past_the_daemon if self._fuse else ""
        return await diagnose(self._config, Running(self._main_pid(), why_not))

    def _main_pid(self) -> int:
        return os.getppid() if self._held is not None and not self.orphaned else os.getpid()

    def status(self) -> StatusInfo:
        fuse, held = self._fuse, self._held
        counters = {**self._engine.counters(), **self._server.statistics()}
        if fuse is not None:
            counters |= fuse.counters()
        return StatusInfo(
            version=__version__,
            pid=self._main_pid(),
            worker_pid=os.getpid(),
            worker_starts=held.introduction.starts if held else 0,
            upgrades=held.introduction.upgrades if held else 0,
            spare_pid=held.link.spare_pid if held and not self.orphaned else 0,
            upgrade_note=self._upgrade_note,
            started=self._started,
            socket=self._config.control.socket,
            mount=fuse.mountpoint if fuse else "",
            mounted=fuse.serving if fuse else False,
            mount_note=fuse.notes if fuse else "started without a mount",
            store=self._engine.store_status(),
            jobs=self._engine.jobs_count(),
            creations=counters.get("creations_active", 0),
            counters=counters,
        )


def _unmount(connection: Connection) -> None:
    """In the place of a holder that died. A worker has not the right to, where it gave that up."""
    note = connection.unmount()
    if at(connection.mount) is None:
        _log.info("unmounted", mount=connection.mount, note=note)
    else:
        remedy = f"start ckptfsd again, which clears it, or: umount -l {shlex.quote(connection.mount)}"
        _log.warning("a dead mount stays behind", mount=connection.mount, reason=note, remedy=remedy)


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
