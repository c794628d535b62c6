"""The holder from start to stop: upgrades, what it finds at its start, and mounts that are taken away."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from holding import ROOTS, Served, abort, clean_up, eventually, held, start_holder

from ckptfs.fuse.mountinfo import at
from ckptfsd.holder import wire

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the holder mounts, which needs root")

CONTENT = os.urandom(300_000)


def read(served: Served, name: str) -> bytes:
    return Path(served.path(name)).read_bytes()


# --- Upgrade ---------------------------------------------------------------------------------------------


def test_an_upgrade_that_cannot_start_leaves_the_old_worker_serving(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        pid = served.worker_pid()
        (served.directory / ".cannot-start").touch()
        served.process.send_signal(signal.SIGHUP)
        eventually(lambda: "no upgrade" in served.said())
        assert "status 9" in served.said()
        assert read(served, "served") == CONTENT
        assert served.stats()["pid"] != pid, "another had started"
        os.kill(pid, 0)
        (served.directory / ".cannot-start").unlink()
        served.process.send_signal(signal.SIGHUP)
        served.wait_ready(2)
        assert served.worker_pid() != pid
        assert read(served, "served") == CONTENT


def test_an_upgrade_that_dies_when_it_is_to_serve_gives_the_mount_back(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT, "native": CONTENT}) as served:
        pid = served.worker_pid()
        handle = os.open(served.path("served"), os.O_RDONLY)
        (served.directory / ".dies-on-serve").touch()
        served.process.send_signal(signal.SIGHUP)
        eventually(lambda: "status 8" in served.said())
        (served.directory / ".dies-on-serve").unlink()
        served.wait_ready(2)
        assert served.worker_pid() == pid, "the old one resumed"
        assert os.pread(handle, 1 << 30, 0) == CONTENT
        os.close(handle)
        assert read(served, "native") == CONTENT
        eventually(lambda: served.stats()["files_open_served"] == served.stats()["files_open_native"] == 0)


def test_an_old_worker_that_dies_during_the_upgrade_is_succeeded(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        for _ in range(3):
            old, count = served.worker_pid(), served.ready_count()
            served.process.send_signal(signal.SIGHUP)
            eventually(lambda count=count: served.said().count("standby=true") > count - 1)
            os.kill(old, signal.SIGKILL)
            served.wait_ready(count + 1)
            assert served.worker_pid() != old
            assert read(served, "served") == CONTENT


# --- Stop ------------------------------------------------------------------------------------------------


def test_a_stop_unmounts(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        pid = served.worker_pid()
        served.process.terminate()
        assert served.wait() == 0
        assert at(served.root) is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert "worker ended" in served.said()


def test_a_stop_with_open_files_detaches_and_native_ones_are_read_on(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT, "native": CONTENT}) as served:
        native = os.open(served.path("native"), os.O_RDONLY)
        other = os.open(served.path("served"), os.O_RDONLY)
        served.process.terminate()
        assert served.wait() == 0
        assert at(served.root) is None
        assert os.pread(native, 1 << 30, 0) == CONTENT
        with pytest.raises(OSError) as gone:
            os.pread(other, 1 << 30, 0)
        assert gone.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        os.close(native)
        os.close(other)


def test_a_stop_does_not_wait_for_a_worker_that_does_not_stop(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}, stop_seconds=0.5) as served:
        os.kill(served.worker_pid(), signal.SIGSTOP)
        began = time.monotonic()
        served.process.terminate()
        assert served.wait() == 0
        assert time.monotonic() - began < 5
        assert at(served.root) is None


# --- What is found at the start --------------------------------------------------------------------------


def test_after_both_were_killed_the_next_start_clears_the_dead_mount(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        worker = served.worker_pid()
        served.process.kill()
        os.kill(worker, signal.SIGKILL)
        served.process.wait()
        eventually(lambda: not os.path.exists(f"/proc/{worker}"))
        assert at(served.root) is not None, "dead, and in the way"
        served.log.unlink()
        began = time.monotonic()
        again = start_holder(tmp_path)
        try:
            again.wait_ready(1)
            assert time.monotonic() - began < 5
            assert "a dead ckptfs mount was cleared" in again.said()
            assert read(again, "served") == CONTENT
        finally:
            clean_up(again)


def test_a_mount_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        second = start_holder(tmp_path)
        assert second.wait() == 7
        assert "is the mount of another ckptfsd" in second.said()
        os.kill(served.worker_pid(), signal.SIGSTOP)
        try:
            third = start_holder(tmp_path)
            assert third.wait() == 7
            assert "does not answer" in third.said()
        finally:
            os.kill(served.worker_pid(), signal.SIGCONT)
        assert read(served, "served") == CONTENT


def test_a_worker_without_its_holder_serves_on(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        worker = served.worker_pid()
        served.process.kill()
        served.process.wait()
        try:
            assert read(served, "served") == CONTENT
            eventually(lambda: "the holder is gone" in served.said())
        finally:
            os.kill(worker, signal.SIGKILL)


# --- Taken away ------------------------------------------------------------------------------------------


def test_an_aborted_connection_is_made_anew(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        assert abort(served.root)
        served.wait_ready(2)
        assert "its connection was aborted" in served.said()
        assert read(served, "served") == CONTENT


@pytest.mark.parametrize("options", [[], ["-l"]], ids=["umount", "umount -l"])
def test_an_unmounted_mount_is_made_anew(tmp_path: Path, options: list[str]) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        subprocess.run(["umount", *options, served.root], check=True)
        served.wait_ready(2)
        assert "it was unmounted" in served.said()
        assert read(served, "served") == CONTENT


def test_by_policy_a_lost_mount_is_the_end(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}, when_lost="stop") as served:
        subprocess.run(["umount", served.root], check=True)
        assert served.wait() == 7
        assert at(served.root) is None


def test_a_mount_that_is_taken_away_again_and_again_is_given_up(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        for count in range(1, 7):
            served.wait_ready(count)
            subprocess.run(["umount", "-l", served.root], check=True)
        assert served.wait() == 7


def test_a_mount_over_ours_is_not_ours_to_take_away(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}) as served:
        subprocess.run(["mount", "-t", "tmpfs", "over", served.root], check=True)
        try:
            time.sleep(0.3)
            served.process.terminate()
            assert served.wait() == 0
            assert "is hidden by another one" in served.said()
            over = at(served.root)
            assert over is not None
            assert over.fstype == "tmpfs"
        finally:
            subprocess.run(["umount", served.root], check=True)
        below = at(served.root)
        if below is not None:
            subprocess.run(["umount", "-l", served.root], check=True)


# --- The service manager ---------------------------------------------------------------------------------


class ManagerSocket(threading.Thread):
    """What systemd does with $NOTIFY_SOCKET: takes words, and keeps descriptors."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.words: list[dict[str, str]] = []
        self.stored: dict[str, int] = {}
        self.start()

    def run(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 65536, 8)
            if data == b"end":
                return
            words = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.words.append(words)
            if "FDSTORE" in words:
                assert words["FDPOLL"] == "0"
                self.stored[words["FDNAME"]] = descriptors[0]
            elif "FDSTOREREMOVE" in words:
                wire.close_all([self.stored.pop(words["FDNAME"])] if words["FDNAME"] in self.stored else [])

    def said(self, key: str) -> list[str]:
        return [words[key] for words in self.words if key in words]

    def end(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"end", str(path))
        self.join()
        self.socket.close()
        wire.close_all(list(self.stored.values()))


