"""One mount, from its mountpoint to its end.

Theory of operation. Three things that libfuse does as one are kept apart, because later they belong
to two processes (the one that holds the mount and the one that serves it):

1. *connect*: a descriptor of /dev/fuse is mounted (kernel_mount);
   and INIT is answered by us, because libfuse knows nothing of passthrough (init_reply);
2. *serve*: pyfuse3 takes the connection over (takeover) and answers requests from it until the session
   ends; files that are whole are opened past it (passthrough);
3. *disconnect*: unmount, end the loop, close the descriptor.

The order of the end matters. First the invalidation task stops, so that nothing writes notices to a
descriptor that is being closed. Then the mount goes while requests are still answered: whoever is in
a read gets its bytes. What is open keeps an unmount from succeeding; the mount is then detached lazily
and said so. Then the loop ends, given a few seconds for what is in flight. Closing the descriptor
comes last and ends the connection: whoever still has a file open gets ENOTCONN, nobody waits.

pyfuse3 keeps its session in module globals: one per process, which :class:`FuseSession` guards.
"""

from __future__ import annotations

import contextlib
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
from ckptfs.fuse import channel, device, init_reply, kernel_mount, tuning
from ckptfs.fuse.channel import OwnBackings
from ckptfs.fuse.mode_table import ModeTable, new_table
from ckptfs.fuse.modes import Modes
from ckptfs.fuse.mountinfo import Mounted, at
from ckptfs.fuse.mountpoint import prepare
from ckptfs.fuse.operations import CheckpointOperations
from ckptfs.fuse.passthrough import Passthrough
from ckptfs.fuse.takeover import Takeover
from ckptfs.fuse.ticker import ticking

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MountConfig:
    """The mount's limits. Defaults are measured: docs/adr/0009-the-mounts-edge.md."""

    # How far the kernel reads ahead of a sequential reader, in KiB. Requests of 1 MiB need at least 1024.
    read_ahead_kib: int = 8192
    # Requests that the kernel sends ahead or in the background at a time; its own default is 12.
    max_background: int = 4096
    # Tasks of pyfuse3's loop: every request that waits takes one, so this must be far more than the
    # reads that can wait for a disk, or a stat waits with them. A task that waits costs some KiB.
    max_tasks: int = 8192
    # Idle tasks that are kept: making one for each request would cost more than the request.
    min_tasks: int = 16
    # Open whole files past the daemon, where the kernel, our rights and the store's file system allow it.
    passthrough: bool = True
    # What a stop waits for requests in flight before it cuts them off.
    stop_grace_seconds: float = 5.0


