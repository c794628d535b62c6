"""The holder as a unit of a real systemd, which is PID 1 of namespaces of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from holding import MIRROR, PATIENCE_SECONDS, ROOTS, eventually
from mirror_worker import read_stats

from ckptfsd.holder.options import Options, command

SYSTEMD = "/lib/systemd/systemd"
CONTENT = os.urandom(300_000)

INSIDE = """set -e
mount --make-rprivate /
mount -t proc proc /proc
umount -R -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system
cp "$1"/held.service "$1"/only.target /run/systemd/system/
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=ckptfs-test \
    /lib/systemd/systemd --system --unit=only.target --log-target=console
"""

UNIT = """[Unit]
DefaultDependencies=no
[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
FileDescriptorStoreMax=8
WatchdogSec=2
Restart=always
RestartSec=0.1
KillMode=mixed
TimeoutStopSec=20
StandardError=append:{log}
"""


class Manager:
    """A systemd that knows one unit, held.service."""

    def __init__(self, folder: Path, cgroup: Path) -> None:
        self.folder = folder
        self.cgroup = cgroup
        self.log = folder / "systemd.log"
        for name in ("units", "files", "mount"):
            (folder / name).mkdir()
        for name in ("served", "native"):
            (folder / "files" / name).write_bytes(CONTENT)
        worker = [sys.executable, MIRROR, str(folder / "files"), str(folder / "stats")]
        argv = command(Options(str(folder / "mount"), worker), python=sys.executable, roots=ROOTS)
        start = folder / "start"
        start.write_text(f"#!/bin/sh\nexec {shlex.join(argv)}\n")
        start.chmod(0o755)
        (folder / "units" / "held.service").write_text(UNIT.format(command=start, log=folder / "log"))
        (folder / "units" / "only.target").write_text("[Unit]\nDefaultDependencies=no\nWants=held.service\n")
        enter = f'echo $$ >"{cgroup}/cgroup.procs" && exec "$@"'
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *["sh", "-c", enter, "sh"],
                    *["unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup"],
                    *["sh", "-c", INSIDE, "sh", str(folder / "units")],
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def init(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def systemctl(self, *arguments: str) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-m", "-p", "-C", "systemctl", "--no-pager", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return (done.stdout + done.stderr).strip()

    def show(self, name: str) -> str:
        return self.systemctl("show", "held", "-P", name)

    def wait_active(self) -> None:
        eventually(lambda: self.show("ActiveState") == "active" and self.show("SubState") == "running")

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def path(self, name: str) -> str:
        """A file of the mount, as the unit's namespace has it."""
        return f"/proc/{self.init}/root{self.folder}/mount/{name}"

    def mounted(self) -> bool:
        return f" {self.folder}/mount " in Path(f"/proc/{self.init}/mountinfo").read_text()

    def close(self) -> None:
        if init := self.init:
            os.kill(init, signal.SIGKILL)  # and with it everything in its PID namespace
        self.process.wait(PATIENCE_SECONDS)
        deadline = time.monotonic() + 10
        while self.cgroup.exists():
            assert time.monotonic() < deadline, f"{self.cgroup} does not empty"
            for directory, _, _ in os.walk(self.cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)


def _cgroup2() -> Path | None:
    with open("/proc/mounts") as table:
        for line in table:
            _, path, kind, *_ = line.split()
            if kind == "cgroup2" and os.access(path, os.W_OK):
                return Path(path)
    return None


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    root = _cgroup2()
    if os.geteuid() != 0 or root is None or not os.path.exists(SYSTEMD):
        pytest.skip("needs root, systemd, and a cgroup2 that can be written")
    cgroup = root / f"ckptfs-holder-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of our own: {error}")
    manager = Manager(tmp_path, cgroup)
    try:
        eventually(
            lambda: manager.init and manager.systemctl("is-active", "held") in ("active", "activating")
        )
        manager.wait_active()
        yield manager
    except BaseException:
        print(manager.said()[-6000:])
        raise
    finally:
        manager.close()


def digest(fd: int) -> str:
    return hashlib.sha256(os.pread(fd, 1 << 30, 0)).hexdigest()


def test_handles_live_through_restarts_reloads_and_crashes_of_the_unit(manager: Manager) -> None:
    right = hashlib.sha256(CONTENT).hexdigest()
    handles = [os.open(manager.path(name), os.O_RDONLY) for name in ("served", "native")]
    try:
        assert [digest(fd) for fd in handles] == [right, right]
        holders = {manager.show("MainPID")}

        for _ in range(2):
            manager.systemctl("restart", "held")
            manager.wait_active()
            holders.add(manager.show("MainPID"))
            assert [digest(fd) for fd in handles] == [right, right]
        assert len(holders) == 3
        assert manager.said().count("left for the next holder") == 2
        assert manager.said().count("adopted=true") == 2

        worker = read_stats(str(manager.folder / "stats"))["starts"]
        manager.systemctl("reload", "held")
        eventually(lambda: "upgraded" in manager.said())
        assert read_stats(str(manager.folder / "stats"))["starts"] == worker + 1
        assert manager.show("MainPID") in holders
        assert [digest(fd) for fd in handles] == [right, right]

        manager.systemctl("kill", "-s", "KILL", "held")  # all of its processes
        eventually(lambda: manager.show("NRestarts") == "1")
        manager.wait_active()
        assert [digest(fd) for fd in handles] == [right, right]

        manager.systemctl("kill", "-s", "STOP", "--kill-who=main", "held")
        eventually(lambda: manager.show("NRestarts") == "2", seconds=60)  # the watchdog
        manager.wait_active()
        assert [digest(fd) for fd in handles] == [right, right]
        with open(manager.path("native"), "rb") as file:
            assert file.read() == CONTENT
        assert manager.said().count("adopted=true") == 4
    finally:
        for fd in handles:
            os.close(fd)

    manager.systemctl("stop", "held")
    assert (manager.show("ActiveState"), manager.show("Result")) == ("inactive", "success")
    assert not manager.mounted()
