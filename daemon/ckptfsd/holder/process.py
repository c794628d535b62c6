"""The holder's loop.

It waits for: signals, messages of workers, a change of the mount table, and times. SIGTERM and SIGINT
stop everything and unmount; SIGHUP upgrades (a new worker from the same command line); a worker's death
starts another one. It never reads /dev/fuse while a worker lives, and never polls it: every request would
wake the holder too.

The mount is taken away only on an orderly stop, and when the very first worker ends before it ever
served: then nobody uses it yet, and the worker's exit status is the holder's. After a crash it stays,
because a read that waits is better for a job than an empty directory.

Upgrade: a second worker starts as a standby and does all that can be done ahead; the old one is paused
(it lets go of mount and store, and stays); the new one is told to serve. When it is ready the old one
is told to exit; if it dies or takes too long the old one is told to resume. Requests wait meanwhile.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time

from ckptfs.errors import MountError
from ckptfs.fuse import device
from ckptfsd.holder import wire
from ckptfsd.holder.backings import BackingFiles
from ckptfsd.holder.journal import Journal
from ckptfsd.holder.mount import Mount
from ckptfsd.holder.options import Options, parse
from ckptfsd.holder.policy import Death, Restarts
from ckptfsd.holder.systemd import Manager
from ckptfsd.holder.worker import State, Worker, protect_from_oom

# How often the connection is looked at when nothing else happens. (Not more often than systemd's watchdog.)
_LOOK_SECONDS = 5.0
# A mount that is lost again and again is somebody's will: after so many in a minute we stop.
_REMOUNTS_MAX = 5
_EXIT_LOST = 7


class Holder:
    def __init__(self, options: Options, manager: Manager) -> None:
        self._options = options
        self._manager = manager
        self._log = Journal(options.log_format)
        self._restarts = Restarts(
            failed_starts=options.failed_starts, slowest_seconds=options.slowest_seconds
        )
        self._oom_score = "0"
        self._mount: Mount | None = None
        self._worker: Worker | None = None
        self._next: Worker | None = None
        self._argv = options.worker
        self._start_at = 0.0  # when the next worker starts; 0: one is there, or none is to start
        self._starts = 0
        self._was_ready = False
        self._stopping = False
        self._status = 0
        self._backings = BackingFiles()
        self._losses: list[float] = []
        self._poller = select.poll()
        self._mountinfo = -1
        self._look_at = 0.0  # when the connection is looked at next

    # --- Life ------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until a stop; the exit status."""
        self._oom_score = protect_from_oom()
        wake, signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(signalled)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        self._mount = Mount.adopt(self._options.mount, self._manager.stored)
        if self._mount is None:
            for fd in self._manager.stored.values():
                os.close(fd)
            self._mount = Mount.make(self._options)
            self._mount.keep(self._manager)
        self._was_ready = self._mount.adopted
        self._log.info(
            "mounted", mount=self._mount.path, adopted=self._mount.adopted, notes=self._mount.notes
        )
        self._mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poller.register(wake, select.POLLIN)
        self._poller.register(self._mountinfo, select.POLLPRI)
        self._start_worker()
        try:
            while self._worker is not None or self._next is not None or self._start_at:
                ready = {fd for fd, _ in self._poller.poll(self._wait_seconds() * 1000)}
                if self._mountinfo in ready:
                    self._look_at = 0.0
                if wake in ready:
                    self._take_signals(os.read(wake, 64))
                for worker in (self._worker, self._next):
                    if worker is not None and worker.socket.fileno() in ready:
                        self._take_message(worker)
                self._reap()
                self._look_at_times()
        finally:
            for worker in (self._worker, self._next):
                if worker is not None:
                    worker.kill()
            self._end_mount()
        return self._status

    def _wait_seconds(self) -> float:
        now = time.monotonic()
        times = [self._look_at]
        if self._manager.watchdog_seconds:
            times.append(now + self._manager.watchdog_seconds / 3)
        if self._start_at:
            times.append(self._start_at)
        times += [w.deadline for w in (self._worker, self._next) if w is not None and w.deadline]
        return max(0.0, min(times) - now)

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._log.info("signal", signal=signal.Signals(number).name)
                self._stop()
            elif number == signal.SIGHUP:
                self._upgrade(None)

    def _look_at_times(self) -> None:
        now = time.monotonic()
        if self._manager.watchdog_seconds:
            self._manager.say(WATCHDOG=1)
        if self._start_at and now >= self._start_at and self._worker is None:
            self._start_worker()
        for worker in (self._worker, self._next):
            if worker is None:
                continue
            hang = self._options.hang_seconds
            if worker.deadline and now >= worker.deadline:
                self._log.warning("the worker takes too long", pid=worker.pid, state=worker.state.value)
                worker.deadline = 0.0
                if worker.state is State.PAUSING:  # the upgrade is off, the old one may be well
                    self._end_upgrade("the old worker did not let go of the mount in time")
                else:
                    worker.kill()
            elif hang and worker.last_alive and now - worker.last_alive > hang:
                self._log.warning("the worker hangs", pid=worker.pid, seconds=round(now - worker.last_alive))
                worker.last_alive = 0.0
                worker.kill()
        if now >= self._look_at:
            self._look_at_mount()

    # --- Workers ---------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._start_at = 0.0
        self._worker = self._spawn(self._argv, standby=False)
        if self._worker is None and self._was_ready:
            self._start_again(Death(-1.0, False))
        elif self._worker is None:
            self._status = 1
            self._stop()

    def _spawn(self, argv: list[str], *, standby: bool) -> Worker | None:
        try:
            worker = Worker(
                argv,
                standby=standby,
                start_seconds=self._options.start_seconds,
                oom_score=self._oom_score,
            )
        except OSError as error:
            self._log.error("the worker cannot be started", argv=argv, reason=str(error))
            return None
        self._starts += 1
        self._poller.register(worker.socket.fileno(), select.POLLIN)
        self._log.info("worker started", pid=worker.pid, standby=standby)
        return worker

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            for worker in (self._worker, self._next):
                if worker is not None and worker.pid == pid:
                    self._died(worker, code)

    def _died(self, worker: Worker, code: int) -> None:
        while self._pending(worker):  # what it said last
            self._take_message(worker)
        if worker.socket.fileno() >= 0:
            self._poller.unregister(worker.socket.fileno())
        worker.close()
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        expected = worker.state is State.LEAVING
        say = self._log.info if expected else self._log.warning
        say("worker ended", pid=worker.pid, how=how, state=worker.state.value)
        death = Death(worker.ready_seconds, killed=code == -signal.SIGKILL)
        if worker is self._next:
            self._next = None
            self._resume_old(f"the new worker ended with {how}")
            return
        self._worker = None
        if self._stopping:
            return
        if expected:  # told to leave for a new mount
            self._start_worker()
            return
        if not self._was_ready and not worker.ready_at:
            self._status = code if code > 0 else 1
            self._log.error("the first worker ended before it was ready", how=how)
            self._stop()
            return
        self._was_ready = True
        if self._next is not None:
            self._promote(death)
        else:
            self._start_again(death)

    def _promote(self, death: Death) -> None:
        """The old worker died while a new one was being started: the new one has its place."""
        assert self._next is not None
        self._worker, self._next = self._next, None
        worker = self._worker
        worker.standby = False
        self._argv = worker.argv
        self._restarts.died(death)
        if worker.state is State.TAKING:
            return  # it has the connection already
        self._give_up_requests(death)
        if worker.state is State.STANDBY:
            self._tell_to_serve(worker)

    def _start_again(self, death: Death) -> None:
        pause = self._restarts.died(death)
        if pause:
            self._log.warning("pause before the next start", seconds=pause, looping=self._restarts.looping)
            self._start_at = time.monotonic() + pause
        else:
            self._start_worker()  # it takes its time to start: the rest is done meanwhile
        self._give_up_requests(death)

    def _give_up_requests(self, death: Death) -> None:
        """EIO for what the dead worker may have died of. No worker reads the device now: a new one gets
        the descriptor only when its hello is answered."""
        if self._mount is None or self._mount.lost():
            return  # seen to by _look_at_mount
        if not (self._mount.offered.has_resend and self._options.resend):
            self._lose("its worker died, and this kernel cannot send requests again")
            return
        fd = self._mount.device
        try:
            found = device.survey(fd)
            waiting = [r for r in found.waiting if r.opcode not in (device.RELEASE, device.RELEASEDIR)]
            condemned = self._restarts.condemn(
                [r.identity for r in found.taken], [r.identity for r in waiting], death
            )
            for request in (*found.taken, *waiting):
                if request.identity in condemned:
                    device.answer_error(fd, request, errno.EIO)
            device.resend(fd)
        except OSError as error:
            self._log.error("the requests that wait cannot be looked at", reason=str(error))
            return
        if condemned:
            self._log.error("requests were given up (EIO)", requests=len(condemned))

    def _tell_to_serve(self, worker: Worker, verb: str = "serve") -> None:
        assert self._mount is not None
        worker.enter(State.TAKING, within_seconds=self._options.start_seconds)
        message = {"do": verb, **self._mount.introduction(self._options), "starts": self._starts - 1}
        if not worker.tell(message, (self._mount.device, self._mount.modes)):
            worker.kill()

    # --- Upgrade ---------------------------------------------------------------------------------------

    def _upgrade(self, argv: list[str] | None) -> None:
        if self._stopping or self._next is not None or self._worker is None:
            self._refuse_upgrade("busy: no worker serves, or another upgrade is under way")
            return
        if self._worker.state is not State.READY:
            self._refuse_upgrade("the worker is not ready")
            return
        self._next = self._spawn(argv or self._argv, standby=True)
        if self._next is None:
            self._refuse_upgrade("the new worker cannot be started")

    def _refuse_upgrade(self, why: str) -> None:
        self._log.warning("no upgrade", reason=why)
        if self._worker is not None:
            self._worker.tell({"do": "upgrade_failed", "error": why})

    def _end_upgrade(self, why: str) -> None:
        """Kill the new worker; when it is reaped the old one is told to go on."""
        if self._next is not None:
            self._log.warning("the upgrade failed", reason=why)
            self._next.kill()

    def _resume_old(self, why: str) -> None:
        old = self._worker
        if old is None or self._stopping:
            return
        self._refuse_upgrade(why)
        if old.state in (State.PAUSED, State.PAUSING):
            self._tell_to_serve(old, "resume")

    # --- Messages --------------------------------------------------------------------------------------

    @staticmethod
    def _pending(worker: Worker) -> bool:
        if worker.socket.fileno() < 0:
            return False
        poller = select.poll()
        poller.register(worker.socket.fileno(), select.POLLIN)
        return any(event & select.POLLIN for _, event in poller.poll(0))

    def _take_message(self, worker: Worker) -> None:
        try:
            received = wire.receive(worker.socket)
        except (OSError, ValueError) as error:
            self._log.error("a message that is none", pid=worker.pid, reason=str(error))
            worker.kill()
            return
        if received is None:
            # Its end is closed: it is about to be reaped, or it is of no use any more.
            self._poller.unregister(worker.socket.fileno())
            worker.close()
            worker.deadline = worker.deadline or time.monotonic() + self._options.stop_seconds
            return
        message, descriptors = received
        try:
            self._obey(worker, message, descriptors)
        except (KeyError, TypeError, ValueError) as error:
            self._log.error(
                "a message with a wrong field", pid=worker.pid, verb=message["do"], reason=str(error)
            )
        finally:
            wire.close_all(descriptors)

    def _obey(self, worker: Worker, message: wire.Message, descriptors: list[int]) -> None:
        verb = message["do"]
        if verb == "hello":
            if worker.standby:
                worker.enter(State.PREPARING, within_seconds=self._options.start_seconds)
                worker.tell({"do": "standby"})
            elif self._worker is worker and not self._stopping:
                self._tell_to_serve(worker)
        elif verb == "prepared":
            self._prepared(worker)
        elif verb == "ready":
            self._ready(worker, str(message.get("notes", "")))
        elif verb == "paused":
            worker.enter(State.PAUSED)
            if self._next is not None and self._next.state is State.STANDBY:
                self._tell_to_serve(self._next)
            else:
                self._tell_to_serve(worker, "resume")
        elif verb == "open":
            self._register(worker, int(message["id"]), descriptors)
        elif verb == "close":
            if self._mount is not None and worker.state is not State.LEAVING:
                self._backings.free(self._mount.device, int(message["backing"]))
        elif verb == "keep":
            if self._mount is not None:
                kept = [int(number) for number in message["backings"]]
                self._backings.keep(self._mount.device, kept, more=bool(message["more"]))
        elif verb == "alive":
            worker.last_alive = time.monotonic()
        elif verb == "upgrade":
            argv = message.get("argv")
            self._upgrade([str(word) for word in argv] if argv else None)
        elif verb == "stop":
            self._stop()
        elif verb == "lost":
            self._look_at_mount()
        else:
            self._log.error("an unknown message", pid=worker.pid, verb=verb)

    def _prepared(self, worker: Worker) -> None:
        worker.enter(State.STANDBY)
        old = self._worker
        if worker is old:  # the one before it died meanwhile
            self._tell_to_serve(worker)
        elif old is None or worker is not self._next:
            return
        elif old.state is State.READY:
            old.enter(State.PAUSING, within_seconds=self._options.pause_seconds)
            old.tell({"do": "pause"})
        else:
            self._end_upgrade("the old worker is not ready")

    def _ready(self, worker: Worker, notes: str) -> None:
        worker.enter(State.READY)
        worker.ready_at = time.monotonic()
        if worker is self._next and self._worker is not None:
            old, self._worker, self._next = self._worker, worker, None
            worker.standby = False
            self._argv = worker.argv
            self._log.info("upgraded", pid=worker.pid, before=old.pid)
            self._dismiss(old)
        else:
            self._log.info("worker ready", pid=worker.pid, starts=self._starts, notes=notes)
        assert self._mount is not None
        self._manager.say(READY=1, STATUS=f"serving {self._mount.path}")

    def _dismiss(self, old: Worker) -> None:
        """An old worker ends by itself, and is not waited for: it has let go of everything."""
        old.tell({"do": "exit"})
        self._poller.unregister(old.socket.fileno())
        old.close()

    # --- Backing files ---------------------------------------------------------------------------------

    def _register(self, worker: Worker, number: int, descriptors: list[int]) -> None:
        answer: wire.Message = {"do": "opened", "id": number}
        try:
            if self._mount is None or worker.state is State.LEAVING:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            answer["backing"] = self._backings.register(self._mount.device, descriptors)
        except OSError as error:
            answer["error"] = error.errno
        if not worker.tell(answer) and self._mount is not None and "backing" in answer:
            self._backings.free(self._mount.device, answer["backing"])

    # --- The mount -------------------------------------------------------------------------------------

    def _look_at_mount(self) -> None:
        self._look_at = time.monotonic() + _LOOK_SECONDS
        if self._mount is None or self._stopping:
            return
        why = self._mount.lost()
        if why:
            self._lose(why)

    def _lose(self, why: str) -> None:
        """The connection is of no use any more: another one, or stop."""
        assert self._mount is not None
        now = time.monotonic()
        self._losses = [at for at in self._losses if now - at < 60.0] + [now]
        again = self._options.when_lost == "remount" and len(self._losses) <= _REMOUNTS_MAX
        self._log.error("the mount was lost", mount=self._mount.path, reason=why, remount=again)
        said = self._mount.unmount()
        if said:
            self._log.warning(said)
        self._mount.close(self._manager)
        self._mount = None
        self._backings.clear()
        if again:
            try:
                self._mount = Mount.make(self._options)
            except MountError as error:
                self._log.error("the mount could not be made again", reason=str(error))
        if self._mount is None:
            self._status = _EXIT_LOST
            self._stop()
            return
        self._mount.keep(self._manager)
        self._log.info("mounted again", mount=self._mount.path, notes=self._mount.notes)
        if self._next is not None:
            self._next.kill()
        worker = self._worker
        if worker is not None and worker.state not in (State.STARTING, State.LEAVING):
            if not worker.tell({"do": "exit"}):
                worker.kill()
            worker.enter(State.LEAVING, within_seconds=self._options.stop_seconds)

    # --- Stop ------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._start_at = 0.0
        self._manager.say(STOPPING=1, STATUS="stopping")
        if self._next is not None:
            self._next.kill()
        if self._worker is not None:
            if not self._worker.tell({"do": "stop"}):
                self._worker.kill()
            self._worker.enter(State.LEAVING, within_seconds=self._options.stop_seconds)

    def _end_mount(self) -> None:
        if self._mount is None:
            return
        note = self._mount.unmount()
        if note:
            self._log.warning(note)
        self._mount.close(self._manager)
        self._log.info("unmounted", mount=self._mount.path)


def main() -> None:
    """The process: one argument, the options as JSON. Errors are one line on stderr and a status."""
    try:
        options = parse(sys.argv[1])
    except (IndexError, TypeError, ValueError) as error:
        print(f"ckptfsd holder: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    try:
        status = Holder(options, Manager(os.environ)).run()
    except MountError as error:
        print(f"ckptfsd: error: {error}", file=sys.stderr, flush=True)
        status = error.exit_code
    sys.exit(status)


if __name__ == "__main__":
    main()