def test_the_service_manager_hears_of_it_and_keeps_the_connection_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    manager = ManagerSocket(path)
    environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "600000"}
    try:
        with held(tmp_path, {"served": CONTENT, "native": CONTENT}, environment=environment) as served:
            eventually(lambda: manager.said("READY") == ["1"])
            eventually(lambda: len(manager.said("WATCHDOG")) >= 3)
            assert set(manager.stored) == {"ckptfs-device", "ckptfs-facts", "ckptfs-modes"}
            handle = os.open(served.path("served"), os.O_RDONLY)
            native = os.open(served.path("native"), os.O_RDONLY)
            worker = served.worker_pid()
            served.process.kill()
            os.kill(worker, signal.SIGKILL)
            served.process.wait()
            served.log.unlink()
            again = restart_with(manager.stored, tmp_path, environment)
            try:
                again.wait_ready(1)
                assert "adopted=true" in again.said()
                assert os.pread(handle, 1 << 30, 0) == CONTENT, "the same connection, the same handles"
                for name in ("served", "native"):
                    assert read(again, name) == CONTENT
                os.close(handle)
                os.close(native)
                assert len(manager.said("READY")) == 2
            finally:
                clean_up(again)
            eventually(lambda: manager.stored == {})
            assert manager.said("STOPPING") == ["1"]
    finally:
        manager.end(path)


def restart_with(stored: dict[str, int], folder: Path, environment: dict[str, str]) -> Served:
    """As systemd starts a unit with stored descriptors: from 3 on, $LISTEN_PID the process itself."""
    import sys

    from holding import MIRROR, ROOTS

    from ckptfsd.holder.options import Options, program

    worker = [sys.executable, MIRROR, str(folder / "files"), str(folder / "stats")]
    told = Options(str(folder / "mount"), worker, spare=False)
    holder = program(told, python=sys.executable, roots=ROOTS)
    names = list(stored)
    kept = [os.dup(stored[name]) for name in names]
    moves = " ".join(f"{3 + at}<&{fd}" for at, fd in enumerate(kept))
    script = f'exec {moves}; export LISTEN_PID=$$; exec "$@"'
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *holder.argv],
            stdin=subprocess.DEVNULL,
            stderr=log,
            pass_fds=kept,
            env={
                **os.environ,
                **holder.environment,
                **environment,
                "LISTEN_FDS": str(len(names)),
                "LISTEN_FDNAMES": ":".join(names),
            },
        )
    wire.close_all(kept)
    return Served(process, folder)


