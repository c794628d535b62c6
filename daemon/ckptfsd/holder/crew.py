"""The workers: one that serves, one that is to follow; what they are told and what they ask for.

Spare: behind a worker that serves another one waits that has done all that can be done ahead. When the
first one dies, what its readers wait for is not the start of a Python program.

Upgrade: a second worker starts as a standby and does all that can be done ahead; the old one is paused
(it lets go of mount and store, and stays); the new one is told to serve. When it is ready the old one
is told to exit; if it dies or takes too long the old one is told to resume. Requests wait meanwhile.
The spare stays until then: it is of the version before, and followed by one of the new version.

What they say comes by way of :mod:`ckptfsd.holder.messages`.
"""

from __future__ import annotations

import errno
import select
import time

from ckptfs.fuse.connection import Connection
from ckptfsd.holder import wire
from ckptfsd.holder.backings import BackingFiles
from ckptfsd.holder.listener import HeldListener
from ckptfsd.holder.log import Log
from ckptfsd.holder.options import Options
from ckptfsd.holder.worker import State, Worker

# A spare is started when a worker has served for a moment: whoever waited for that one comes first. And one
# that could not be prepared is tried again, but not so often that its tries cost the one that serves.
_SPARE_AFTER_SECONDS = 0.25
_SPARE_AGAIN_SECONDS = 60.0

# How often it is said that a worker that was killed is still there.
_STUCK_SECONDS = 30.0

# There is no such program (any more). All else may pass, as a full process table does.
_NO_PROGRAM = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC)