class FuseSession:
    """Shows ``view`` at ``mountpoint``. Start :meth:`run` in a nursery; cancel it to unmount.

    ``allow_other``: whether other users see the mount; by default wherever the system lets us.
    ``notes``: what this mount cannot do, and why, in one line; empty when there is nothing to say.
    """

    _in_use: ClassVar[bool] = False

    def __init__(
        self,
        view: View,
        mountpoint: str,
        *,
        allow_other: bool | None = None,
        config: MountConfig | None = None,
    ) -> None:
        self._view = view
        self._wanted_path = mountpoint
        self._allow_other = allow_other
        self._config = config or MountConfig()
        self._operations = CheckpointOperations(view)
        self._mounted: Mounted | None = None
        self._device = -1
        self._stopping = False
        self._loop_ended = trio.Event()
        self._loop_error: BaseException | None = None
        self._changed: set[bytes] = set()
        self._wake = trio.Event()
        self.mountpoint = mountpoint
        self.notes = ""

    @property
    def mounted(self) -> bool:
        return self._mounted is not None

    def counters(self) -> dict[str, int]:
        passthrough = self._operations.passthrough
        return {
            **self._operations.counters,
            **self._operations.faults.counters,
            **(passthrough.statistics() if passthrough else {}),
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, serve until cancelled, unmount. ``started`` means that the mount answers.

        Raises :class:`MountError` when it cannot be mounted, or when somebody else takes the mount away.
        """
        if FuseSession._in_use:
            raise MountError("this process has a mount already: pyfuse3 can serve one")
        FuseSession._in_use = True
        try:
            self.mountpoint, cleared = await prepare(self._wanted_path)
            if cleared:
                self._note(cleared)
            await self._connect()
            with ticking() as works:
                if not works:
                    self._note("not in the main thread, so a killed reader can hold up all others")
                await self._serve(task_status)
        finally:
            FuseSession._in_use = False

    # --- Connect ---------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        allow_other = self._allow_other
        if allow_other is None:
            allow_other = kernel_mount.others_allowed()
            if not allow_other:
                self._note(
                    f"only processes of user {os.geteuid()} see the mount "
                    "(user_allow_other in /etc/fuse.conf, or root, lets others in)"
                )
        fd = kernel_mount.attach(self.mountpoint, allow_other=allow_other)
        try:
            self._mounted = at(self.mountpoint)
            if self._mounted is None:
                raise MountError(f"{self.mountpoint} was unmounted the moment it was mounted")
            wishes = init_reply.Wishes(max_background=self._config.max_background)
            offered = await trio.to_thread.run_sync(device.negotiate, fd, wishes)
            self._operations.passthrough = await self._passthrough(fd, offered)
            takeover = self._operations.takeover = Takeover(fd, offered.raw, resend=False)
            try:
                pyfuse3.init(self._operations, takeover.mountpoint, set())
            except BaseException:
                takeover.abandon()
                raise
            self._device = fd
        except BaseException as error:
            os.close(fd)
            with contextlib.suppress(OSError):
                kernel_mount.detach(self.mountpoint, lazy=True)
            self._mounted = None
            if isinstance(error, init_reply.NotInit | TimeoutError):
                raise MountError(f"the kernel does not begin to serve {self.mountpoint}: {error}") from error
            raise

    async def _passthrough(self, fd: int, offered: init_reply.InitRequest) -> Passthrough:
        """Reads past the daemon, or why there are none: that is said once, here and in the notes."""
        backings = OwnBackings(fd)
        why_not = "" if self._config.passthrough else "passthrough is switched off (mount.passthrough)"
        why_not = why_not or channel.missing() or channel.missing_in_kernel(offered)
        why_not = why_not or await channel.missing_in_store(backings, self._view.blobs_directory)
        passthrough = Passthrough(Modes(ModeTable(new_table())), backings, why_not=why_not)
        passthrough.restore()
        if why_not:
            self._note(f"reads go through the daemon: {why_not}")
        return passthrough

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
                    if await self._started_by_kernel():
                        self._tune()
                        log.info("mounted", mount=self.mountpoint, notes=self.notes)
                        task_status.started()
                    await self._loop_ended.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._disconnect(loop_scope, *invalidations)
        finally:
            logging.getLogger("pyfuse3").removeFilter(noise)
        if not self._stopping:
            raise MountError(
                f"the mount at {self.mountpoint} was taken away from outside "
                f"({self._loop_error or 'unmounted'}); start the daemon again to mount it"
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

    async def _started_by_kernel(self) -> bool:
        """Wait for INIT; False when the session ended instead."""
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self._loop_ended.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            await self._operations.started.wait()
            nursery.cancel_scope.cancel()
        return not self._loop_ended.is_set()

    def _tune(self) -> None:
        assert self._mounted is not None
        self._note(tuning.raise_read_ahead(self._mounted, self._config.read_ahead_kib))
        self._note(tuning.raise_max_background(self._mounted, self._config.max_background))

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

    # --- Disconnect ------------------------------------------------------------------------------------

    async def _disconnect(
        self, loop_scope: trio.CancelScope, invalidations: trio.CancelScope, no_more_notices: trio.Event
    ) -> None:
        self._stopping = not self._loop_ended.is_set()
        invalidations.cancel()
        await no_more_notices.wait()
        await self._unmount()
        pyfuse3.terminate()
        with trio.move_on_after(self._config.stop_grace_seconds) as grace:
            await self._loop_ended.wait()
        if grace.cancelled_caught:
            log.warning("requests in flight were cut off", mount=self.mountpoint)
            loop_scope.cancel()
            await self._loop_ended.wait()
        pyfuse3.close(unmount=False)
        os.close(self._device)
        self._mounted = None

    async def _unmount(self) -> None:
        ours = self._mounted
        if ours is None or not _is_top(ours):
            return  # taken away already, or hidden below somebody else's mount
        for lazy in (False, True):
            try:
                await trio.to_thread.run_sync(partial(kernel_mount.detach, self.mountpoint, lazy=lazy))
            except OSError as error:
                if error.errno == errno.EBUSY and not lazy:
                    log.warning(
                        "files are open on the mount: it is detached and goes with the last of them",
                        mount=self.mountpoint,
                    )
                    continue
                log.warning("the mount could not be unmounted", mount=self.mountpoint, reason=str(error))
            return

    def _note(self, text: str) -> None:
        self.notes = "; ".join(part for part in (self.notes, text) if part)


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


def _is_top(mounted: Mounted) -> bool:
    top = at(mounted.mountpoint)
    return top is not None and top.device == mounted.device


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
