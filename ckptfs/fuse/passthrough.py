"""Opens and releases of files, where some can be read past the daemon.

modes.py decides, the journal remembers, a :class:`~ckptfs.fuse.channel.Backings` registers files with
the kernel, the extension answers OPEN. This module is the order in which they are asked. What it relies
on: a handler's return and pyfuse3's reply are one step of the event loop, so whatever is done without an
``await`` at the end of an open, or by run_sync_soon after a release, is before or after the reply.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import structlog
import trio

from ckptfs.fuse import channel
from ckptfs.fuse.channel import Backings
from ckptfs.fuse.modes import Mode, Modes, Step

log = structlog.get_logger(__name__)

# Gives, for as long as it is entered, a descriptor of the file that has all the bytes.
Native = Callable[[], AbstractContextManager[int]]

# What no later file will be spared: off for good.
_HOPELESS = frozenset((errno.EPERM, errno.ELOOP, errno.ENOTTY, errno.EOPNOTSUPP))


class Passthrough:
    """``why_not``: why no file is opened past the daemon; empty when files can be. It may become so
    later: files that are open stay as they are."""

    def __init__(self, modes: Modes, backings: Backings, *, why_not: str = "") -> None:
        self.why_not = why_not or channel.missing()
        self._modes = modes
        self._backings = backings
        self._registering: dict[int, trio.Event] = {}
        self._backed_by: dict[int, Native] = {}  # of the inodes that are open natively since this process
        self._refused = 0
        self._promised = 0  # opens whose answer should have been the extension's
        self._granted_before = channel.statistics().get("granted", 0)

    def restore(self) -> list[int]:
        """Take over from the process before: to be called before the first request. Answers the backing
        ids in use; whoever registers can free all others."""
        in_use = self._modes.restore()
        channel.clear()
        for inode, backing_id in self._modes.passthrough_inodes().items():
            if not channel.grant(inode, backing_id):
                log.warning(
                    "a file that is open natively cannot be opened again until it is closed", inode=inode
                )
        return in_use

    def handles(self) -> dict[int, int]:
        """inode -> open handles, those from before a restart too; never less than there are."""
        return self._modes.handles()

    async def open(
        self, inode: int, native: Native | None, check: Callable[[Native | None], None] = lambda backing: None
    ) -> Mode:
        """One more handle, whose number must be ``inode``. ``native``: None when the file's bytes do not
        all lie in one file of their own. ``check`` may refuse (raise) that the handle joins others that are
        open natively; it gets what ``native`` was for the first of them, None if that was before a restart.

        To be the last thing that an open waits for: answer in the same step. Raises OSError (ENFILE).
        """
        while True:
            step = self._modes.next_step(inode, native=native is not None and not self.why_not)
            if step is Step.WAIT:
                await self._registering[inode].wait()
            elif step is Step.REGISTER:
                assert native is not None
                return await self._open_first(inode, native)
            else:
                if step is Step.PASSTHROUGH:
                    check(self._backed_by.get(inode))
                mode = self._modes.opened(inode).mode
                if mode is Mode.PASSTHROUGH:
                    self._promised += 1
                return mode

    def release(self, inode: int) -> None:
        """A handle is closed: to be called in the handler. It is counted after the answer was sent."""
        trio.lowlevel.current_trio_token().run_sync_soon(partial(self._released, inode))

    def statistics(self) -> dict[str, int]:
        return {**self._modes.statistics(), "native_opens_refused": self._refused, **_extension_counters()}

    async def _open_first(self, inode: int, native: Native) -> Mode:
        over = self._registering[inode] = trio.Event()
        backing_id = 0
        try:
            with native() as fd:
                backing_id = await self._backings.open(fd)
        except OSError as error:
            self._refuse(inode, error)
        finally:
            if backing_id and not channel.grant(inode, backing_id):
                self._backings.close(backing_id)
                backing_id = 0
            if not backing_id:
                self._modes.not_registered(inode)
            del self._registering[inode]
            over.set()
        if not backing_id:
            return self._modes.opened(inode).mode
        try:
            self._modes.registered(inode, backing_id)
        except OSError:
            channel.revoke(inode)
            self._backings.close(backing_id)
            raise
        self._backed_by[inode] = native
        self._promised += 1
        return Mode.PASSTHROUGH

    def _released(self, inode: int) -> None:
        backing_id = self._modes.released(inode)
        if backing_id:
            self._backed_by.pop(inode, None)
            channel.revoke(inode)
            self._backings.close(backing_id)
        self._check_effect()

    def _refuse(self, inode: int, error: OSError) -> None:
        self._refused += 1
        if error.errno in _HOPELESS:
            self.why_not = f"the kernel refuses backing files ({error.strerror})"
            log.warning("no more files are opened natively", reason=self.why_not)
        else:
            log.info("a file is served by the daemon that could be native", inode=inode, reason=str(error))

    def _check_effect(self) -> None:
        """After the first handle that should have been native was closed: was the extension asked?"""
        if not self._promised:
            return
        if channel.statistics().get("granted", 0) > self._granted_before:
            self._promised = 0
            self._granted_before = -1  # proven once and for all
        elif not self.why_not:
            self.why_not = "pyfuse3 answers OPEN without the extension (libfuse linked in another way)"
            log.warning("no files are opened natively", reason=self.why_not)
            channel.clear()
            self._backed_by.clear()
            for backing_id in self._modes.demote():
                self._backings.close(backing_id)


def _extension_counters() -> dict[str, int]:
    counters = channel.statistics()
    return {"native_opens": counters.get("granted", 0), "native_table_used": counters.get("table_used", 0)}
