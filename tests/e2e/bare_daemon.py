"""A ckptfsd for the tests of its own life: started in every state, also in those that it refuses."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ckptfs.client.sync import SyncClient

READY_SECONDS = 30.0
STOP_SECONDS = 30.0

#: The daemon's modules are found here also when nothing is installed.
PYTHONPATH = os.pathsep.join(path for path in sys.path if path)
DAEMON = (sys.executable, "-m", "ckptfsd")


def environment(**more: str) -> dict[str, str]:
    """That of the test, without what could steer a daemon of the machine into it."""
    steering = ("CKPTFS", "NOTIFY_", "WATCHDOG_", "TRAINML_", "ML_")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    return {**plain, "PYTHONPATH": PYTHONPATH, **more}


def run_ckptfsd(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [*DAEMON, *arguments],
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


def mounted_at(path: Path | str, pid: int | str = "self") -> list[str]:
    """The types of what is mounted at ``path``, from the kernel's table: the mount is not touched."""
    with open(f"/proc/{pid}/mountinfo") as table:
        rows = (line.split(" - ") for line in table)
        return [after.split()[0] for before, after in rows if before.split()[4] == str(path)]


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill_and_wait(pid: int) -> None:
    """SIGKILL a process that is not our child, and see it gone."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], STOP_SECONDS)
        finally:
            os.close(pidfd)


class BareDaemon:
    """``directory`` holds store, mount, socket and log. Call :meth:`close` at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.mount: Path | None = directory / "mnt"  # None: without
        self.socket = directory / "control.sock"
        self.log = directory / "daemon.log"
        self.arguments: Sequence[str] = ()
        self.prefix: Sequence[str] = ()  # a command that runs it elsewhere or as somebody else
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def flags(self) -> list[str]:
        """The arguments of a daemon that can start; the mountpoint is made unless something is there."""
        if self.mount is not None:
            with suppress(FileExistsError):
                self.mount.mkdir(parents=True)
        mount = ["--no-mount"] if self.mount is None else ["--mount", str(self.mount)]
        return ["--store", str(self.store), *mount, "--socket", str(self.socket), *self.arguments]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def mounted(self) -> list[str]:
        return mounted_at(self.mount) if self.mount else []

    def spawn(self, *, env: dict[str, str] | None = None) -> None:
        self.directory.mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [*self.prefix, *DAEMON, *self.flags()],
                env=environment(**(env or {})),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self, *, env: dict[str, str] | None = None) -> None:
        self.spawn(env=env)
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while "ckptfsd ready: " not in self.said():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not become ready: {self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        """The log since the last start."""
        return self.log.read_bytes()[self._log_start :].decode(errors="surrogateescape")

    def error_lines(self) -> list[str]:
        return [line for line in self.said().splitlines() if line.startswith("ckptfsd: error:")]

    def client(self) -> SyncClient:
        return SyncClient(str(self.socket))

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """All of it: the holder first, so that it starts no other worker."""
        workers = children(self.pid)
        self.send(signal.SIGKILL)
        self.wait()
        for worker in workers:
            kill_and_wait(worker)

    def close(self) -> None:
        """Whatever the test left: no process, no mount."""
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        while self.mounted:
            subprocess.run(["umount", "-l", str(self.mount)], check=True)
