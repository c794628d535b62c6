"""One worker process, as the holder sees it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Sequence
from enum import Enum
from typing import NoReturn

from ckptfs.fuse.connection import Connection
from ckptfsd import privileges
from ckptfsd.holder import wire

_OOM_SCORE = "/proc/{pid}/oom_score_adj"

# proc_pid_oom_score_adj(5). Without the holder all mounts are lost; a worker is started again, but is still
# what jobs read from. A service manager may have set a lower one than ours.
_HOLDER_SCORE, _WORKER_SCORE = -900, -500


_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


class State(Enum):
    STARTING = "starting"  # has said nothing yet
    PREPARING = "preparing"  # standby: does what can be done ahead
    STANDBY = "standby"  # standby: prepared
    TAKING = "taking"  # was told to serve, is not ready yet
    READY = "ready"
    PAUSING = "pausing"
    PAUSED = "paused"
    LEAVING = "leaving"  # was told to end


class Worker:
    """``upgrade``: it was started for one, and has not been ready yet. ``deadline``: when it is killed if its
    state is still the same (monotonic; 0: never)."""

    def __init__(self, argv: list[str], *, upgrade: bool, start_seconds: float, oom_score: str) -> None:
        self.argv = argv
        self.upgrade = upgrade
        self.state = State.STARTING
        self.ready_at = 0.0
        self.last_alive = 0.0
        self.deadline = time.monotonic() + start_seconds
        self.reaped = False
        self.killed = False  # the kernel lets nobody go who waits for a disk
        self.reason = ""  # why it ends, if it said so
        # Of what it was told to serve. Its ids of registered files mean nothing on another one.
        self.connection: Connection | None = None
        self.socket, theirs = wire.pair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            environment = {**os.environ, wire.ENVIRONMENT: str(theirs.fileno())}
            try:
                self.pid = _start(argv, environment)
            except BaseException:
                self.socket.close()
                raise
        with contextlib.suppress(OSError), open(_OOM_SCORE.format(pid=self.pid), "w") as score:
            score.write(oom_score)

    @property
    def ready_seconds(self) -> float:
        """How long it has been serving; negative: it never was ready."""
        return time.monotonic() - self.ready_at if self.ready_at else -1.0

    def enter(self, state: State, *, within_seconds: float = 0.0) -> None:
        self.state = state
        self.deadline = time.monotonic() + within_seconds if within_seconds else 0.0

    def tell(self, message: wire.Message, descriptors: Sequence[int] = ()) -> bool:
        """False when it cannot be told: it is dead, or stopped with its mailbox full."""
        try:
            wire.send(self.socket, message, descriptors)
        except OSError:
            return False
        return True

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.reaped:
            return  # its number may be another process's by now
        self.killed = self.killed or number == signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        self.socket.close()


def _start(argv: list[str], environment: dict[str, str]) -> int:
    """fork and exec, and in between what only the holder may is given up. Its own process group: a Ctrl-C is
    for the holder, who stops in order. Raises OSError."""
    failure, said = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no handler of ours in there
    try:
        pid = os.fork()
        if pid == 0:
            _become(argv, environment, said)
    except BaseException:
        os.close(failure)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(said)
    with open(failure, "rb") as reason:
        number = reason.read()  # until it is executed, or dead
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)), argv[0])
    return pid


def _become(argv: list[str], environment: dict[str, str], said: int) -> NoReturn:
    """In the child. Nothing may leave this function."""
    number = errno.EINVAL
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for caught in _CAUGHT:
            signal.signal(caught, signal.SIG_DFL)
        privileges.drop()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        number = error.errno or number
    finally:
        os.write(said, str(number).encode())
        os._exit(127)


def protect_from_oom() -> str:
    """Make this process the last that the kernel kills for memory. Answers the score that workers get."""
    path = _OOM_SCORE.format(pid="self")
    try:
        with open(path) as score:
            before = int(score.read())
        if before > _HOLDER_SCORE:
            with open(path, "w") as score:
                score.write(str(_HOLDER_SCORE))
    except OSError:
        return "0"
    return str(max(before, _WORKER_SCORE))
