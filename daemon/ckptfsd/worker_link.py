"""The worker's side of the holder: orders come in, and the holder registers files for us.

ckptfsd.holder.wire has the table of messages. A worker that was not started by a holder has no link and
does everything itself.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

import structlog
import trio

from ckptfs.fuse.connection import Connection, from_description
from ckptfsd.holder import wire

log = structlog.get_logger(__name__)

_HEARTBEAT_SECONDS = 5.0
# For what the holder is to hear before we wait for it, or end.
_DELIVERY_SECONDS = 5.0
# Backing ids in a message: a datagram holds 64 KiB.
_IDS_PER_MESSAGE = 2000


class Listener(NamedTuple):
    """The control interface's socket, as the worker before this one left it. ``inode``: device and number
    of the socket file."""

    fd: int
    path: str
    inode: tuple[int, int]


class Introduction(NamedTuple):
    """What there is to serve. The descriptors are this process's, to be closed with :meth:`close`."""

    connection: Connection
    starts: int  # how many workers there were before this one
    upgrades: int  # that succeeded, with this one if it is one; -1: the holder does not count them
    configuration: str = ""  # of the worker that was ready last
    listener: Listener | None = None

    def duplicate(self, listener: Listener | None) -> Introduction:
        """The same with descriptors of its own, and with another listener."""
        return self._replace(connection=self.connection.duplicate(), listener=listener)

    def close(self) -> None:
        self.connection.close()
        if self.listener is not None:
            os.close(self.listener.fd)


class Order(NamedTuple):
    """``verb``: standby, serve, resume (both with the introduction), pause, exit, stop, upgrade_failed
    (with the reason), gone (the holder died: nobody will start us again, and unmounting is ours),
    misunderstood (with the reason)."""

    verb: str
    introduction: Introduction | None = None
    reason: str = ""
    native: int = 0  # of standby: how many files are open past the daemon
    spare: bool = False  # of standby: it is for the case that the one that serves dies