class Crew:
    """``worker`` serves, or is to; ``spare`` takes its place when it dies, ``next`` now. ``mount``: what they
    serve; None while there is none. All are processes that are alive, or not reaped yet."""

    def __init__(self, options: Options, log: Log, poller: select.poll, *, oom_score: str) -> None:
        self._options = options
        self._log = log
        self._poller = poller
        self._oom_score = oom_score
        self._argv = options.worker
        self._starts = 0
        self._upgrades = 0  # that came to serve
        self.backings = BackingFiles()
        self._dismissed: list[Worker] = []
        self._reload_again = False
        self._configuration = ""  # of the worker that was ready last
        self.listener = HeldListener()
        self.mount: Connection | None = None
        self.worker: Worker | None = None
        self.next: Worker | None = None
        self.spare: Worker | None = None
        self.spare_at = 0.0  # when watch() starts one; 0: one is there, or none is to be
        self.stopping = False

    def members(self) -> list[Worker]:
        return [w for w in (self.worker, self.next, self.spare, *self._dismissed) if w is not None]

    # --- Coming and going ------------------------------------------------------------------------------

    def start(self) -> Worker | None:
        """The worker that is to serve now, to be introduced with :meth:`introduce`: the spare if there is
        one, else a new process. None: there can be none."""
        self.worker = self._take_spare() or self._start_again()
        return self.worker

    def _start_again(self) -> Worker | None:
        try:
            return self._spawn(self._argv)
        except OSError as error:
            if error.errno not in _NO_PROGRAM or self._argv == self._options.worker:
                return None
        self._log.warning("going back to the version that the daemon was started with")
        self._argv = self._options.worker
        try:
            return self._spawn(self._argv)
        except OSError:
            return None

    def _spawn(self, argv: list[str], *, upgrade: bool = False, spare: bool = False) -> Worker:
        try:
            worker = Worker(
                argv, upgrade=upgrade, start_seconds=self._options.start_seconds, oom_score=self._oom_score
            )
        except OSError as error:
            self._log.error("the worker cannot be started", argv=argv, reason=str(error))
            raise
        if not spare:
            self._starts += 1
        self._poller.register(worker.socket, select.POLLIN)
        self._log.info("worker started", pid=worker.pid, standby=upgrade or spare, spare=spare)
        return worker

    def hang_up(self, worker: Worker) -> None:
        if worker.socket.fileno() >= 0:
            self._poller.unregister(worker.socket)
            worker.close()

    def greeted(self, worker: Worker) -> None:
        if worker.state is not State.STARTING:
            return
        if worker in (self.next, self.spare):
            worker.enter(State.PREPARING, within_seconds=self._options.start_seconds)
            native = len(self.backings)
            worker.tell({"do": "standby", "native": native, "spare": worker is self.spare})
        elif worker is self.worker and not self.stopping:
            self.tell_to_serve(worker)

    def introduce(self, worker: Worker) -> None:
        """Now if it is prepared already, else when it says so (hello, prepared)."""
        if worker.state is State.STANDBY:
            self.tell_to_serve(worker)

    def tell_to_serve(self, worker: Worker, verb: str = "serve") -> None:
        assert self.mount is not None
        # One that is prepared has little left to do, nobody serves meanwhile, and another worker can.
        prepared = worker.state is State.STANDBY
        limit = self._options.pause_seconds if prepared else self._options.start_seconds
        worker.enter(State.TAKING, within_seconds=limit)
        self.backings.begin()
        mount = worker.connection = self.mount
        message = {
            "do": verb,
            "protocol": wire.PROTOCOL,
            "connection": mount.described(),
            "starts": self._starts - 1,
            "upgrades": self._upgrades + worker.upgrade,
            "configuration": self._configuration,
            **self.listener.described(),
        }
        descriptors = [mount.fuse_fd, mount.modes_fd]
        if self.listener.fd >= 0:
            descriptors.append(self.listener.fd)
        if not worker.tell(message, descriptors):
            self.end(worker)

    def tell_to_leave(self, verb: str) -> None:
        """``exit`` or ``stop``, to the one that has the connection. When the daemon stops all others end."""
        if self.next is not None:
            self.end(self.next)
        if self.stopping:
            self._dismiss_spare()
        worker = self.worker
        if worker is not None and worker.state is not State.LEAVING:
            told = worker.tell({"do": verb})
            worker.enter(State.LEAVING, within_seconds=self._options.stop_seconds)
            if not told:
                self.end(worker)

    def promote(self) -> Worker | None:
        """The worker died. In an upgrade that is far enough the next one has its place, and is to be told
        when the connection is there for it: :meth:`introduce`. What is started if it fails is the version
        before: it has not shown yet that it can serve. None: it is for :meth:`start`, and the upgrade goes on
        behind whoever that is."""
        following = self.next
        if following is None or following.killed:
            return None
        far = following.state in (State.TAKING, State.STANDBY)
        if not far and self.spare is not None and self.spare.state is State.STANDBY:
            return None
        self.worker, self.next = following, None
        return following

    def watch(self, now: float) -> None:
        """End what takes too long, and start the spare when it is time."""
        if self.spare_at and now >= self.spare_at:
            self._start_spare()
        hang = self._options.hang_seconds
        for worker in self.members():
            if worker.deadline and now >= worker.deadline:
                worker.deadline = 0.0
                self._takes_too_long(worker)
            elif worker.state is State.READY and hang and worker.last_alive:
                silent = now - max(worker.last_alive, worker.ready_at)
                if silent > hang:
                    self._log.warning("the worker hangs", pid=worker.pid, seconds=round(silent))
                    worker.last_alive = 0.0
                    self.end(worker)

    def _takes_too_long(self, worker: Worker) -> None:
        if worker.killed:
            self._log.error("a worker that was killed does not end: does its disk answer?", pid=worker.pid)
            self.end(worker)
            return
        self._log.warning("the worker takes too long", pid=worker.pid, state=worker.state.value)
        if worker.state is State.PAUSING:  # the upgrade is off, the old one may be well
            self._end_upgrade("the old worker did not let go of the mount in time")
            return
        if worker.state is not State.LEAVING:
            worker.reason = self._too_late(worker)
        self.end(worker)

    def _too_late(self, worker: Worker) -> str:
        seconds, name = self._options.start_seconds, "start_timeout_seconds"
        if worker.state is State.TAKING and worker is self.next:
            seconds, name = self._options.pause_seconds, "pause_timeout_seconds"
        return f"the new worker was not ready within {seconds:g} s ([holder] {name})"

    def end(self, worker: Worker) -> None:
        """Kill it, and say so if that does not end it."""
        worker.kill()
        worker.deadline = time.monotonic() + _STUCK_SECONDS

    def _dismiss(self, worker: Worker) -> None:
        """Nobody waits for its end."""
        self.hang_up(worker)
        self._dismissed.append(worker)

    def buried(self, pid: int, how: str) -> bool:
        """Was that a worker that was dismissed? Then there is nothing more to do."""
        for worker in self._dismissed:
            if worker.pid == pid:
                worker.reaped = True
                self._dismissed.remove(worker)
                self._log.info("worker ended", pid=pid, how=how, state=worker.state.value)
                return True
        return False

    # --- The spare -------------------------------------------------------------------------------------

    def _plan_spare(self) -> None:
        if self._options.spare and self.spare is None:
            self.spare_at = time.monotonic() + _SPARE_AFTER_SECONDS

    def _start_spare(self) -> None:
        self.spare_at = 0.0
        serving = self.worker is not None and self.worker.state is State.READY
        if not serving or self.spare is not None or self.next is not None or self.stopping:
            return  # when the next worker is ready, or an upgrade is over, one is planned again
        try:
            self.spare = self._spawn(self._argv, spare=True)
        except OSError:
            self.spare_at = time.monotonic() + _SPARE_AGAIN_SECONDS

    def _take_spare(self) -> Worker | None:
        spare, self.spare = self.spare, None
        if spare is not None and spare.killed:  # it took too long, and has not ended yet
            self._dismiss(spare)
            return None
        self._starts += spare is not None
        return spare

    def spare_died(self, worker: Worker) -> None:
        self.spare = None
        self._log.warning("no spare worker for now", reason=worker.reason or "it ended")
        self.spare_at = time.monotonic() + _SPARE_AGAIN_SECONDS
        self._tell_of_spare()

    def _dismiss_spare(self) -> None:
        self.spare_at = 0.0
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.enter(State.LEAVING)
            self.end(spare)
            self._dismiss(spare)

    def _tell_of_spare(self) -> None:
        """For `ckptfs status`."""
        if self.worker is not None and self.worker.state is State.READY:
            prepared = self.spare is not None and self.spare.state is State.STANDBY
            self.worker.tell({"do": "spare", "pid": self.spare.pid if self.spare and prepared else 0})

    # --- Upgrade ---------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Another worker with the configuration as it is now. Where one is being started or is to take over,
        it may have read the configuration already: then once more after that, however often it is asked."""
        if self.worker is not None and self.worker.state is State.READY and self.next is None:
            self.upgrade(None)
        elif not self.stopping and not self._reload_again:
            self._reload_again = True
            self._log.info("a reload follows when a worker serves")

    def _reload_if_asked(self) -> None:
        if self._reload_again and not self.stopping and self.next is None:
            self._reload_again = False
            self.upgrade(None)

    def upgrade(self, argv: list[str] | None) -> None:
        if self.stopping or self.next is not None or self.worker is None:
            self._refuse_upgrade("busy: no worker serves, or another upgrade is under way")
        elif self.worker.state is not State.READY:
            self._refuse_upgrade("the worker is not ready")
        else:
            try:
                self.next = self._spawn(argv or self._argv, upgrade=True)
            except OSError as error:
                self._refuse_upgrade(f"the new worker cannot be started: {error}")

    def upgrade_failed(self, worker: Worker, how: str) -> None:
        """The next worker is dead: the old one goes on."""
        self.next = None
        if self.stopping:
            return
        why = worker.reason or f"the new worker ended with {how}"
        if not worker.reason and worker.state is State.STARTING:
            why += (
                f" before it said anything; the daemon's log has why (is ckptfs there for {worker.argv[0]}?)"
            )
        self._refuse_upgrade(why)
        old = self.worker
        if old is None:
            return
        if old.state in (State.PAUSED, State.PAUSING):
            self.tell_to_serve(old, "resume")
        elif old.state is State.READY:
            self._plan_spare()
            self._reload_if_asked()

    def _refuse_upgrade(self, why: str) -> None:
        self._log.warning("no upgrade", reason=why)
        if self.worker is not None:
            self.worker.tell({"do": "upgrade_failed", "error": why})

    def _end_upgrade(self, why: str) -> None:
        """Kill the next worker; when it is reaped the old one is told to go on."""
        if self.next is not None:
            self._log.warning("the upgrade failed", reason=why)
            self.next.reason = why
            self.end(self.next)

    def prepared(self, worker: Worker) -> None:
        if worker.state is not State.PREPARING or worker.killed:
            return  # told to leave meanwhile
        worker.enter(State.STANDBY)
        old = self.worker
        if worker is old:  # the one before it died meanwhile
            self.tell_to_serve(worker)
        elif worker is self.spare:
            self._tell_of_spare()
        elif worker is self.next:
            self._pause_for_the_next()

    def _pause_for_the_next(self) -> None:
        """When both are there: the one that serves may have died, and its spare be on the way."""
        old, following = self.worker, self.next
        if old is None or old.state is not State.READY:
            return
        if following is not None and following.state is State.STANDBY and not following.killed:
            old.enter(State.PAUSING, within_seconds=self._options.pause_seconds)
            old.tell({"do": "pause"})

    def paused(self, worker: Worker) -> None:
        if worker.state is not State.PAUSING:
            return  # told to resume meanwhile
        worker.enter(State.PAUSED)
        if self.next is not None and self.next.state is State.STANDBY and not self.next.killed:
            self.tell_to_serve(self.next)
        else:
            self.tell_to_serve(worker, "resume")

    def ready(self, worker: Worker, notes: str, configuration: str) -> bool:
        if worker.state is not State.TAKING or worker.killed:
            return False  # told to leave meanwhile
        worker.enter(State.READY)
        worker.ready_at = time.monotonic()
        self._argv = worker.argv
        self._configuration = configuration
        if worker is self.next and self.worker is not None:
            old, self.worker, self.next = self.worker, worker, None
            self._log.info("upgraded", pid=worker.pid, before=old.pid)
            old.tell({"do": "exit"})  # it has let go of everything
            old.enter(State.LEAVING, within_seconds=self._options.stop_seconds)
            self._dismiss(old)
        else:
            self._log.info("worker ready", pid=worker.pid, starts=self._starts, notes=notes)
        if worker.upgrade:
            self._upgrades += 1
            worker.upgrade = False
            self._dismiss_spare()  # of the version before
        self._plan_spare()
        self._tell_of_spare()
        self._pause_for_the_next()
        self._reload_if_asked()
        return True

    # --- The connection --------------------------------------------------------------------------------

    def forget_backings(self) -> None:
        """The connection ended, and they with it."""
        self.backings.clear()
