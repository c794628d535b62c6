"""A store and its mount in a process of their own, told what to do by lines of JSON.

The tests must not share an interpreter with the mount: a page fault of theirs would wait, with the GIL
held, for a handler that needs it. ``python mount_process.py STORE MOUNT [OPTIONS-AS-JSON]``; every
line on stdin is ``{"do": …}`` and is answered by one line on stdout. The end of stdin is the stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from dataclasses import fields
from typing import Any

import structlog
import trio

from ckptfs.engine import warm
from ckptfs.engine.config import ReadLimits
from ckptfs.engine.view import View
from ckptfs.errors import CkptfsError
from ckptfs.fuse import FuseSession, MountConfig, connection, session
from ckptfs.fuse.channel import OwnBackings
from ckptfs.store import Checkpoint, Store


class MountProcess:
    def __init__(self, store: Store, mountpoint: str, options: dict[str, Any]) -> None:
        self.store = store
        self.names: set[str] = set(options.pop("attach", []))
        terms = {name: options.pop(name) for name in list(options) if name in connection.Terms._fields}
        if options.pop("without_ticks", False):  # to see what the cure cures
            session.ticking = lambda: contextlib.nullcontext(True)
        if options.pop("threads_of_everybody", False):
            warm._threads = None
        limits = {field.name for field in fields(ReadLimits)} & set(options)
        self.view = View(store, self.attached, ReadLimits(**{name: options.pop(name) for name in limits}))
        self.worst_gap_seconds = 0.0
        self.connection = connection.connect(mountpoint, connection.Terms(**terms))
        self.session = FuseSession(
            self.view,
            self.connection,
            OwnBackings(self.connection.fuse_fd),
            config=MountConfig(**options),
        )

    def attached(self) -> dict[str, Checkpoint]:
        found = (self.store.by_name(name) for name in self.names)
        return {checkpoint.name: checkpoint for checkpoint in found if checkpoint}

    def end(self) -> None:
        """Take the mount away, as the holder does."""
        if note := self.connection.unmount():
            structlog.get_logger().warning(note)
        self.connection.close()

    async def watch(self) -> None:
        """How long a task of the loop that wants to run every 10 ms had to wait for it."""
        while True:
            before = time.monotonic()
            await trio.sleep(0.01)
            self.worst_gap_seconds = max(self.worst_gap_seconds, time.monotonic() - before)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await nursery.start(self.session.run)
            say({"ready": self.session.mountpoint, "notes": self.session.notes})
            lines = trio.lowlevel.FdStream(os.dup(0))
            pending = b""
            while data := await lines.receive_some():
                *whole, pending = (pending + data).split(b"\n")
                for line in whole:
                    say(await self.do(json.loads(line)))
            nursery.cancel_scope.cancel()

    async def do(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request["do"]
        if what == "attach":
            self.names = set(request["names"])
            self.view.refresh()
        elif what == "load":
            await self.view.load(request["ordinal"])
        elif what == "rename":
            await trio.to_thread.run_sync(self.store.rename, request["ordinal"], request["name"])
            self.names = {request["name"] if n == request["was"] else n for n in self.names}
            self.view.refresh()
        elif what == "remove":
            if self.view.open_files(request["ordinal"]):
                return {"refused": self.view.open_files(request["ordinal"])}
            await trio.to_thread.run_sync(self.store.remove, request["ordinal"])
        elif what == "settle":
            await trio.to_thread.run_sync(self.store.settle)
        elif what == "open_files":
            return {"open_files": self.view.open_files(request["ordinal"])}
        elif what == "ambush":
            trio.lowlevel.add_instrument(Ambush(self.fuse_descriptor(), request["pid"]))
        elif what == "watch":
            self.nursery.start_soon(self.watch)
        elif what == "worst_gap":
            return {"seconds": self.worst_gap_seconds}
        elif what == "counters":
            return {**self.view.counters(), **self.session.counters()}
        else:
            raise ValueError(what)
        return {}

    @staticmethod
    def fuse_descriptor() -> int:
        found = [int(fd) for fd in os.listdir("/proc/self/fd") if _target(fd) == "/dev/fuse"]
        return found[0]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


class Ambush(trio.abc.Instrument):
    """Kills a process when its request has made /dev/fuse readable and before it is read: the moment
    that no test would hit by chance. Then the loop reads what is not there any more."""

    def __init__(self, fuse: int, pid: int) -> None:
        self._fuse = select.poll()
        self._fuse.register(fuse, select.POLLIN)
        self._pid = pid

    def after_io_wait(self, timeout: float) -> None:
        if not self._fuse.poll(0):
            return
        os.kill(self._pid, signal.SIGKILL)
        while self._fuse.poll(0):
            time.sleep(0.001)
        trio.lowlevel.remove_instrument(self)


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    store = Store.open(sys.argv[1])
    try:
        options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
        if user := options.pop("run_as", 0):
            # Now, not at the start: that user may not be allowed to execute this interpreter.
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        process = MountProcess(store, sys.argv[2], options)
        try:
            trio.run(process.run)
        finally:
            process.end()
    except* CkptfsError as errors:
        say({"error": str(errors.exceptions[0])})
        sys.exit(7)
    finally:
        store.close()


if __name__ == "__main__":
    main()