class HolderLink:
    """Say :meth:`hello`, then follow orders: outside the event loop with :meth:`wait`, inside it with
    :meth:`run` in a nursery and :attr:`orders`. The two may alternate, as a worker that is paused does."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._requests: dict[int, trio.Event] = {}
        self._answers: dict[int, wire.Message] = {}
        self._last_request = 0
        self._gone = False
        self._listener: Listener | None = None
        #: This worker has served.
        self.was_ready = False
        #: The worker that waits for the death of this one (a process number); 0: there is none.
        self.spare_pid = 0
        # What the holder's mailbox had no room for: it was busy, and must not miss the end of a registration.
        self._unsent: deque[tuple[wire.Message, tuple[int, ...]]] = deque()
        self._has_unsent = trio.Event()
        self._send_order, self.orders = trio.open_memory_channel[Order](math.inf)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> HolderLink | None:
        """The link that the holder has left us; taken out of the environment, and not for children."""
        number = environ.pop(wire.ENVIRONMENT, "")
        if not number.isdecimal():
            return None
        os.set_inheritable(int(number), False)
        return cls(socket.socket(fileno=int(number)))

    def wait(self) -> Order:
        """The next order, blocking: for a worker that has no event loop yet, or none any more."""
        self._deliver_now()
        while True:
            with contextlib.suppress(trio.WouldBlock):
                return self.orders.receive_nowait()
            received = wire.receive(self._peer)
            if received is None:
                return Order("gone")
            self._take(*received)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive until cancelled, or until the holder is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._deliver)
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(self._peer)
                received = wire.receive(self._peer)
                if received is None:
                    break
                self._take(*received)
            self._gone = True
            for number, event in self._requests.items():
                self._answers[number] = {"error": errno.ENOTCONN}
                event.set()
            log.warning("the holder is gone: this worker serves on, and will not be started again")
            self._send_order.send_nowait(Order("gone"))
            nursery.cancel_scope.cancel()

    # --- What a worker says ----------------------------------------------------------------------------

    def hello(self, version: str) -> None:
        self._say({"do": "hello", "version": version})

    def prepared(self) -> None:
        self._say({"do": "prepared"})

    def ready(self, notes: str = "", configuration: str = "") -> None:
        """``configuration``: ours, for a worker that finds a mistake in the file."""
        self.was_ready = True
        self._say({"do": "ready", "notes": notes, "configuration": configuration})

    def paused(self) -> None:
        self._say({"do": "paused"})

    def lost(self, reason: str) -> None:
        """The connection ended under us: the holder makes another one, or stops."""
        self._say({"do": "lost", "reason": reason})

    def failing(self, error: str) -> None:
        """Why this worker is about to end: the last that the holder hears of it."""
        self._say({"do": "failing", "error": error})
        self._deliver_now()

    def leave_listener(self, fd: int, path: str, inode: tuple[int, int]) -> None:
        """Have the holder keep the control interface's socket for the worker after this one."""
        self._say({"do": "listener", "path": path, "inode": inode}, (fd,))
        if (before := self.listener_back()) is not None:
            os.close(before.fd)
        self._listener = Listener(os.dup(fd), path, inode)

    def listener_back(self) -> Listener | None:
        """What was left with the holder, when that has died; the caller's to close."""
        listener, self._listener = self._listener, None
        return listener

    def stop(self) -> None:
        """Ask for the end of everything, as SIGTERM to the holder would."""
        self._say({"do": "stop"})

    def upgrade(self, argv: list[str] | None = None) -> None:
        """Ask to be replaced. If that fails, the order ``upgrade_failed`` comes."""
        self._say({"do": "upgrade", "argv": argv})

    # --- ckptfs.fuse.channel.Backings ------------------------------------------------------------------

    async def open(self, fd: int) -> int:
        self._last_request += 1
        number = self._last_request
        answered = self._requests[number] = trio.Event()
        try:
            await self._say_when_possible({"do": "open", "id": number}, (fd,))
            await answered.wait()
        except BaseException:  # cancelled; an answer that is still to come finds nobody: _take()
            if backing := self._answers.pop(number, {}).get("backing"):
                self.close(int(backing))
            raise
        finally:
            del self._requests[number]
        answer = self._answers.pop(number)
        if "backing" not in answer:
            why = int(answer.get("error") or errno.EIO)
            raise OSError(why, os.strerror(why))
        return int(answer["backing"])

    async def keep(self, backing_ids: Sequence[int]) -> None:
        """A part that gets lost would be freed: each waits for its place in the holder's mailbox."""
        with contextlib.suppress(OSError):  # the holder is gone, and frees nothing
            for start in range(0, len(backing_ids) + 1, _IDS_PER_MESSAGE):
                part = list(backing_ids[start : start + _IDS_PER_MESSAGE])
                more = start + _IDS_PER_MESSAGE <= len(backing_ids)
                await self._say_when_possible({"do": "keep", "backings": part, "more": more}, ())

    def close(self, backing_id: int) -> None:
        self._say({"do": "close", "backing": backing_id})

    # --- Inside ----------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """From the event loop: what hangs stops saying it."""
        while True:
            if not self._unsent:
                self._say({"do": "alive"})
            await trio.sleep(_HEARTBEAT_SECONDS)

    def _say(self, message: wire.Message, descriptors: Sequence[int] = ()) -> None:
        """Never waits: what there is no room for is delivered later. A holder that is dead misses it."""
        if not self._unsent:
            try:
                wire.send(self._peer, message, descriptors)
                return
            except BlockingIOError:
                pass
            except OSError:
                return
        self._unsent.append((message, tuple(os.dup(fd) for fd in descriptors)))
        self._has_unsent.set()

    async def _deliver(self) -> None:
        while True:
            await self._has_unsent.wait()
            while self._unsent:
                if not self._deliver_one():
                    await trio.lowlevel.wait_writable(self._peer)
            self._has_unsent = trio.Event()

    def _deliver_now(self) -> None:
        """Outside the event loop."""
        deadline = time.monotonic() + _DELIVERY_SECONDS
        while self._unsent and time.monotonic() < deadline:
            if not self._deliver_one():
                select.select((), (self._peer,), (), max(0.0, deadline - time.monotonic()))

    def _deliver_one(self) -> bool:
        message, descriptors = self._unsent[0]
        try:
            wire.send(self._peer, message, descriptors)
        except BlockingIOError:
            return False
        except OSError:
            log.debug("the holder missed a message", verb=message["do"])
        self._unsent.popleft()
        wire.close_all(descriptors)
        return True

    async def _say_when_possible(self, message: wire.Message, descriptors: tuple[int, ...]) -> None:
        if self._gone:
            raise OSError(errno.ENOTCONN, "the holder is gone")
        while True:
            try:
                wire.send(self._peer, message, descriptors)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._peer)
            else:
                return

    def _take(self, message: wire.Message, descriptors: list[int]) -> None:
        verb = message["do"]
        if verb == "opened":
            event = self._requests.get(message["id"])
            if event is not None:
                self._answers[message["id"]] = message
                event.set()
            elif "backing" in message:
                self.close(message["backing"])
        elif verb == "spare":
            wire.close_all(descriptors)
            self.spare_pid = int(message["pid"])
        elif verb in ("serve", "resume"):
            self._send_order.send_nowait(_introduced(verb, message, descriptors))
        elif verb in ("standby", "pause", "exit", "stop", "upgrade_failed"):
            wire.close_all(descriptors)
            order = Order(
                verb,
                reason=str(message.get("error", "")),
                native=int(message.get("native", 0)),
                spare=bool(message.get("spare", False)),
            )
            self._send_order.send_nowait(order)
        else:
            wire.close_all(descriptors)
            log.error("an order that is not understood", verb=verb)


def _introduced(verb: str, message: wire.Message, descriptors: list[int]) -> Order:
    """An order to serve. One that this version does not understand is an order to leave: the holder then
    goes on with the worker before this one."""
    try:
        if message["protocol"] != wire.PROTOCOL:
            raise ValueError(f"protocol {message['protocol']!r}, and this version speaks {wire.PROTOCOL}")
        fuse_fd, modes_fd, *more = descriptors
        connection = from_description(message["connection"], fuse_fd, modes_fd)
        listener = None
        if more:
            told = message["listener"]
            listener = Listener(more[0], str(told["path"]), (int(told["inode"][0]), int(told["inode"][1])))
        starts, upgrades = int(message["starts"]), int(message.get("upgrades", -1))
        configuration = str(message.get("configuration", ""))
        return Order(verb, Introduction(connection, starts, upgrades, configuration, listener))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        wire.close_all(descriptors)
        return Order(
            "misunderstood",
            reason=f"the holder is of another version ({error}); restart ckptfsd to replace both",
        )
