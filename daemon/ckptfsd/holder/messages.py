"""What workers say: checked, and then a call of the crew or an answer.

A worker is not trusted further than its work needs. Until it is told to serve it can have nothing done, and
only one that has the connection registers files on it. Nothing that it says ends the holder.
"""

from __future__ import annotations

import errno
import os
import time

from ckptfsd.holder import wire
from ckptfsd.holder.crew import Crew
from ckptfsd.holder.log import Log
from ckptfsd.holder.options import Options
from ckptfsd.holder.worker import State, Worker

# What a worker asks for that concerns more than the workers; the holder's loop does it.
READY, STOP, LOST = "ready", "stop", "lost"

# Of the reason of a failure, which goes on to the other worker, where it must fit into a message.
_REASON_LENGTH = 4000

_BEFORE_IT_SERVES = (State.STARTING, State.PREPARING, State.STANDBY)
# What is kept for the worker after it, and has to fit into a message to that one.
_CONFIGURATION_LENGTH = 16_000
_SAID_BEFORE_IT_SERVES = ("hello", "prepared", "failing", "alive")


class Messages:
    def __init__(self, crew: Crew, options: Options, log: Log) -> None:
        self._crew = crew
        self._options = options
        self._log = log

    def take(self, worker: Worker) -> str:
        """The next one. Answers what is left to do for the holder: READY, STOP, LOST or nothing."""
        try:
            received = wire.receive(worker.socket)
        except (OSError, ValueError) as error:
            self._log.error("a message that is none", pid=worker.pid, reason=str(error))
            self._crew.end(worker)
            return ""
        if received is None:
            # Its end is closed: it is about to be reaped, or it is of no use any more.
            self._crew.hang_up(worker)
            worker.deadline = worker.deadline or time.monotonic() + self._options.stop_seconds
            return ""
        message, descriptors = received
        try:
            return self._obey(worker, message, descriptors)
        except (KeyError, TypeError, ValueError) as error:
            verb = message["do"]
            self._log.error("a message with a wrong field", pid=worker.pid, verb=verb, reason=str(error))
            return ""
        finally:
            wire.close_all(descriptors)

    def _obey(self, worker: Worker, message: wire.Message, descriptors: list[int]) -> str:
        crew, verb = self._crew, message["do"]
        if worker.state in _BEFORE_IT_SERVES and verb not in _SAID_BEFORE_IT_SERVES:
            state = worker.state.value
            self._log.error("a message out of turn", pid=worker.pid, verb=verb, state=state)
        elif verb == "hello":
            crew.greeted(worker)
        elif verb == "prepared":
            crew.prepared(worker)
        elif verb == "ready":
            notes, configuration = str(message.get("notes", "")), str(message.get("configuration", ""))
            if len(ascii(configuration)) > _CONFIGURATION_LENGTH:
                configuration = ""
            return READY if crew.ready(worker, notes, configuration) else ""
        elif verb == "paused":
            crew.paused(worker)
        elif verb in ("open", "close", "keep"):
            self._registration(worker, verb, message, descriptors)
        elif verb == "listener":
            if worker.connection is crew.mount:
                crew.listener.take(str(message["path"]), message["inode"], descriptors)
        elif verb == "failing":
            worker.reason = str(message["error"])[:_REASON_LENGTH]
        elif verb == "alive":
            worker.last_alive = time.monotonic()
        elif verb == "upgrade":
            argv = message.get("argv")
            crew.upgrade([str(word) for word in argv] if argv else None)
        elif verb in (STOP, LOST):
            return str(verb)
        else:
            self._log.error("an unknown message", pid=worker.pid, verb=verb)
        return ""

    def _registration(self, worker: Worker, verb: str, message: wire.Message, descriptors: list[int]) -> None:
        """From one that has another connection, a lost one, nothing is taken: its ids mean nothing on this
        one. Nor from one that has let go of it."""
        crew = self._crew
        has_it = worker.connection is crew.mount and worker.state is not State.PAUSED
        mount = crew.mount if has_it else None
        if verb == "open":
            answer: wire.Message = {"do": "opened", "id": wire.number(message["id"])}
            try:
                if mount is None:
                    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
                answer["backing"] = crew.backings.register(mount.fuse_fd, descriptors)
            except OSError as error:
                answer["error"] = error.errno
            if not worker.tell(answer) and mount is not None and "backing" in answer:
                crew.backings.free(mount.fuse_fd, answer["backing"])
        elif mount is not None and verb == "close":
            crew.backings.free(mount.fuse_fd, wire.number(message["backing"], bits=31))
        elif mount is not None:
            kept = [wire.number(value, bits=31) for value in message["backings"]]
            crew.backings.keep(mount.fuse_fd, kept, more=bool(message["more"]))
