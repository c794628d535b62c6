"""What a job sees, and what it does not; and that the host's mounts stay as they are."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemon_process import CKPTFS, SAMPLES, Daemon, running, until, write_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="these start a daemon that mounts as root")

PLACE = "/opt/trainml/checkpoint"
NOBODY = 65534


@contextmanager
def job(node: Daemon, *arguments: str, prefix: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A shell that runs in a job and reads its commands from us."""
    process = subprocess.Popen(
        [*(prefix or []), *CKPTFS, "run", *arguments, "--", "sh"],
        env=node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert tell(process, "echo ready") == "ready\n"
        yield process
    finally:
        process.communicate("exit\n", timeout=20)


def tell(process: subprocess.Popen[str], command: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{command}\necho '--end--'\n")
    process.stdin.flush()
    said = ""
    while not said.endswith("--end--\n"):
        line = process.stdout.readline()
        assert line, f"the job ended: {said}"
        said += line
    return said.removesuffix("--end--\n")


def mount_table(node: Daemon) -> list[str]:
    """The host's mounts, as far as they are this daemon's or lie where jobs look."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith((str(node.root), "/opt/trainml", "/opt/ml"))]


def test_two_jobs_at_once_see_only_theirs(node: Daemon) -> None:
    before = mount_table(node)
    with job(node, "--checkpoint", "model") as first, job(node, "--checkpoint", "adapter") as second:
        assert sorted(os.listdir(node.mount)) == ["adapter", "model"], "the host sees what is attached"
        assert "config.json" in tell(first, f"ls {PLACE}")
        assert tell(second, f"ls {PLACE}") == "adapter.bin\n"
        for one in (first, second):
            assert tell(one, f"ls -A {node.mount}") == "", "the daemon's own mount is covered"
            listed = tell(one, "grep -c fuse.ckptfs /proc/self/mountinfo")
            assert int(listed) >= 2
        assert mount_table(node) == before
        assert not os.listdir(PLACE), "on the host the place is as empty as it was"
    assert mount_table(node) == before


def test_nothing_leads_beneath_the_cover(node: Daemon) -> None:
    """Not the working directory, not another mount of the same, not a relative path."""
    with job(node, "--checkpoint", "model"):  # so that the host's mount shows something
        before = mount_table(node)
        elsewhere = node.root / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(node.mount / "model"), str(elsewhere)], check=True)
        try:
            done = node.run(
                *("run", "--checkpoint", "adapter", "--", "sh", "-c"),
                f"ls -A . ..; ls -A {elsewhere} {node.mount}; pwd",
                cwd=node.mount / "model",
            )
        finally:
            subprocess.run(["umount", str(elsewhere)], check=True)
        assert "config.json" not in done.stdout
        assert "model" not in done.stdout.replace(str(node.mount), "")
        assert mount_table(node) == before


def test_other_daemons_mounts_are_covered_too(node: Daemon, tmp_path: Path) -> None:
    write_tree(tmp_path / "s", {"secret": b"x"})
    with running() as other:
        other.run("create", "theirs", str(tmp_path / "s"))
        other.run("attach", "theirs", "--job", "j")
        assert os.listdir(other.mount) == ["theirs"]
        ran = node.run("run", "--checkpoint", "model", "--", "ls", "-A", str(other.mount))
        assert ran.stdout == ""
        other.run("detach", "--job", "j")


def test_another_daemon_that_hangs_holds_up_nobody(node: Daemon, tmp_path: Path) -> None:
    write_tree(tmp_path / "s", {"x": b"x"})
    with running() as other:
        other.run("create", "theirs", str(tmp_path / "s"))
        other.run("attach", "theirs", "--job", "j")
        assert other.process is not None
        other.process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            ran = node.run("run", "--checkpoint", "model", "--", "ls", "-A", str(other.mount), PLACE)
            assert time.monotonic() - started < 10
        finally:
            other.process.send_signal(signal.SIGCONT)
        assert "theirs" not in ran.stdout
        other.run("detach", "--job", "j")


def test_nothing_can_be_written(node: Daemon) -> None:
    with job(node, "--checkpoint", "model") as process:
        for command in (
            f"touch {PLACE}/new",
            f"rm {PLACE}/config.json",
            f"sh -c 'echo x > {PLACE}/config.json'",
        ):
            assert "Read-only file system" in tell(process, f"{command} 2>&1")


def test_the_working_directory_stays(node: Daemon, tmp_path: Path) -> None:
    assert node.run("run", "--checkpoint", "model", "--", "pwd", cwd=tmp_path).stdout == f"{tmp_path}\n"


def test_a_working_directory_in_the_checkpoint_has_a_name(node: Daemon) -> None:
    """Other jobs come and go meanwhile: what the daemon then tells the kernel of that name must not make
    this job's directory a deleted one."""
    with job(node, "--checkpoint", "model") as process:
        tell(process, f"cd {PLACE}")
        for _ in range(5):
            node.run("run", "--checkpoint", "model", "--checkpoint", "adapter", "--", "true")
            assert tell(process, "/bin/pwd") == f"{PLACE}\n"
            assert "config.json" in tell(process, "ls")


def test_many_jobs_start_and_end_at_once(node: Daemon) -> None:
    """Names come to the mount and go while other views of them are being made."""
    script = f"cd {PLACE} && /bin/pwd && ls | wc -l"
    for _ in range(3):
        started = [
            subprocess.Popen(
                [*CKPTFS, "run", "--checkpoint", name, "--", "sh", "-c", script],
                env=node.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("model", "adapter", "model", "adapter")
        ]
        said = [process.communicate(timeout=60) for process in started]
        assert said == [(f"{PLACE}\n{n}\n", "") for n in (3, 1, 3, 1)]
    until(lambda: not node.json("jobs")["jobs"], "the leases have ended")


@pytest.fixture
def shared_namespace() -> Iterator[list[str]]:
    """What enters a mount namespace whose mounts propagate, as systemd has it on a host."""
    script = "mount --make-rshared / && echo ready && exec sleep 600"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield ["nsenter", "--mount", "--target", str(holder.pid)]
        holder.kill()


@pytest.mark.parametrize("at_the_default_place", [False, True])
def test_a_job_sees_only_its_own_also_when_the_daemon_comes_back(
    shared_namespace: list[str], at_the_default_place: bool, tmp_path: Path
) -> None:
    """A new mount of the daemon propagates into the job's namespace: beneath the cover."""
    options = ["--mount", PLACE] if at_the_default_place else []
    os.makedirs(PLACE, exist_ok=True)
    with running(options=options, prefix=shared_namespace) as daemon:
        point = PLACE if at_the_default_place else str(daemon.mount)
        for name in ("a", "b"):
            write_tree(tmp_path / name, {f"file-of-{name}": b"x"})
            daemon.run("create", name, str(tmp_path / name))
        daemon.run("attach", "b", "--job", "other")
        with job(daemon, "--checkpoint", "a", prefix=shared_namespace) as process:
            assert tell(process, f"ls {PLACE}") == "file-of-a\n"
            if not at_the_default_place:
                assert tell(process, f"ls -A {point}") == ""
            daemon.stop()
            daemon.start()
            on_host = subprocess.run(
                [*shared_namespace, "ls", point], capture_output=True, text=True, check=True
            )
            assert "b" in on_host.stdout.split()
            for place in (point, PLACE, "/opt/ml/checkpoint"):
                assert not {"a", "b"} & set(tell(process, f"ls -A {place} 2>/dev/null").split())
        daemon.run("detach", "--job", "other")


def test_where_the_daemons_mount_is_out_of_sight_it_says_so(node: Daemon) -> None:
    hide = ["unshare", "--mount", "sh", "-c", f'umount {node.mount} && exec "$@"', "sh"]
    failed = node.run("run", "--checkpoint", "model", "--", "true", code=125, prefix=hide)
    assert failed.stderr.startswith(f"ckptfs: error: model is not to be seen at {node.mount}/model")
    assert failed.stderr.count("\n") == 1
    with job(node, "--checkpoint", "model") as process:  # so it is in a job's view
        inner = tell(process, " ".join([*CKPTFS, "run --checkpoint adapter -- true; echo $?"]))
        assert inner.endswith("\n125\n")
    until(lambda: not node.json("jobs")["jobs"], "the leases have ended")


# Another user without any right but to read: the Python that runs the tests may lie in root's home.
AS_NOBODY = [
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
]


def nobody_can() -> bool:
    probe = "import ckptfs.cli.mounts as m; m.own_namespace()"
    return subprocess.run([*AS_NOBODY, sys.executable, "-c", probe], capture_output=True).returncode == 0


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of another user, in a mount namespace where /dev/fuse is as udev makes it: for everybody."""
    device = tmp_path / "fuse"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    device.chmod(0o666)
    share = ["unshare", "--mount", "sh", "-c", f'mount --bind {device} /dev/fuse && exec "$@"', "sh"]
    with running(prefix=[*share, *AS_NOBODY], owner=NOBODY) as daemon:
        yield daemon


@pytest.mark.skipif(not nobody_can(), reason="user nobody cannot make user namespaces here")
def test_without_root_from_the_daemon_to_the_job(unprivileged: Daemon) -> None:
    daemon = unprivileged
    write_tree(daemon.root / "model", {"config.json": b"{}", "w.bin": SAMPLES["model"]["weights/part-2.bin"]})
    write_tree(daemon.root / "other", {"x": b"x"})
    assert daemon.process is not None
    enter = ["nsenter", "--mount", "--target", str(daemon.process.pid), *AS_NOBODY]
    for name in ("model", "other"):
        daemon.run("create", name, str(daemon.root / name), prefix=enter)
    daemon.run("attach", "other", "--job", "j", prefix=enter)
    table = Path(f"/proc/{daemon.process.pid}/mountinfo")
    before = table.read_text()
    with job(daemon, "--checkpoint", "model", prefix=enter) as process:
        assert tell(process, f"ls {PLACE} /opt/ml/checkpoint").split().count("config.json") == 2
        assert tell(process, f"ls -A {daemon.mount}") == ""
        assert tell(process, f"wc -c < {PLACE}/w.bin").strip() == "3000000"
        assert tell(process, "id -u").strip() == str(NOBODY)
        assert int(tell(process, "grep CapEff /proc/self/status").split()[1], 16) == 0
        taken_away = tell(process, f"unshare -rm umount {daemon.mount} 2>&1; ls -A {daemon.mount}")
        assert "not mounted" in taken_away
        assert "other" not in taken_away
        assert table.read_text() == before
    daemon.run("detach", "--job", "j", prefix=enter)


def test_a_view_that_cannot_be_made_is_a_clear_error(node: Daemon) -> None:
    """As in a container that may neither mount nor make user namespaces."""
    limit = "/proc/sys/user/max_user_namespaces"
    deny = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        f'echo 0 > {limit} && exec setpriv --bounding-set=-all -- "$@"',
        "sh",
    ]
    probe = subprocess.run([*deny, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no user namespace to be had here")
    failed = node.run("run", "--checkpoint", "model", "--", "true", code=125, prefix=deny)
    assert failed.stderr.startswith("ckptfs: error: this system does not let user 0 make a mount namespace")
    assert failed.stderr.count("\n") == 1
    until(lambda: not node.json("jobs")["jobs"], "its lease has ended")


def test_a_lease_by_hand_for_a_node_agent(node: Daemon) -> None:
    lines = node.run("attach", "model", "--job", "agent").stdout.splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert (
        environment["TRAINML_CHECKPOINT_PATH"]
        == environment["ML_CHECKPOINT_PATH"]
        == str(node.mount / "model")
    )
    assert (
        Path(environment["TRAINML_CHECKPOINT_PATH"], "config.json").read_bytes()
        == SAMPLES["model"]["config.json"]
    )
    shell = node.run("attach", "model", "adapter", "--job", "agent", "--format", "shell").stdout
    seen = subprocess.run(
        ["sh", "-c", f'{shell}ls "$TRAINML_CHECKPOINT_PATH"'], capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == ["adapter", "model"]
    described = node.json("attach", "model", "--job", "agent")
    assert {c["name"]: c["source"] for c in described["checkpoints"]}["model"] == str(node.mount / "model")
    assert "agent" in node.run("jobs").stdout
    assert node.run("detach", "model", "--job", "agent").stdout == "agent: still attached: adapter\n"
    assert node.run("detach", "--job", "agent").stdout == "agent: nothing is attached\n"


def test_a_lease_with_a_time_ends_by_itself(node: Daemon) -> None:
    started = time.monotonic()
    node.run("attach", "model", "--job", "brief", "--ttl", "1.5")
    assert [j["job"] for j in node.json("jobs")["jobs"]] == ["brief"]
    until(lambda: not node.json("jobs")["jobs"], "the lease has ended")
    assert time.monotonic() - started >= 1.4
