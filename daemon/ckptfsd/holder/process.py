"""The holder's loop.

It waits for: signals, messages of workers, a change of the mount table, and times. SIGTERM and SIGINT
stop everything and unmount (in a restart of the unit the mount stays, with its descriptor in the service
manager's store); SIGHUP upgrades (a new worker from the same command line); a worker's death starts
another one. It never reads /dev/fuse while a worker lives, and never polls it: every request would wake
the holder too.

The mount is taken away only on an orderly stop, and when the very first worker ends before it ever
served: then nobody uses it yet, and the worker's exit status is the holder's. After a crash it stays,
because a read that waits is better for a job than an empty directory; after one of the holder itself too.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from ckptfs.errors import MountError
from ckptfs.fuse.connection import Connection
from ckptfsd.holder import messages, mount, wire
from ckptfsd.holder.crew import Crew
from ckptfsd.holder.log import Log
from ckptfsd.holder.messages import Messages
from ckptfsd.holder.options import OPTIONS, Options, parse
from ckptfsd.holder.pending import give_up
from ckptfsd.holder.policy import Death, Restarts
from ckptfsd.holder.systemd import Manager
from ckptfsd.holder.worker import State, Worker, protect_from_oom
from ckptfsd.log_output import say
from ckptfsd.process_name import set_process_name

# How often the connection is looked at when nothing else happens. (Not more often than systemd's watchdog.)
_LOOK_SECONDS = 5.0
# A mount that is lost again and again is somebody's will: after so many in a minute we stop.
_REMOUNTS_MAX = 5
_EXIT_LOST = 7


class Holder:
    def __init__(self, options: Options, manager: Manager) -> None:
        self._options = options
        self._manager = manager
        self._log = Log(options.log_format)
        self._poller = select.poll()
        self._crew = Crew(options, self._log, self._poller, oom_score=protect_from_oom())
        self._messages = Messages(self._crew, options, self._log)
        self._restarts = Restarts(
            failed_starts=options.failed_starts, slowest_seconds=options.slowest_seconds
        )
        self._start_at = 0.0  # when the next worker starts; 0: one is there, or none is to start
        self._was_ready = False
        self._stopping = False
        self._leaving = False  # with the mount, for the holder after this one
        self._status = 0
        self._losses: list[float] = []
        self._look_at = 0.0  # when the connection is looked at next

    def run(self) -> int:
        """Until a stop; the exit status. Raises MountError."""
        wake, signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(signalled)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        self._mount_first()
        mount_table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poller.register(wake, select.POLLIN)
        self._poller.register(mount_table, select.POLLPRI)
        self._start_worker()
        try:
            self._follow(wake, mount_table)
        except BaseException as error:
            # As if we had been killed: whoever serves goes on, and the mount with it.
            self._log.error("the holder failed", error=f"{type(error).__name__}: {error}")
            raise
        for worker in self._crew.members():
            worker.kill()
        self._end_mount()
        return self._status

    def _follow(self, wake: int, mount_table: int) -> None:
        """Until there is no worker, and none is to be."""
        while self._crew.worker is not None or self._crew.next is not None or self._start_at:
            ready = {fd for fd, _ in self._poller.poll(self._wait_seconds() * 1000)}
            # Before anything else: what is done now may close a socket, and open another with its number.
            said = [worker for worker in self._crew.members() if worker.socket.fileno() in ready]
            if mount_table in ready:
                self._look_at = 0.0
            if wake in ready:
                self._take_signals(os.read(wake, 64))
            for worker in said:
                if worker.socket.fileno() >= 0:
                    self._do(self._messages.take(worker))
            self._reap()
            self._look_at_times()

    def _mount_first(self) -> None:
        adopted = held = mount.adopt(self._options, self._manager.stored)
        if held is None:
            if note := mount.end_kept(self._manager):
                self._log.warning(note)
            held = mount.make(self._options)
            mount.keep(held, self._manager)
        self._crew.mount = held
        self._was_ready = adopted is not None
        self._log.info("mounted", mount=held.mount, adopted=self._was_ready, notes=held.notes)

    def _wait_seconds(self) -> float:
        now = time.monotonic()
        times = [self._look_at]
        if self._manager.watchdog_seconds:
            times.append(now + self._manager.watchdog_seconds / 3)
        if self._start_at:
            times.append(self._start_at)
        if self._crew.spare_at:
            times.append(self._crew.spare_at)
        times += [worker.deadline for worker in self._crew.members() if worker.deadline]
        return max(0.0, min(times) - now)

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._log.info("signal", signal=signal.Signals(number).name)
                if not self._stopping:
                    self._leaving = self._manager.restarts_us()
                    self._stop()
                elif self._crew.worker is not None:
                    self._crew.worker.kill(signal.Signals(number))  # it cuts its waiting short
            elif number == signal.SIGHUP:
                self._crew.reload()

    def _do(self, what: str) -> None:
        if what == messages.READY and self._crew.mount is not None:
            self._manager.say(READY=1, STATUS=f"serving {self._crew.mount.mount}")
        elif what == messages.STOP:
            self._stop()
        elif what == messages.LOST:
            self._look_at_mount()

    def _look_at_times(self) -> None:
        now = time.monotonic()
        if self._manager.watchdog_seconds:
            self._manager.say(WATCHDOG=1)
        if self._start_at and now >= self._start_at and self._crew.worker is None:
            self._start_worker()
        self._crew.watch(now)
        if now >= self._look_at:
            self._look_at_mount()

    # --- Deaths ----------------------------------------------------------------------------------------

    def _start_worker(self, death: Death | None = None) -> None:
        """``death``: of the one before. What waits is looked at before the next one has the connection; a new
        process takes its time to start, and this is done meanwhile."""
        self._start_at = 0.0
        worker = self._crew.start()
        if death is not None:
            self._give_up_requests(death)
            self._look_at_mount()  # nobody is introduced to one that is lost
        if worker is not None:
            self._crew.introduce(worker)
        elif self._stopping:
            return
        elif self._was_ready:
            self._start_again(Death(-1.0, False))
        else:
            self._status = 1
            self._stop()

    def _start_again(self, death: Death) -> None:
        pause = self._restarts.died(death)
        if not pause:
            self._start_worker(death)
            return
        self._log.warning("pause before the next start", seconds=pause, looping=self._restarts.looping)
        self._start_at = time.monotonic() + pause
        self._give_up_requests(death)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if self._crew.buried(pid, _how(code)):
                continue
            for worker in self._crew.members():
                if worker.pid == pid:
                    worker.reaped = True
                    self._died(worker, code)

    def _died(self, worker: Worker, code: int) -> None:
        while wire.has_message(worker.socket):  # what it said last
            self._do(self._messages.take(worker))
        self._crew.hang_up(worker)
        how = _how(code)
        expected = worker.state is State.LEAVING
        say = self._log.info if expected else self._log.warning
        say("worker ended", pid=worker.pid, how=how, state=worker.state.value)
        if worker is self._crew.spare:
            self._crew.spare_died(worker)
            return
        if worker is self._crew.next:
            self._crew.upgrade_failed(worker, how)
            return
        self._crew.worker = None
        if self._stopping:
            return
        if expected:  # told to leave for a new mount
            self._start_worker()
        elif not self._was_ready and not worker.ready_at:
            self._status = code if code > 0 else 1
            self._log.error("the first worker ended before it was ready", how=how)
            self._stop()
        else:
            self._was_ready = True
            self._replace(Death(worker.ready_seconds, killed=code == -signal.SIGKILL))

    def _replace(self, death: Death) -> None:
        promoted = self._crew.promote()
        if promoted is None:
            self._start_again(death)
            return
        self._restarts.died(death)
        if promoted.state is not State.TAKING:  # it does not have the connection yet
            self._give_up_requests(death)
            self._crew.introduce(promoted)

    def _give_up_requests(self, death: Death) -> None:
        held = self._crew.mount
        if held is None or held.lost():
            return  # seen to by _look_at_mount
        if not held.resend:
            self._lose(held, "its worker died, and this kernel cannot send requests again")
            return
        try:
            given_up = give_up(held.fuse_fd, self._restarts, death)
        except OSError as error:
            self._log.error("the requests that wait cannot be looked at", reason=str(error))
        else:
            if given_up:
                self._log.error("requests were given up (EIO)", requests=given_up)

    # --- The mount -------------------------------------------------------------------------------------

    def _look_at_mount(self) -> None:
        self._look_at = time.monotonic() + _LOOK_SECONDS
        held = self._crew.mount
        if held is not None and not self._stopping and (why := held.lost()):
            self._lose(held, why)

    def _lose(self, held: Connection, why: str) -> None:
        """The connection is of no use any more: another one, or stop."""
        now = time.monotonic()
        self._losses = [at for at in self._losses if now - at < 60.0] + [now]
        again = self._options.when_lost == "remount" and len(self._losses) <= _REMOUNTS_MAX
        self._log.error("the mount was lost", mount=held.mount, reason=why, remount=again)
        self._unmount(held)
        self._crew.mount = None
        self._crew.forget_backings()
        if again:
            try:
                self._crew.mount = mount.make(self._options)
            except MountError as error:
                self._log.error("the mount could not be made again", reason=str(error))
        if self._crew.mount is None:
            self._status = _EXIT_LOST
            self._stop()
            return
        mount.keep(self._crew.mount, self._manager)
        self._log.info("mounted again", mount=held.mount, notes=self._crew.mount.notes)
        worker = self._crew.worker
        if worker is not None and worker.state not in (State.STARTING, State.PREPARING, State.STANDBY):
            self._crew.tell_to_leave("exit")  # the others have yet to get the connection

    def _unmount(self, held: Connection) -> None:
        note = held.unmount()
        if note:
            self._log.warning(note)
        mount.close(held, self._manager)

    # --- Stop ------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = self._crew.stopping = True
        self._start_at = 0.0
        self._manager.say(STOPPING=1, STATUS="stopping")
        self._crew.tell_to_leave("exit" if self._leaving else "stop")

    def _end_mount(self) -> None:
        self._crew.listener.remove()
        held = self._crew.mount
        if held is None:
            return
        if self._leaving:
            self._log.info("the mount is left for the next holder", mount=held.mount)
            return
        self._unmount(held)
        self._log.info("unmounted", mount=held.mount)


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def main() -> None:
    """The process: its options are in the environment. Errors are one line on stderr and a status."""
    set_process_name("ckptfsd")
    try:
        options = parse(os.environ.pop(OPTIONS))
    except (KeyError, TypeError, ValueError) as error:
        say(f"ckptfsd holder: error: {error}")
        sys.exit(2)
    try:
        status = Holder(options, Manager(os.environ)).run()
    except MountError as error:
        say(f"ckptfsd: error: {error}")
        status = error.exit_code
    except Exception as error:  # Python's own report of it would wait for whoever reads it
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f" (line {where.tb_lineno} of {where.tb_frame.f_code.co_filename})" if where else ""
        say(f"ckptfsd holder: internal error: {type(error).__name__}: {error}{line}")
        status = 1
    sys.exit(status)
