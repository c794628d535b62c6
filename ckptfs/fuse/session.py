"""A connection that is served: from the first request that this process takes to the last.

Who makes the connection and who serves it are two processes, so that the second can die or be replaced
(connection, and ckptfsd.holder). Here pyfuse3 takes a connection over (takeover) and answers requests from
it until the session is cancelled or the connection ends; files that are whole are opened past it
(passthrough). The mount is not ours: whoever made it takes it away.

The order of the end matters. First the invalidation task stops, so that nothing writes notices to a
descriptor that is being closed. Then the loop ends, given a few seconds for what is in flight. What was
taken and not answered by then is the next session's, by resend, or ends with the connection.

pyfuse3 keeps its session in module globals: one at a time per process, which :class:`FuseSession` guards.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pyfuse3
import structlog
import trio

from ckptfs.engine.nodes import ROOT_INODE
from ckptfs.engine.view import View
from ckptfs.errors import MountError
from ckptfs.fuse import channel
from ckptfs.fuse.channel import Backings
from ckptfs.fuse.connection import Connection
from ckptfs.fuse.mode_table import ModeTable
from ckptfs.fuse.modes import Modes
from ckptfs.fuse.operations import CheckpointOperations
from ckptfs.fuse.passthrough import Passthrough
from ckptfs.fuse.splice import SplicedReads
from ckptfs.fuse.takeover import Takeover
from ckptfs.fuse.ticker import ticking

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MountConfig:
    """The limits of serving. Those of the connection itself are :class:`ckptfs.fuse.connection.Terms`."""

    # Tasks of pyfuse3's loop: every request that waits takes one, so this must be far more than the
    # reads that can wait for a disk, or a stat waits with them. A task that waits costs some KiB.
    max_tasks: int = 8192
    # Idle tasks that are kept: making one for each request would cost more than the request.
    min_tasks: int = 16
    # Blobs that are kept open for the extension that answers reads without Python; 0: it answers none.
    spliced_blobs: int = 1024
    # What a stop waits for requests in flight before it cuts them off.
    stop_grace_seconds: float = 5.0


class FuseSession:
    """Shows ``view`` on a connection. Start :meth:`run` in a nursery; cancel it to let go.

    ``backings``: who registers files with the kernel. ``notes``: what this mount cannot do, and why, in one
    line; empty when there is nothing to say.
    """

    _in_use: ClassVar[bool] = False

    def __init__(
        self, view: View, connection: Connection, backings: Backings, *, config: MountConfig | None = None
    ) -> None:
        self._view = view
        self._connection = connection
        self._backings = backings
        self._config = config or MountConfig()
        self._operations = CheckpointOperations(view)
        self._serving = False
        self._leaving = False
        self._loop_ended = trio.Event()
        self._loop_error: BaseException | None = None
        self._changed: set[bytes] = set()
        self._wake = trio.Event()
        self._grace_seconds = self._config.stop_grace_seconds
        self.mountpoint = connection.mount
        self._notes = [connection.notes]

    @property
    def serving(self) -> bool:
        return self._serving

    @property
    def notes(self) -> str:
        passthrough = self._operations.passthrough
        why_not = passthrough.why_not if passthrough else ""
        through = f"reads go through the daemon: {why_not}" if why_not else ""
        return "; ".join(note for note in (*self._notes, through) if note)

    @property
    def past_the_daemon(self) -> str:
        """Why whole files are not read past the daemon; empty when they are."""
        passthrough = self._operations.passthrough
        return passthrough.why_not if passthrough else "the mount is not served yet"

    def hurry(self, seconds: float) -> None:
        """At the end, give requests in flight no more than this: the next session gets them again."""
        self._grace_seconds = min(self._grace_seconds, seconds)

    def counters(self) -> dict[str, int]:
        passthrough = self._operations.passthrough
        return {
            **self._operations.counters,
            **self._operations.faults.counters,
            **self._operations.spliced.counters(),
            **(passthrough.statistics() if passthrough else {}),
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. ``started`` means that the mount answers.

        Raises :class:`MountError` when the connection ends: somebody else took the mount away.
        """
        if FuseSession._in_use:
            raise MountError("this process serves a mount already: pyfuse3 can serve one")
        FuseSession._in_use = True
        try:
            passthrough = self._operations.passthrough = await self._passthrough()
            await self._backings.keep(passthrough.restore())
            self._view.adopt(passthrough.handles())
            self._operations.spliced = SplicedReads(self._config.spliced_blobs)
            takeover = self._operations.takeover = Takeover(
                self._connection.fuse_fd, self._connection.offered.raw, resend=self._connection.resend
            )
            try:
                pyfuse3.init(self._operations, takeover.mountpoint, set())
            except BaseException:
                takeover.abandon()
                raise
            with ticking() as works:
                if not works:
                    self._notes.append("not in the main thread, so a killed reader can hold up all others")
                await self._serve(task_status)
        finally:
            FuseSession._in_use = False

    async def _passthrough(self) -> Passthrough:
        """Reads past the daemon, or why there are none."""
        connection = self._connection
        why_not = "" if connection.passthrough else "passthrough is switched off (mount.passthrough)"
        why_not = why_not or channel.missing() or channel.missing_in_kernel(connection.offered)
        why_not = why_not or await channel.missing_in_store(self._backings, self._view.blobs_directory)
        return Passthrough(Modes(ModeTable(connection.modes_fd)), self._backings, why_not=why_not)

    # --- Serve -----------------------------------------------------------------------------------------

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        noise = _DropAnswersToTheDead()
        logging.getLogger("pyfuse3").addFilter(noise)
        loop_scope = trio.CancelScope(shield=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._loop, loop_scope)
                invalidations = await nursery.start(self._invalidate)
                try:
                    if await self._taken_over():
                        self._serving = True
                        log.info("serving", mount=self.mountpoint, notes=self.notes)
                        task_status.started()
                    await self._loop_ended.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._let_go(loop_scope, *invalidations)
        finally:
            logging.getLogger("pyfuse3").removeFilter(noise)
        if not self._leaving:
            raise MountError(
                f"the mount at {self.mountpoint} was taken away from outside "
                f"({self._loop_error or 'unmounted'})"
            )

    async def _loop(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await pyfuse3.main(min_tasks=self._config.min_tasks, max_tasks=self._config.max_tasks)
        except* OSError as errors:
            # An aborted connection (fusectl) comes as ECONNABORTED; an unmounted one ends the loop.
            self._loop_error = _first(errors)
        except* Exception as errors:
            self._loop_error = _first(errors)
            log.error("the request loop failed", exc_info=self._loop_error)
        finally:
            self._loop_ended.set()

    async def _taken_over(self) -> bool:
        """Wait until libfuse has its INIT; False when the session ended instead."""
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self._loop_ended.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            await self._operations.started.wait()
            nursery.cancel_scope.cancel()
        return not self._loop_ended.is_set()

    async def _invalidate(self, *, task_status: trio.TaskStatus[tuple[trio.CancelScope, trio.Event]]) -> None:
        """Tell the kernel which names of the root are not what they were.

        In a thread: the kernel takes the directory's lock for it, which a lookup that waits for us may
        hold. The set takes any number of changes while one notice waits.
        """
        ended = trio.Event()

        def on_change(names: set[bytes]) -> None:
            self._changed |= names
            self._wake.set()

        stop_listening = self._view.on_change(on_change)
        try:
            with trio.CancelScope() as scope:
                task_status.started((scope, ended))
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    names, self._changed = self._changed, set()
                    await trio.to_thread.run_sync(partial(_notify, names))
        finally:
            stop_listening()
            ended.set()

    # --- Let go ----------------------------------------------------------------------------------------

    async def _let_go(
        self, loop_scope: trio.CancelScope, invalidations: trio.CancelScope, no_more_notices: trio.Event
    ) -> None:
        self._leaving = not self._loop_ended.is_set()
        invalidations.cancel()
        await no_more_notices.wait()
        pyfuse3.terminate()
        with trio.move_on_after(self._grace_seconds) as grace:
            await self._loop_ended.wait()
        if grace.cancelled_caught:
            log.warning("requests in flight were cut off", mount=self.mountpoint)
            loop_scope.cancel()
            await self._loop_ended.wait()
        pyfuse3.close(unmount=False)
        self._operations.spliced.close()
        self._serving = False


class _DropAnswersToTheDead(logging.Filter):
    """When a process is killed while it waits, the reply finds no request (ENOENT). pyfuse3 logs that as
    an error; it is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        return os.strerror(errno.ENOENT) not in record.getMessage()


def _notify(names: set[bytes]) -> None:
    for name in names:
        _ignoring_unknown(partial(pyfuse3.invalidate_entry, ROOT_INODE, name))
    _ignoring_unknown(partial(pyfuse3.invalidate_inode, ROOT_INODE, attr_only=True))


def _ignoring_unknown(notice: partial[None]) -> None:
    """ENOENT: the kernel never heard of the name. Others: the mount is going; its cache goes with it."""
    try:
        notice()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            log.warning("a change was not taken by the kernel", reason=str(error))


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
