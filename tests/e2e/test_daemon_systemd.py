"""The unit under a real systemd: PID 1 of namespaces of its own, with the hardening exactly as shipped."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_daemon import PYTHONPATH, mounted_at
from daemon_process import until

from ckptfs.client.sync import SyncClient

UNITS = Path(__file__).parents[2] / "systemd"
SYSTEMD = "/lib/systemd/systemd"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


# --- What systemd thinks of the files ---------------------------------------------------------------


def runnable_unit(directory: Path, command: str) -> Path:
    """The unit as it is, but for a program that is there."""
    unit = directory / "ckptfsd.service"
    text = (UNITS / "ckptfsd.service").read_text()
    assert text.count("ExecStart=/usr/local/bin/ckptfsd run\n") == 1
    unit.write_text(text.replace("/usr/local/bin/ckptfsd run", command))
    return unit


@needs_systemd
def test_the_unit_is_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(runnable_unit(tmp_path, "/bin/true"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "ckptfsd" in line]
    assert (done.returncode, complaints) == (0, [])


@needs_systemd
def test_the_unit_is_hardened_as_far_as_a_mount_for_others_allows(tmp_path: Path) -> None:
    unit = runnable_unit(tmp_path, "/bin/true")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=50", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # 5.0 of 10; what is left is what would make a private mount namespace, root, and the network.
    assert done.returncode == 0, done.stdout.splitlines()[-1]


#: systemd.exec(5): each of these gives the service a mount namespace of its own.
HIDES_THE_MOUNT = {
    *("BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories"),
    *("ExtensionImages", "InaccessiblePaths", "LogNamespace", "MountAPIVFS", "MountFlags", "MountImages"),
    *("NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateTmp", "PrivateUsers"),
    *("ProcSubset", "ProtectControlGroups", "ProtectHome", "ProtectKernelLogs", "ProtectKernelModules"),
    *("ProtectKernelTunables", "ProtectProc", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths"),
    *("RootDirectory", "RootHash", "RootImage", "TemporaryFileSystem", "IPCNamespacePath"),
}


def test_the_unit_has_nothing_that_hides_the_mount_from_jobs() -> None:
    lines = (UNITS / "ckptfsd.service").read_text().splitlines()
    settings = {line.split("=")[0] for line in lines if "=" in line and not line.startswith("#")}
    assert {"Type", "NotifyAccess", "WatchdogSec", "CapabilityBoundingSet"} <= settings
    assert not settings & HIDES_THE_MOUNT


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_the_groups_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = str(UNITS / "ckptfs.sysusers")
    for _ in range(2):
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", file], check=True, timeout=60)
    groups = {line.split(":")[0] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert groups == {"ckptfs", "ckptfs-admin"}
    assert not (tmp_path / "etc" / "passwd").exists() or not (tmp_path / "etc" / "passwd").read_text()


@pytest.mark.skipif(
    shutil.which("systemd-tmpfiles") is None or os.geteuid() != 0, reason="needs systemd, and root for owners"
)
def test_the_directories_are_made_and_left_alone_when_there(tmp_path: Path) -> None:
    run = ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(UNITS / "ckptfs.tmpfiles")]
    subprocess.run(run, check=True, timeout=60)
    modes = {
        "run/ckptfs": 0o755,
        "var/lib/ckptfs": 0o700,
        "opt/trainml/checkpoint": 0o755,
        "opt/ml/checkpoint": 0o755,
    }
    for path, mode in modes.items():
        assert (tmp_path / path).stat().st_mode & 0o7777 == mode
    (tmp_path / "opt/trainml/checkpoint").chmod(0o555)  # as a mount in use has it
    subprocess.run(run, check=True, timeout=60)
    assert (tmp_path / "opt/trainml/checkpoint").stat().st_mode & 0o7777 == 0o555


# --- The unit in a real systemd ---------------------------------------------------------------------


def _cgroup2() -> Path | None:
    with open("/proc/mounts") as table:
        for line in table:
            fields = line.split()
            if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK):
                return Path(fields[1])
    return None


INSIDE = """set -e
mount --make-rprivate /
mount -t proc proc /proc
umount -R -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /run/systemd/system/ckptfsd.service.d /run/mnt
cp "$1"/ckptfsd.service "$1"/only.target /run/systemd/system/
cp "$1"/extra.conf /run/systemd/system/ckptfsd.service.d/
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=ckptfs-test \
    /lib/systemd/systemd --system --unit=only.target --log-target=console
