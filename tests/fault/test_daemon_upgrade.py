"""Upgrades and reloads of the real daemon: under load, and to what cannot serve."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import other_versions
import pytest
from bare_daemon import BareDaemon, kill_and_wait, mounted_at
from daemon_process import until, write_tree
from fio_verifying import BLOCK_BYTES, lay_out, verifying
from job_readers import drop_pages
from survival import PAUSE_SECONDS, Node, checkpoint, every_kind, node, not_longer, readers, say

from ckptfs.errors import PermissionDenied, UpgradeFailed
from ckptfs.testing.checkpoints import noise
from ckptfs.testing.httpserver import HttpServer, Reply, Request

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

# Shorter than anybody would set it, longer than any start takes.
START_SECONDS = 4
ADMIN_GID = 54_321
CONFIG = f"""
[holder]
start_timeout_seconds = {START_SECONDS}
pause_timeout_seconds = {START_SECONDS}
[control]
socket_mode = 0o666
admin_group = "{ADMIN_GID}"
"""

NOBODY = 65534

UPGRADE_ERRORS = ["the upgrade failed, this worker goes on", "No module named ckptfsd", "ckptfsd: error: "]

BIG = noise(99, 32 << 20)


def by_command(serving: Node) -> None:
    serving.daemon.run("daemon", "upgrade")


def by_reload(serving: Node) -> None:
    serving.daemon.run("daemon", "reload")


def by_signal(serving: Node) -> None:
    count = len(serving.ready())
    os.kill(serving.holder, signal.SIGHUP)
    serving.wait_ready(count + 1)


WAYS = (by_command, by_signal, by_reload)


# --- Under load ------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not here")
@pytest.mark.parametrize(
    ("upgrades", "size_bytes", "seconds"),
    [(2, 16 << 20, 5), pytest.param(15, 256 << 20, 40, marks=pytest.mark.slow)],
    ids=["2", "15"],
)
def test_fio_finds_nothing_wrong_over_upgrades(
    tmp_path: Path, upgrades: int, size_bytes: int, seconds: float
) -> None:
    source = tmp_path / "first"
    source.mkdir()
    lay_out(source / "weights", size_bytes)
    # The same chunks once more, and another: they lie in the first file's blob.
    write_tree(tmp_path / "second", {"weights": (source / "weights").read_bytes() + b"and a little more"})
    with node(tmp_path) as serving:
        for name in ("first", "second"):
            serving.create(name, tmp_path / name)
        files = {name: serving.path(name, "weights") for name in ("first", "second")}
        with verifying(files, size_bytes, seconds=seconds) as fio:
            until(lambda: serving.counters()["opens"] >= 6, "fio has its files open")
            counters = serving.counters()
            assert (counters["files_open_native"], counters["files_open_served"]) == (1, 1)
            for number in range(upgrades):
                WAYS[number % len(WAYS)](serving)
                assert fio.running, "upgraded too late for it"
            outcome = fio.outcome()
        worst = max(job.worst_seconds for job in outcome.values())
        say(
            f"{upgrades} upgrades under fio",
            worst_seconds=worst,
            reads=sum(j.reads for j in outcome.values()),
        )
        assert worst <= PAUSE_SECONDS, outcome
        assert len(serving.events("upgraded")) == upgrades
        assert serving.deaths() == 0


def test_fio_would_see_a_wrong_byte(tmp_path: Path) -> None:
    """The proof that the test above could fail."""
    lay_out(tmp_path / "file", 64 * BLOCK_BYTES)
    with (tmp_path / "file").open("r+b") as file:
        file.seek(17 * BLOCK_BYTES + 5000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with (
        verifying({"file": str(tmp_path / "file")}, 64 * BLOCK_BYTES, seconds=0.5) as fio,
        pytest.raises(AssertionError, match="verify"),
    ):
        fio.outcome()


def test_what_a_job_and_an_administrator_have_stays(tmp_path: Path) -> None:
    """Leases, what is attached, and handles that were opened before; a creation is interrupted, and its
    repetition needs only what is missing."""
    with HttpServer() as server, node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        with source_that_stops_half_way(server) as uri:
            serving.daemon.run("create", "slow", uri, "--no-wait")
            until(lambda: arrived(serving) >= len(BIG) // 2, "half of it has arrived")
            handles = {name: os.open(serving.path("model", name), os.O_RDONLY) for name in every_kind()}
            leases = serving.daemon.client.jobs.list()
            by_command(serving)
            assert serving.daemon.client.jobs.list() == leases
            assert os.listdir(serving.path()) == ["model"]
            for name, fd in handles.items():
                drop_pages(fd)
                assert os.pread(fd, 1 << 30, 0) == (source / name).read_bytes(), name
                os.close(fd)
            interrupted = serving.daemon.client.checkpoints.get("slow").info
            assert (interrupted.status, interrupted.reason_code) == ("failed", "interrupted")
        before = len(server.requests)
        serving.daemon.run("create", "slow", uri)
        fetched = sum(bytes_asked_for(r) for r in server.requests[before:] if r.method == "GET")
        assert 0 < fetched < len(BIG) * 3 // 4, "what had arrived was not fetched again"
        assert serving.daemon.client.checkpoints.get("slow").read("big.bin") == BIG


def arrived(serving: Node) -> int:
    progress = serving.daemon.client.checkpoints.get("slow").info.progress
    return progress.bytes_done if progress else 0


@contextlib.contextmanager
def source_that_stops_half_way(server: HttpServer) -> Iterator[str]:
    """The address of a file whose second half does not come before the block ends."""
    go_on = threading.Event()

    def hold_back(request: Request, reply: Reply) -> None:
        if request.method == "GET" and first_byte(request) >= len(BIG) // 2:
            go_on.wait(60)

    server.faults.append(hold_back)
    try:
        yield server.put("/big.bin", BIG)
    finally:
        go_on.set()
        server.faults.remove(hold_back)


def first_byte(request: Request) -> int:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    return int(match[1]) if match else 0


def bytes_asked_for(request: Request) -> int:
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    return int(match[2]) - int(match[1]) + 1 if match else len(BIG)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [60])
def test_deaths_in_the_middle_of_upgrades(tmp_path: Path, times: int) -> None:
    """The worker that is to go, or the one that is to come, at any moment."""
    with node(tmp_path, expected_errors=UPGRADE_ERRORS) as serving:
        source = checkpoint(serving, tmp_path)
        victims = []
        with readers(serving.path("model"), source, 16) as jobs:
            for _ in range(times):
                until(lambda: len(serving.workers()) == 1, "one worker")
                old = serving.worker()
                os.kill(serving.holder, signal.SIGHUP)
                until(lambda: len(serving.workers()) == 2, "another one starts")
                time.sleep(random.uniform(0, 0.8))
                victim = random.choice(serving.workers() or [old])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                victims.append("old" if victim == old else "new")
                until(lambda v=victim: v not in serving.workers(), "it is dead")
                until(lambda: serving.daemon.client.status().worker_pid == serving.worker(), "one serves")
            report = jobs.end_well()
        say(f"{times} deaths in upgrades", victims=victims, worst=report["worst_seconds"])
        # Some were on their way out when they were hit.
        assert times * 3 // 4 <= serving.deaths() <= times
        assert serving.events("requests were given up (EIO)") == []
        by_command(serving)
        for name in every_kind():
            assert serving.read("model", name) == (source / name).read_bytes(), name


# --- To what cannot serve ----------------------------------------------------------------------------------


class Before:
    """What serves before an upgrade that is to fail, and goes on after it."""

    def __init__(self, serving: Node, source: Path) -> None:
        self.serving = serving
        self._worker = serving.worker()
        self._handles = {name: os.open(serving.path("model", name), os.O_RDONLY) for name in every_kind()}
        self._source = source

    def check(self) -> None:
        serving = self.serving
        status = serving.daemon.client.status()
        assert status.worker_pid == self._worker, "the same worker goes on"
        assert serving.workers() == [self._worker], "and is alone"
        for name, fd in self._handles.items():
            content = (self._source / name).read_bytes()
            drop_pages(fd)
            assert os.pread(fd, 1 << 30, 0) == content, name
            os.close(fd)
            assert serving.read("model", name) == content, name
        until(lambda: open_files(serving) == 0, "all handles are known to be closed")


def open_files(serving: Node) -> int:
    counters = serving.counters()
    return counters["files_open_native"] + counters["files_open_served"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Path]]:
    """One daemon for all that is refused: it is the same after each."""
    folder = tmp_path_factory.mktemp("served")
    with node(folder, config=CONFIG, expected_errors=UPGRADE_ERRORS) as serving:
        yield serving, checkpoint(serving, folder)


def refused(before: Before, says: str, *arguments: str) -> None:
    """The upgrade fails, with a reason that everybody is told; nothing else happens."""
    daemon = before.serving.daemon
    done = daemon.run("daemon", *arguments, code=7)
    assert re.search(says, done.stderr), done.stderr
    assert "serves as before" in done.stderr
    status = daemon.run("status").stdout
    assert re.search(rf"failed: .*{says}", status.replace("\n", " ")), status
    before.check()


MAKERS: dict[str, tuple[Callable[[Path], str], str]] = {
    "without-ckptfs": (other_versions.without_ckptfs, "ended with status 1 before it said anything"),
    "hangs": (other_versions.that_hangs, f"not ready within {START_SECONDS} s"),
    "never-serves": (other_versions.that_never_serves, f"not ready within {START_SECONDS} s"),
    "crashes": (other_versions.that_crashes_with_the_connection, "SIGABRT"),
    "store-format": (other_versions.of_another_store_format, "store format 1 and this ckptfs reads 2"),
    "protocol": (other_versions.of_another_protocol, "protocol 1, and this version speaks 2"),
}


SLOW = ("never-serves", "protocol")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in MAKERS]
)
def test_a_version_that_cannot_serve_leaves_the_old_one(
    served: tuple[Node, Path], tmp_path: Path, kind: str
) -> None:
    make, says = MAKERS[kind]
    before = Before(*served)
    refused(before, says, "upgrade", "--python", make(tmp_path))


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("[mount]\nread_ahed_kib = 1\n", r"unknown key 'read_ahed_kib'; did you mean 'read_ahead_kib'"),
        pytest.param("[store]\nopen_blobs = 0\n", r"\[store\] open_blobs", marks=pytest.mark.slow),
        pytest.param(
            '[control]\nsocket_group = "no-such-group"\n',
            "there is no group 'no-such-group'",
            marks=pytest.mark.slow,
        ),
        pytest.param("[store\n", "not valid TOML", marks=pytest.mark.slow),
    ],
    ids=["key", "value", "group", "toml"],
)
def test_a_configuration_with_a_mistake_changes_nothing(
    served: tuple[Node, Path], mistake: str, says: str
) -> None:
    serving, source = served
    before = Before(serving, source)
    config = Path(serving.daemon.options[1])
    try:
        config.write_text(mistake)
        refused(before, says, "reload")
    finally:
        config.write_text(CONFIG)


class ConfiguredDaemon(BareDaemon):
    """Everything comes from the file: a flag would win."""

    def flags(self) -> list[str]:
        return ["--config", str(self.directory / "ckptfsd.toml")]

    def configure(self, mount: Path) -> None:
        (self.directory / "ckptfsd.toml").write_text(
            f'[mount]\npath = "{mount}"\n[store]\npath = "{self.store}"\n'
            f'[control]\nsocket = "{self.socket}"\n'
        )


@pytest.mark.slow
def test_a_mount_cannot_be_moved_by_a_reload(tmp_path: Path) -> None:
    daemon = ConfiguredDaemon(tmp_path / "d")
    elsewhere = tmp_path / "elsewhere"
    assert daemon.mount
    for directory in (daemon.directory, daemon.mount, elsewhere):
        directory.mkdir()
    daemon.configure(daemon.mount)
    try:
        daemon.start()
        before = daemon.client().status()
        daemon.configure(elsewhere)
        with pytest.raises(UpgradeFailed, match="restart the daemon to move it"):
            daemon.client().upgrade()
        after = daemon.client().status()
        assert (after.mount, after.worker_pid) == (before.mount, before.worker_pid)
        assert "restart the daemon to move it" in after.upgrade_note
        assert os.listdir(daemon.mount) == []
        assert mounted_at(elsewhere) == []
        assert daemon.stop() == 0
    finally:
        daemon.close()


def test_after_all_that_it_can_be_upgraded(served: tuple[Node, Path]) -> None:
    serving, source = served
    python = other_versions.newer(source.parent / "newer", "0.1.1")
    with readers(serving.path("model"), source, 8) as jobs:
        done = serving.daemon.run("daemon", "upgrade", "--python", python)
        assert re.search(r"upgraded: 0\.1\.0 .* → 0\.1\.1", done.stdout)
        not_longer(jobs.end_well())
    status = serving.daemon.client.status()
    assert (status.version, status.upgrade_note) == ("0.1.1", "")
    # And whatever comes after it is of that version too.
    count = serving.kill_worker()
    serving.wait_ready(count + 1)
    assert serving.daemon.client.status().version == "0.1.1"


def test_a_version_that_is_deleted_takes_nobody_along(tmp_path: Path) -> None:
    with node(tmp_path, expected_errors=["the worker cannot be started"]) as serving:
        python = other_versions.newer(tmp_path / "newer", "0.1.1")
        serving.daemon.run("daemon", "upgrade", "--python", python)
        spare = serving.wait_spare()
        Path(python).unlink()
        kill_and_wait(spare)
        until(lambda: serving.events("no spare worker for now"), "it is noticed")
        assert serving.daemon.client.status().version == "0.1.1", "what runs needs no file"
        serving.wait_ready(serving.kill_worker() + 1)
        assert serving.daemon.client.status().version == "0.1.0"
        assert serving.events("going back to the version that the daemon was started with")


@pytest.mark.parametrize(
    ("gid", "says"),
    [
        (NOBODY, f"user {NOBODY} may look, but not change anything"),
        (ADMIN_GID, "an upgrade decides which program runs as the daemon: only root may ask"),
    ],
    ids=["stranger", "administrator"],
)
def test_only_root_may_upgrade(served: tuple[Node, Path], gid: int, says: str) -> None:
    serving, _ = served
    worker = serving.worker()
    # CAP_DAC_READ_SEARCH only so that it can read this checkout and Python, wherever they are.
    rights = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    become = f"setpriv --reuid {NOBODY} --regid {gid} --clear-groups {rights}".split()
    for verb in ("upgrade", "reload"):
        done = serving.daemon.run("daemon", verb, code=None, prefix=become)
        assert done.returncode == PermissionDenied.exit_code, done.stderr
        assert says in done.stderr
    time.sleep(0.3)
    assert serving.workers() == [worker]
