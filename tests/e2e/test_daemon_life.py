"""A daemon's life: start, ready, stop, kill, start again; and everything that keeps it from starting."""

from __future__ import annotations

import contextlib
import http.server
import os
import pwd
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_daemon import BareDaemon, environment, mounted_at, run_ckptfsd

from ckptfs.errors import CkptfsError, ConnectionError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts things")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BareDaemon]:
    daemon = BareDaemon(tmp_path / "d")
    yield daemon
    daemon.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[BareDaemon]:
    other = BareDaemon(tmp_path / "other")
    yield other
    other.close()


def make(daemon: BareDaemon, name: str, directory: Path, data: bytes = b"weights") -> None:
    source = directory / f"source-{name}"
    source.mkdir()
    (source / "model.bin").write_bytes(data)
    checkpoint = daemon.client().checkpoints.create(name, source_uri=str(source))
    checkpoint.wait_for("ready", timeout=60)


def refused(daemon: BareDaemon, status: int, says: str) -> None:
    """The daemon does not start: one line, a status, no trace."""
    daemon.spawn()
    assert daemon.wait() == status, daemon.said()
    lines = daemon.error_lines()
    assert len(lines) == 1, daemon.said()
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in daemon.said()


# --- Start and stop -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_and_the_next_start_has_everything(
    daemon: BareDaemon, tmp_path: Path, number: signal.Signals
) -> None:
    daemon.start()
    assert daemon.mounted == ["fuse.ckptfs"]
    make(daemon, "llama", tmp_path)
    daemon.client().jobs.attach("llama", job="j")
    assert (daemon.mount / "llama" / "model.bin").read_bytes() == b"weights"
    daemon.send(number)
    assert daemon.wait() == 0
    assert daemon.error_lines() == []
    assert not daemon.mounted
    assert not daemon.socket.exists()
    assert list(daemon.mount.iterdir()) == []
    with pytest.raises(ConnectionError):
        daemon.client().status()

    daemon.start()
    assert [c.name for c in daemon.client().checkpoints.list()] == ["llama"]
    assert (daemon.mount / "llama" / "model.bin").read_bytes() == b"weights"  # the lease lived on
    assert daemon.stop() == 0
    assert "put right" not in daemon.said()