"""


class Manager:
    """A systemd that is PID 1 of its own namespaces and knows one unit."""

    def __init__(self, directory: Path, cgroup: Path) -> None:
        self.cgroup = cgroup
        self.log = directory / "systemd.log"
        units = directory / "units"
        units.mkdir()
        python = f"{sys.executable} -m ckptfsd run --mount /run/mnt"
        unit = runnable_unit(units, python)
        # The units of this machine are no part of the test.
        kept = [line for line in unit.read_text().splitlines() if not line.startswith(("After=", "Wants="))]
        unit.write_text("\n".join(kept).replace("WatchdogSec=60", "WatchdogSec=2"))
        drop_in = (
            "[Unit]\nDefaultDependencies=no\n[Service]\n"
            f"Environment=PYTHONPATH={PYTHONPATH}\nConfigurationDirectory=\n"
        )
        (units / "extra.conf").write_text(drop_in)
        (units / "only.target").write_text("[Unit]\nDefaultDependencies=no\nWants=ckptfsd.service\n")
        enter = f'echo $$ >"{cgroup}/cgroup.procs" && exec "$@"'
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *["sh", "-c", enter, "sh"],
                    *["unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup"],
                    *["sh", "-c", INSIDE, "sh", str(units)],
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_for_systemd(self) -> None:
        deadline = time.monotonic() + 20
        while self.systemctl("is-active", "ckptfsd") not in ("active", "activating"):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.1)

    @property
    def init(self) -> int:
        """PID 1 as it is seen from here."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def enter(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.init), "-m", "-p", "-C", *command]

    def systemctl(self, *arguments: str) -> str:
        done = subprocess.run(
            self.enter("systemctl", "--no-pager", *arguments),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return (done.stdout + done.stderr).strip()

    def show(self, name: str) -> str:
        return self.systemctl("show", "ckptfsd", "-P", name)

    def until(self, what: str, name: str, wanted: str, *, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.show(name)) != wanted:
            assert time.monotonic() < deadline, f"{what}: {name} is {found!r}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.1)

    def client(self) -> SyncClient:
        return SyncClient(f"/proc/{self.init}/root/run/ckptfs/control.sock")

    def close(self) -> None:
        if init := self.init:
            os.kill(init, signal.SIGKILL)  # and with it everything in its PID namespace
        self.process.wait(20)
        deadline = time.monotonic() + 10
        while self.cgroup.exists():
            assert time.monotonic() < deadline, f"{self.cgroup} does not empty"
            for directory, _, _ in os.walk(self.cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    root = _cgroup2()
    if os.geteuid() != 0 or root is None or not os.path.exists(SYSTEMD):
        pytest.skip("needs root, systemd, and a cgroup2 that can be written")
    cgroup = root / f"ckptfs-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of our own: {error}")
    manager = Manager(tmp_path, cgroup)
    try:
        yield manager
    finally:
        manager.close()


def test_the_unit_runs_under_systemd(manager: Manager, tmp_path: Path) -> None:
    manager.wait_for_systemd()
    manager.until("ready", "ActiveState", "active")
    assert manager.show("StatusText") == "serving /run/mnt"
    # The mount is there for everybody, not for the daemon alone.
    assert mounted_at("/run/mnt", manager.init) == ["fuse.ckptfs"]
    checks = {check.name: check for check in manager.client().doctor()}
    assert [name for name, check in checks.items() if check.required and not check.ok] == []

    # Hardened as it is, it creates, from files that only another user may read, and serves.
    source = tmp_path / "source"
    source.mkdir(mode=0o700)
    data = os.urandom(3_000_000)
    (source / "model.bin").write_bytes(data)
    (source / "model.bin").chmod(0o600)
    for path in (source, source / "model.bin"):
        os.chown(path, 1234, 1234)
    client = manager.client()
    client.checkpoints.create("m", source_uri=str(source)).wait_for("ready", timeout=60)
    client.jobs.attach("m", job="j")
    read = subprocess.run(manager.enter("cat", "/run/mnt/m/model.bin"), capture_output=True, timeout=30)
    assert read.stdout == data
    assert client.checkpoints.get("m").verify().damaged == []

    # What is open stays so: a file that the kernel reads, one that the daemon serves, a mapping of it.
    small = b"small" * 1000
    (source / "small.bin").write_bytes(small)
    client.checkpoints.create("n", source_uri=str(source)).wait_for("ready", timeout=60)
    client.jobs.attach("n", job="j")
    mount = f"/proc/{manager.init}/root/run/mnt"
    handles = {path: os.open(f"{mount}/n/{path}", os.O_RDONLY) for path in ("model.bin", "small.bin")}
    mapped = mmap.mmap(handles["small.bin"], 0, prot=mmap.PROT_READ)
    right = {"model.bin": data, "small.bin": small}

    def check(step: str) -> None:
        for path, fd in handles.items():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, len(data), 0) == right[path], (step, path)
        assert mapped[:] == small, step
        assert Path(mount, "n", "small.bin").read_bytes() == small, step

    try:
        check("opened")
        for _ in range(2):
            first = manager.show("MainPID")
            manager.systemctl("restart", "ckptfsd")
            manager.until("ready again", "ActiveState", "active")
            assert manager.show("MainPID") != first
            check("restarted")

        first, worker = manager.show("MainPID"), client.status().worker_pid
        manager.systemctl("reload", "ckptfsd")
        until(lambda: client.status().worker_pid != worker, "another worker")
        assert manager.show("MainPID") == first
        check("reloaded")

        # Killed, all of it: started again, with the mount that was there.
        manager.systemctl("kill", "-s", "KILL", "ckptfsd")
        manager.until("restarted", "NRestarts", "1")
        manager.until("ready again", "ActiveState", "active")
        assert manager.show("MainPID") != first
        check("killed")

        # The holder alone.
        manager.systemctl("kill", "-s", "KILL", "--kill-who=main", "ckptfsd")
        manager.until("restarted", "NRestarts", "2")
        manager.until("ready again", "ActiveState", "active")
        check("holder killed")

        # Hanging: the watchdog sees it.
        manager.systemctl("kill", "-s", "STOP", "ckptfsd")
        manager.until("the watchdog", "NRestarts", "3")
        manager.until("ready a third time", "ActiveState", "active")
        check("hung")
    finally:
        mapped.close()
        for fd in handles.values():
            os.close(fd)

    manager.systemctl("stop", "ckptfsd")
    assert (manager.show("ActiveState"), manager.show("Result")) == ("inactive", "success")
    assert mounted_at("/run/mnt", manager.init) == []