def test_what_the_manager_kept_of_a_connection_that_ended_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    manager = ManagerSocket(path)
    environment = {"NOTIFY_SOCKET": str(path)}
    try:
        with held(tmp_path, {"served": CONTENT}, environment=environment) as served:
            eventually(lambda: len(manager.stored) == 3)
            worker = served.worker_pid()
            served.process.kill()
            os.kill(worker, signal.SIGKILL)
            served.process.wait()
            abort(served.root)
            served.log.unlink()
            again = restart_with(manager.stored, tmp_path, environment)
            try:
                again.wait_ready(1)
                assert "adopted=false" in again.said()
                assert "kept from before, is taken away: its connection was aborted" in again.said()
                assert read(again, "served") == CONTENT
            finally:
                clean_up(again)
    finally:
        manager.end(path)


# --- A worker that somebody else has taken over ----------------------------------------------------------

SAYING = str(Path(__file__).with_name("saying_worker.py"))

NONSENSE = (
    '{"do": "close", "backing": -1}',
    '{"do": "close", "backing": 18446744073709551616}',
    '{"do": "open", "id": Infinity}',
    '{"do": "keep", "backings": [4294967296], "more": false}',
    '{"do": "keep", "backings": [4294967296]}',
    '{"do": "keep", "backings": 1, "more": true}',
    '{"do": "listener", "path": "/a\\u0000b", "inode": [1, 2]}',
    '{"do": "listener", "path": "/\\ud800", "inode": [1, 2]}',
    '{"do": "listener", "path": "/", "inode": [1, NaN]}',
    '{"do": "upgrade", "argv": ["/bin/true\\u0000"]}',
    '{"do": "upgrade", "argv": 7}',
    '{"do": "failing"}',
)


def test_nothing_that_a_worker_says_ends_the_holder(tmp_path: Path) -> None:
    python = [sys.executable, SAYING]
    environment = {"PYTHONPATH": os.pathsep.join(ROOTS)}
    with held(tmp_path, {}, worker=[*python, *NONSENSE], stop_seconds=1.0, environment=environment) as served:
        eventually(lambda: "the end" in served.said() or served.process.poll() is not None)
        assert served.process.poll() is None, served.said()
        assert at(served.root) is not None
        said = served.said()
        refused = said.count("a message with a wrong field") + said.count("] the worker cannot be started")
        assert refused == len(NONSENSE), said
        assert len(os.listdir(f"/proc/{served.process.pid}/fd")) < 15, "and keeps no descriptor of it"
        served.process.terminate()
        assert served.wait() == 0, served.said()
        assert at(served.root) is None


def test_a_spare_worker_is_not_obeyed(tmp_path: Path) -> None:
    """It serves nothing yet, and nobody is to stop the one that does through it."""
    orders = ("stop", "lost", "paused", "ready", "upgrade")
    messages = [json.dumps({"do": verb, "argv": ["/bin/false"]}) for verb in orders]
    messages += ['{"do": "keep", "backings": [], "more": false}', '{"do": "close", "backing": 1}']
    messages += ['{"do": "open", "id": 1}', '{"do": "listener", "path": "/x", "inode": [1, 2]}']
    worker = [sys.executable, SAYING, "--spare", *messages]
    environment = {"PYTHONPATH": os.pathsep.join(ROOTS)}
    with held(tmp_path, {}, worker=worker, spare=True, stop_seconds=1.0, environment=environment) as served:
        eventually(lambda: "out of turn pid" in served.said() and '"the end"' in served.said())
        assert served.said().count("a message out of turn") == len(messages) + 1
        assert served.process.poll() is None
        assert served.ready_count() == 1
        assert "no upgrade" not in served.said()
        assert at(served.root) is not None


def test_a_message_that_is_none_ends_its_worker_and_not_the_holder(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(ROOTS)}
    with held(
        tmp_path, {}, worker=[sys.executable, SAYING, "nested"], stop_seconds=1.0, environment=environment
    ) as served:
        eventually(lambda: served.ready_count() >= 2 or served.process.poll() is not None)
        assert served.process.poll() is None, served.said()
        assert "a message that is none" in served.said()


def test_what_a_worker_names_as_its_successor_has_no_rights_of_the_holder(tmp_path: Path) -> None:
    told = tmp_path / "told"
    line = (
        f"grep -E 'CapEff|CapPrm|NoNewPrivs' /proc/self/status >{told}.new; mv {told}.new {told}; sleep 1000"
    )
    upgrade = json.dumps({"do": "upgrade", "argv": ["/bin/sh", "-c", line]})
    worker = [sys.executable, SAYING, upgrade]
    environment = {"PYTHONPATH": os.pathsep.join(ROOTS)}
    with held(tmp_path, {}, worker=worker, stop_seconds=1.0, environment=environment) as served:
        eventually(told.exists)
        fields = dict(row.split(":\t") for row in told.read_text().splitlines())
        assert served.process.poll() is None
    assert fields["NoNewPrivs"] == "1"
    for kind in ("CapEff", "CapPrm"):
        assert not int(fields[kind], 16) >> 21 & 1, f"{kind} has CAP_SYS_ADMIN"