def test_it_says_when_it_is_ready_and_then_it_is(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.start()
    line = f"ckptfsd ready: store={daemon.store} mount={daemon.mount} socket={daemon.socket}"
    assert line in daemon.said()
    status = daemon.client().status()
    assert (status.pid, status.mount, status.mounted) == (daemon.pid, str(daemon.mount), True)
    assert (status.socket, status.store.path) == (str(daemon.socket), str(daemon.store))
    assert status.jobs == status.creations == status.store.checkpoints == 0


def test_standard_output_has_the_ready_line_alone(daemon: BareDaemon) -> None:
    daemon.directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptfsd", *daemon.flags(), "--log-format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().startswith("ckptfsd ready: store=")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert err
    assert all(line.startswith("{") and line.endswith("}") for line in err.splitlines())


@pytest.mark.parametrize("redirection", [">&- 2>&-", "<&- >&-", "| true", ">/dev/full 2>/dev/full"])
def test_it_serves_whoever_listens_to_it_or_not(daemon: BareDaemon, redirection: str) -> None:
    daemon.directory.mkdir()
    command = shlex.join([sys.executable, "-m", "ckptfsd", *daemon.flags()])
    shell = subprocess.Popen(["sh", "-c", f"{command} {redirection}"], env=environment())
    deadline = time.monotonic() + 30
    while not (daemon.socket.exists() and daemon.mounted):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = daemon.client().status().pid
    os.kill(pid, signal.SIGTERM)
    assert shell.wait(30) == 0
    assert not daemon.mounted


def test_the_service_manager_is_told(daemon: BareDaemon, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        daemon.spawn(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"})
        messages = []
        while not any(m.startswith(b"READY=1\n") for m in messages):
            messages.append(manager.recv(4096))
        daemon.client().status()  # ready means ready
        while messages.count(b"WATCHDOG=1\n") < 3:
            messages.append(manager.recv(4096))
        daemon.send(signal.SIGTERM)
        while not any(m.startswith(b"STOPPING=1\n") for m in messages):
            messages.append(manager.recv(4096))
        assert daemon.wait() == 0


def test_without_a_mount(tmp_path: Path) -> None:
    daemon = BareDaemon(tmp_path / "d")
    daemon.mount = None
    try:
        daemon.start()
        status = daemon.client().status()
        assert not status.mounted
        assert status.mount_note == "started without a mount"
        make(daemon, "llama", tmp_path)
        assert daemon.client().checkpoints.get("llama").read("model.bin") == b"weights"
        assert daemon.stop() == 0
    finally:
        daemon.close()


@pytest.mark.parametrize("delay_seconds", [0.15, 0.3, 0.45, 0.6, 0.8])
def test_a_stop_in_the_middle_of_the_start_leaves_nothing(daemon: BareDaemon, delay_seconds: float) -> None:
    daemon.spawn()
    time.sleep(delay_seconds)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() in (0, -signal.SIGTERM)
    assert not daemon.mounted
    assert "Traceback" not in daemon.said()
    daemon.start()
    assert daemon.stop() == 0


def test_a_stop_while_files_are_open_does_not_wait_for_them(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.start()
    make(daemon, "llama", tmp_path, os.urandom(3_000_000))
    daemon.client().jobs.attach("llama", job="j")
    # In another process: this one must not hang on a mount that is going.
    program = (
        "import sys; f = open(sys.argv[1], 'rb'); f.read(10); print('open', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", program, str(daemon.mount / "llama" / "model.bin")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdout
    assert reader.stdout.readline() == b"open\n"
    started = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - started < 15
    assert not daemon.mounted
    reader.communicate(timeout=10)


class SlowFile(http.server.BaseHTTPRequestHandler):
    """One file without ranges; the second half comes when ``go_on`` is set."""

    data = random.Random(5).randbytes(9_000_000)
    asked = threading.Event()
    go_on = threading.Event()

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.send_header("ETag", '"v1"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with contextlib.suppress(OSError):
            self.wfile.write(self.data[:5_000_000])
            self.asked.set()
            self.go_on.wait(60)
            self.wfile.write(self.data[5_000_000:])

    def log_message(self, *_: object) -> None:
        pass


def test_a_stop_does_not_wait_for_a_source_and_the_creation_can_be_repeated(daemon: BareDaemon) -> None:
    SlowFile.asked.clear()
    SlowFile.go_on.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowFile)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    uri = f"http://127.0.0.1:{server.server_port}/model.bin"
    try:
        daemon.start()
        daemon.client().checkpoints.create("slow", source_uri=uri)
        assert SlowFile.asked.wait(20)
        started = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started < 10
        daemon.start()
        left = daemon.client().checkpoints.get("slow").info
        assert (left.status, left.reason_code) == ("failed", "interrupted")
        SlowFile.go_on.set()
        again = daemon.client().checkpoints.create("slow", source_uri=uri)
        again.wait_for("ready", timeout=60)
        assert again.read("model.bin") == SlowFile.data
        assert [c.name for c in daemon.client().checkpoints.list()] == ["slow"]
        assert daemon.stop() == 0
    finally:
        SlowFile.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


# --- Killed ---------------------------------------------------------------------------------------


def test_after_sigkill_it_starts_again_over_socket_and_mount_of_the_dead(
    daemon: BareDaemon, tmp_path: Path
) -> None:
    daemon.start()
    make(daemon, "llama", tmp_path)
    daemon.client().jobs.attach("llama", job="j")
    daemon.kill()
    assert daemon.socket.is_socket()
    assert daemon.mounted == ["fuse.ckptfs"]  # a dead one
    with pytest.raises(ConnectionError, match="not running: start ckptfsd"):
        daemon.client().status()
    daemon.start()
    assert daemon.mounted == ["fuse.ckptfs"]  # one, not one upon the other
    assert (daemon.mount / "llama" / "model.bin").read_bytes() == b"weights"
    assert "cleared" in daemon.client().status().mount_note
    assert daemon.stop() == 0
    assert not daemon.mounted


@as_root
def test_a_mount_that_is_taken_away_ends_the_daemon_if_that_is_wanted(
    daemon: BareDaemon, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('[holder]\nwhen_lost = "stop"\n')
    daemon.arguments = ["--config", str(tmp_path / "c.toml")]
    daemon.start()
    subprocess.run(["umount", str(daemon.mount)], check=True)
    assert daemon.wait() == 7
    assert re.search(r"the mount was lost .*it was unmounted.* remount=false", daemon.said())
    assert not daemon.socket.exists()


# --- What keeps it from starting ------------------------------------------------------------------


def test_a_second_daemon_on_the_same_store(daemon: BareDaemon, other: BareDaemon) -> None:
    daemon.start()
    other.store = daemon.store
    worker = daemon.client().status().worker_pid
    refused(other, 7, rf"{daemon.store} is in use by another process \(pid {worker}\): stop it")
    assert not other.socket.exists()
    assert not other.mounted
    assert daemon.client().status().mounted


def test_a_second_daemon_on_the_same_socket(daemon: BareDaemon, other: BareDaemon) -> None:
    daemon.start()
    other.socket = daemon.socket
    refused(other, 4, r"another process answers there; stop it, or give this daemon its own --socket")
    assert not other.mounted
    assert daemon.client().status().pid == daemon.pid


def test_a_second_daemon_on_the_same_mountpoint(daemon: BareDaemon, other: BareDaemon) -> None:
    daemon.start()
    other.mount = daemon.mount
    refused(other, 7, r"is the mount of another ckptfsd; stop that one or choose another --mount")
    assert not other.socket.exists()
    assert daemon.mounted == ["fuse.ckptfs"]
    assert os.listdir(daemon.mount) == []  # and it answers


def test_two_daemons_side_by_side_do_not_see_each_other(
    daemon: BareDaemon, other: BareDaemon, tmp_path: Path
) -> None:
    daemon.start()
    other.start()
    make(daemon, "mine", tmp_path)
    assert [c.name for c in daemon.client().checkpoints.list()] == ["mine"]
    assert other.client().checkpoints.list() == []
    assert other.stop() == 0
    assert daemon.client().status().mounted


@as_root
def test_a_mountpoint_that_is_something_else(daemon: BareDaemon) -> None:
    daemon.directory.mkdir()
    daemon.mount.write_text("a file")
    refused(daemon, 7, r"the mountpoint .* is not a directory")
    daemon.mount.unlink()
    daemon.mount.mkdir()
    (daemon.mount / "precious").write_text("data")
    refused(daemon, 7, r"is not empty \(it holds 'precious'\)")
    (daemon.mount / "precious").unlink()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(daemon.mount)], check=True)
    try:
        refused(daemon, 7, r"is a mountpoint already \(tmpfs, tmpfs\)")
    finally:
        subprocess.run(["umount", str(daemon.mount)], check=True)
    assert not daemon.socket.exists()


def test_something_else_in_the_sockets_place(daemon: BareDaemon) -> None:
    daemon.directory.mkdir()
    daemon.socket.write_text("precious")
    refused(daemon, 4, r"something that is not a socket is there")
    assert daemon.socket.read_text() == "precious"


def test_a_store_directory_that_holds_something_else(daemon: BareDaemon) -> None:
    daemon.store.mkdir(parents=True)
    (daemon.store / "thesis.tex").write_text("precious")
    daemon.spawn()
    assert daemon.wait() == 7
    assert len(daemon.error_lines()) == 1
    assert os.listdir(daemon.store) == ["thesis.tex"]


@as_root
def test_without_the_fuse_device(daemon: BareDaemon) -> None:
    # In a mount namespace of its own, where /dev is empty but for what Python needs.
    hide = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9"
    daemon.prefix = ["unshare", "--mount", "sh", "-c", hide + ' && exec "$@"', "sh"]
    refused(daemon, 7, r"there is no /dev/fuse: ")
    assert not daemon.socket.exists()


@as_root
def test_an_ordinary_user_gets_a_mount_through_fusermount3() -> None:
    """Not root, no CAP_SYS_ADMIN; and /dev/fuse with the mode that it has on most systems."""
    nobody = pwd.getpwnam("nobody")
    # Not below pytest's directory, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="ckptfsd-test-") as directory:
        os.chmod(directory, 0o755)
        device = Path(directory, "fuse")
        os.mknod(device, 0o020666, os.makedev(10, 229))
        device.chmod(0o666)
        daemon = BareDaemon(Path(directory, "d"))
        assert daemon.mount
        for path in (daemon.directory, daemon.mount):
            path.mkdir()
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        # CAP_DAC_READ_SEARCH only so that it can read this checkout and Python, wherever they are.
        rights = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
        become = f"setpriv --reuid {nobody.pw_uid} --regid {nobody.pw_gid} --clear-groups {rights}"
        hide = f'mount --bind {device} /dev/fuse && exec {become} "$@"'
        daemon.prefix = ["unshare", "--mount", "sh", "-c", hide, "sh"]
        try:
            daemon.start()
            status = daemon.client().status()
            assert status.mounted
            assert f"only processes of user {nobody.pw_uid} see the mount" in status.mount_note
            assert mounted_at(daemon.mount, daemon.pid) == ["fuse.ckptfs"]
            checks = {check.name: check for check in daemon.client().doctor()}
            assert not checks["right to mount"].ok
            assert not checks["right to mount"].required
            assert checks["fusermount3"].ok
            assert daemon.stop() == 0
        finally:
            daemon.close()


# --- Configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[store]\npth = "/x"\n', r"\[store\] unknown key 'pth'"),
        ("[ingest]\nworkers = true\n", r"\[ingest\] workers: expected int, got bool"),
        ("[store\n", "not valid TOML"),
        ('[control]\nadmin_group = "no-such-group"\n', "admin_group: there is no group 'no-such-group'"),
        ('[control]\nsocket_group = "no-such-group"\n', "socket_group: there is no group 'no-such-group'"),
    ],
)
def test_a_bad_configuration_is_one_line_and_nothing_is_made(
    daemon: BareDaemon, tmp_path: Path, text: str, says: str
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    daemon.arguments = ["--config", str(config)]
    refused(daemon, 2, says)
    assert not daemon.socket.exists()
    assert not daemon.mounted


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--config", "/no/such.toml"], {}, r"/no/such\.toml: there is no such configuration file"),
        (["--config", "/"], {}, r"/: cannot be read: Is a directory"),
        (["--colour"], {}, r"No such option.*--colour"),
        (["--store"], {}, r"Option '--store' requires an argument"),
        (["--store", ""], {}, r"--store: the path is empty"),
        (["--log-level", "loud"], {}, r"--log-level: \[log\] level: invalid value 'loud'"),
        (["--socket", "/" + "x" * 200], {}, r"a Unix socket's path has at most 107"),
        (["--mount", "/a", "--store", "/a/b"], {}, r"lies in the mount"),
        ([], {"CKPTFSD_STROE": "/x"}, r"unknown variable; did you mean 'CKPTFSD_STORE'"),
        (["frobnicate"], {}, r"No such command 'frobnicate'"),
        (["run", "extra"], {}, r"unexpected extra argument"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], env: dict[str, str], says: str) -> None:
    done = run_ckptfsd(*arguments, env=env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("ckptfsd: error: ")
    assert re.search(says, done.stderr)


def test_help_version_and_check_config(tmp_path: Path) -> None:
    assert run_ckptfsd("--version").stdout.startswith("ckptfsd 0.")
    for arguments in (["--help"], ["run", "--help"], ["rebuild", "--help"], ["doctor", "--help"]):
        done = run_ckptfsd(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: ckptfsd")
    config = tmp_path / "c.toml"
    config.write_text("[ingest]\nworkers = 2\n")
    done = run_ckptfsd(
        "check-config", "--config", str(config), "--no-mount", env={"CKPTFSD_SOCKET": "/tmp/x.sock"}
    )
    assert done.returncode == 0
    for line in (
        f"workers = 2 .*# {config}",
        "enabled = false .*# --no-mount",
        'socket = "/tmp/x.sock" .*# environment CKPTFSD_SOCKET',
        "remote_workers = 8 .*# default",
    ):
        assert re.search(line, done.stdout), line


def test_doctor_without_a_daemon(tmp_path: Path) -> None:
    flags = ["--store", str(tmp_path / "s"), "--mount", str(tmp_path / "m"), "--socket", str(tmp_path / "c")]
    done = run_ckptfsd("doctor", *flags)
    assert "ok    python packages" in done.stdout
    assert f"{tmp_path}/m does not exist" in done.stdout
    assert list(tmp_path.iterdir()) == [], "a question must not change anything"
    (tmp_path / "m").write_text("a file")
    done = run_ckptfsd("doctor", *flags)
    assert done.returncode == 7
    assert re.search(r"FAIL  mountpoint .* is not a directory\n +→ remove it", done.stdout)


def test_logs_of_creations_hold_no_credentials(daemon: BareDaemon, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[source]\nretries = 0\n[log]\nlevel = "debug"\n')
    daemon.arguments = ["--config", str(config)]
    daemon.start()
    secret = "hunter2hunter2"
    keys = {"access_key_id": "a", "secret_access_key": secret}
    for uri, options in (
        (f"http://user:{secret}@127.0.0.1:9/x?X-Amz-Signature={secret}", {}),
        ("s3://no-such-bucket/x", {"endpoint_url": "http://127.0.0.1:9"}),
    ):
        with pytest.raises(CkptfsError) as caught:
            created = daemon.client().checkpoints.create(
                "c", source_uri=uri, source_options=options, credentials=keys
            )
            created.wait_for("ready", timeout=60)
        assert secret not in str(caught.value)
    assert daemon.stop() == 0
    assert secret not in daemon.said()
