"""The real daemon when more goes wrong than one death: both processes, the mount itself, a worker that hangs
or cannot start, readers that are killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_daemon import kill_and_wait, mounted_at
from daemon_process import until
from holding import abort
from survival import Node, checkpoint, every_kind, node, not_longer, readers, say

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

HELD = str(Path(__file__).parent.parent / "fuse" / "reader.py")
READ_AND_DIE = str(Path(__file__).with_name("read_and_die.py"))

# What an administrator may wait for after taking a mount away, at most.
NOTICED_SECONDS = 5.0


class HeldOpen:
    """A process that has a file open, and reads it when it is asked to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answer(self) -> str | int:
        """The digest of the whole file, or the errno."""
        assert self._process.stdout
        found: str | int = json.loads(self._process.stdout.readline())
        return found

    def read(self) -> str | int:
        self.ask()
        return self.answer()

    def kill(self) -> float:
        """Seconds until it was gone."""
        began = time.monotonic()
        self._process.kill()
        self._process.wait(10)
        return time.monotonic() - began


@contextlib.contextmanager
def held_open(path: str) -> Iterator[HeldOpen]:
    process = subprocess.Popen(
        [sys.executable, HELD, "hold", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        held = HeldOpen(process)
        assert held.answer() == "open"
        yield held
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest(source: Path, name: str) -> str:
    return sha256((source / name).read_bytes())


# --- Holder and worker -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_both_were_killed_the_next_start_has_everything_in_seconds(tmp_path: Path) -> None:
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        with (
            held_open(serving.path("model", "small/2")) as held,
            readers(serving.path("model"), source, 8) as jobs,
        ):
            time.sleep(0.5)
            count = len(serving.ready())
            serving.daemon.kill()
            assert mounted_at(serving.daemon.mount) == ["fuse.ckptfs"], "dead, and in the way"
            # What the page cache has of it is right, and the rest is an error.
            assert held.read() in (errno.ENOTCONN, errno.ECONNABORTED, digest(source, "small/2"))
            began = time.monotonic()
            serving.daemon.start()
            for name in every_kind():
                assert sha256(serving.read("model", name)) == digest(source, name)
            seconds = time.monotonic() - began
            assert seconds < 5, seconds
            say("both killed", seconds_to_serving=seconds)
            report = jobs.end()
        assert report["wrong"] == 0
        assert report["failed"] + report["lost"] > 0, "the mount was dead for a moment"
        serving.wait_ready(count + 1)
        assert "a dead ckptfs mount was cleared" in serving.daemon.client.status().mount_note
        assert mounted_at(serving.daemon.mount) == ["fuse.ckptfs"], "one, not one upon the other"


@pytest.mark.slow
def test_a_worker_serves_on_without_its_holder_and_stops_in_order(tmp_path: Path) -> None:
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        worker = serving.worker()
        native = os.open(serving.path("model", "native/weights"), os.O_RDONLY)
        try:
            with readers(serving.path("model"), source, 8) as jobs:
                os.kill(serving.holder, signal.SIGKILL)
                assert serving.daemon.process
                serving.daemon.process.wait()
                until(lambda: "the holder is gone" in serving.said(), "the worker sees it")
                time.sleep(0.5)
                not_longer(jobs.end_well())
            status = serving.daemon.client.status()
            assert (status.pid, status.worker_pid, status.mounted) == (worker, worker, True)
            # Nobody registers files any more, and nobody would start another worker.
            assert sha256(serving.read("model", "native/more")) == digest(source, "native/more")
            assert serving.counters()["native_opens_refused"] > 0
            done = serving.daemon.run("daemon", "upgrade", code=None)
            assert done.returncode != 0
            assert "the holder of this daemon is dead" in done.stderr
            os.kill(worker, signal.SIGTERM)
            until(lambda: not os.path.exists(f"/proc/{worker}"), "the worker stops")
            assert not os.path.exists(serving.daemon.socket)
            # It gave up the right to unmount when it started: that is said, and the next start does it.
            assert mounted_at(serving.daemon.mount) == ["fuse.ckptfs"]
            left = next(r for r in serving.daemon.records() if r["event"] == "a dead mount stays behind")
            assert f"umount -l {serving.daemon.mount}" in left["remedy"]
            assert sha256(os.pread(native, 1 << 30, 0)) == digest(source, "native/weights")
            serving.daemon.kill()
            serving.daemon.start()
            assert sha256(serving.read("model", "native/weights")) == digest(source, "native/weights")
        finally:
            os.close(native)
            kill_and_wait(worker)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [100])
def test_kills_at_any_moment_of_a_start(tmp_path: Path, kills: int) -> None:
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        serving.kill_worker()
        began = time.monotonic()
        serving.wait_ready(2)
        typical = time.monotonic() - began
        states: list[str] = []
        with readers(serving.path("model"), source, 16) as jobs:
            for number in range(kills):
                started = len(serving.events("worker started"))
                os.kill(serving.events("worker started")[-1]["pid"], signal.SIGKILL)
                until(lambda n=started: len(serving.events("worker started")) > n, "another one")
                if number % 5 == 4:  # or nobody would ever be served
                    ready = len(serving.ready())
                    serving.wait_ready(ready + 1)
                else:
                    time.sleep(random.uniform(0, 1.2 * typical))
            ended = serving.events("worker ended")
            states = [record["state"] for record in ended]
            until(lambda: serving.daemon.client.status().mounted, "it serves")
            report = jobs.end_well()
        assert len(ended) == kills + 1
        assert len(set(states)) >= 2, f"not only when it was ready: {states}"
        say(f"{kills} kills at any moment", states=sorted(set(states)), worst=report["worst_seconds"])


# --- The mount is taken away -----------------------------------------------------------------------------


def take_away(serving: Node, how: str) -> None:
    if how == "abort":
        assert abort(str(serving.daemon.mount))
    else:
        subprocess.run(["umount", *how.split()[1:], str(serving.daemon.mount)], check=True)


LOST = ["the mount was lost", "the request loop failed", "fuse: reading device"]


def test_a_mount_that_is_taken_away_is_made_again(tmp_path: Path) -> None:
    with node(tmp_path, expected_errors=LOST) as serving:
        source = checkpoint(serving, tmp_path)
        for number, how in enumerate(("umount", "umount -l", "abort"), 1):
            count = len(serving.ready())
            with (
                readers(serving.path("model"), source, 8)
                if how != "umount"
                else contextlib.nullcontext() as jobs
            ):
                time.sleep(0.3)
                began = time.monotonic()
                take_away(serving, how)
                serving.wait_ready(count + 1)
                for name in every_kind():
                    assert sha256(serving.read("model", name)) == digest(source, name)
                seconds = time.monotonic() - began
                say(how, seconds_to_serving=seconds)
                assert seconds < NOTICED_SECONDS
                if jobs is not None:
                    time.sleep(0.3)
                    report = jobs.end()
                    assert report["wrong"] == 0
                    assert report["reads"] > 0
            lost = serving.events("the mount was lost")
            assert len(lost) == number
            assert lost[-1]["remount"]
            assert lost[-1]["reason"] == (
                "its connection was aborted" if how == "abort" else "it was unmounted"
            )
            assert mounted_at(serving.daemon.mount) == ["fuse.ckptfs"]
        assert len(serving.daemon.client.jobs.list()) == 1


@pytest.mark.slow
def test_an_aborted_mount_ends_the_daemon_where_that_is_wanted(tmp_path: Path) -> None:
    with node(tmp_path, config='[holder]\nwhen_lost = "stop"\n', expected_errors=LOST) as serving:
        source = checkpoint(serving, tmp_path)
        worker = serving.worker()
        with readers(serving.path("model"), source, 8) as jobs:
            time.sleep(0.3)
            began = time.monotonic()
            take_away(serving, "abort")
            assert serving.daemon.process
            assert serving.daemon.process.wait(20) == 7
            assert time.monotonic() - began < NOTICED_SECONDS
            report = jobs.end()
            assert report["wrong"] == 0
            assert report["failed"] + report["lost"] > 0
        assert not os.path.exists(f"/proc/{worker}")
        assert mounted_at(serving.daemon.mount) == []
        assert not os.path.exists(serving.daemon.socket)
        assert not serving.events("the mount was lost")[0]["remount"]
        serving.daemon.kill()


@pytest.mark.slow
def test_a_mount_that_somebody_takes_away_again_and_again_is_given_up(tmp_path: Path) -> None:
    with node(tmp_path, expected_errors=LOST) as serving:
        for count in range(1, 7):
            serving.wait_ready(count)
            take_away(serving, "umount -l")
        assert serving.daemon.process
        assert serving.daemon.process.wait(20) == 7
        assert [r["remount"] for r in serving.events("the mount was lost")] == [True] * 5 + [False]
        assert mounted_at(serving.daemon.mount) == []
        serving.daemon.kill()


# --- Reads that a dead worker had taken --------------------------------------------------------------------


class HeldUp:
    """A worker whose reads of blobs do not begin: strace stops them at the system call."""

    def __init__(self, worker: int) -> None:
        calls = "preadv,preadv2"
        inject = f"inject={calls}:delay_enter=600s"
        self._worker = worker
        self._tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(worker), "-e", f"trace={calls}", "-e", inject, "-o", os.devnull],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._tracer.stderr
        assert "attached" in self._tracer.stderr.readline()

    def wait(self) -> None:
        """Until its main thread stands where the tracer has stopped it, and stays there."""
        times = 0
        deadline = time.monotonic() + 20
        while times < 10:
            state = Path(f"/proc/{self._worker}/stat").read_text().rpartition(")")[2].split()[0]
            times = times + 1 if state == "t" else 0
            assert time.monotonic() < deadline, "it does not read"
            time.sleep(0.02)

    def let_go(self) -> None:
        """A worker that was killed is not gone before this."""
        self._tracer.kill()
        self._tracer.communicate()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
@pytest.mark.parametrize("resend", [True, False], ids=["resend", "before-6.9"])
def test_a_read_that_the_dead_worker_had_taken(tmp_path: Path, resend: bool) -> None:
    """With resend it is read by the next worker. Without, it ends with an error in bounded time, and what
    comes after it is served; that this is so is said at the start."""
    name = "small/2"
    with node(tmp_path, resend=resend, expected_errors=LOST) as serving:
        source = checkpoint(serving, tmp_path)
        note = serving.daemon.client.status().mount_note
        assert ("cannot send a dead worker's requests again" in note) != resend
        native = os.open(serving.path("model", "native/weights"), os.O_RDONLY)
        with held_open(serving.path("model", name)) as held:
            worker = HeldUp(serving.worker())
            try:
                held.ask()
                worker.wait()  # in the middle of a request: it is the only one that asks for a read
                count = serving.kill_worker()
            finally:
                worker.let_go()
            began = time.monotonic()
            answer = held.answer()
            seconds = time.monotonic() - began
            say("a read that was taken", resend=resend, seconds=seconds, answer=answer)
            if resend:
                assert answer == digest(source, name)
                assert serving.events("the mount was lost") == []
            else:
                assert answer in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO)
                assert "cannot send requests again" in serving.events("the mount was lost")[0]["reason"]
            assert seconds < 5
        serving.wait_ready(count + 1)
        assert sha256(os.pread(native, 1 << 30, 0)) == digest(source, "native/weights")
        os.close(native)
        for other in every_kind():
            assert sha256(serving.read("model", other)) == digest(source, other)


READ_PAST_THE_CACHE = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
print("open", flush=True)
sys.stdin.readline()
os.preadv(fd, [buffer], 0)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
@pytest.mark.slow
def test_a_reader_that_cannot_be_killed_can_when_the_worker_is_dead(tmp_path: Path) -> None:
    """The kernel lets nobody leave who waits, without the page cache, for an answer to a request that was
    taken: a worker that hangs holds such readers fast, for as long as it may hang (hang_timeout_seconds)."""
    with node(tmp_path) as serving:
        checkpoint(serving, tmp_path)
        reader = subprocess.Popen(
            [sys.executable, "-c", READ_PAST_THE_CACHE, serving.path("model", "small/2")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        worker = HeldUp(serving.worker())
        try:
            assert reader.stdin
            assert reader.stdout
            assert reader.stdout.readline() == b"open\n"
            reader.stdin.write(b"\n")
            reader.stdin.flush()
            worker.wait()
            reader.kill()
            time.sleep(0.3)
            assert reader.poll() is None, "it is held fast"
            count = serving.kill_worker()
        finally:
            worker.let_go()
        began = time.monotonic()
        assert reader.wait(10) == -signal.SIGKILL
        say("a reader that was held fast", seconds_to_its_end=time.monotonic() - began)
        for pipe in (reader.stdin, reader.stdout):
            pipe.close()
        serving.wait_ready(count + 1)


# --- Workers that hang or cannot start ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_stopped_worker_keeps_readers_waiting_and_killable(tmp_path: Path, seconds: float) -> None:
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        worker = serving.worker()
        paths = [serving.path("model", name) for name in ("small/2", "small/3")]
        with held_open(paths[0]) as waits, held_open(paths[1]) as dies:
            os.kill(worker, signal.SIGSTOP)
            try:
                began = time.monotonic()
                waits.ask()
                dies.ask()
                time.sleep(0.5)
                assert dies.kill() < 1, "killable"
                time.sleep(seconds - (time.monotonic() - began))
            finally:
                os.kill(worker, signal.SIGCONT)
            assert waits.answer() == digest(source, "small/2")
            assert time.monotonic() - began >= seconds, "it did wait"
        assert serving.worker() == worker
        assert serving.events("worker ended") == []


def test_a_worker_whose_store_is_damaged_between_two_deaths(tmp_path: Path) -> None:
    """A crash loop: what waits gets EIO, starts get rarer, and when the store is mended all is well."""
    config = "[holder]\nfailed_starts = 2\nslowest_restart_seconds = 1.0\n"
    expected = ["data.mdb is missing", "requests were given up"]
    with node(tmp_path, config=config, expected_errors=expected) as serving:
        source = checkpoint(serving, tmp_path)
        index = next(serving.daemon.store.rglob("data.mdb"))
        with held_open(serving.path("model", "small/2")) as held:
            index.rename(index.with_suffix(".away"))
            count = serving.kill_worker()
            began = time.monotonic()
            held.ask()
            assert held.answer() == errno.EIO
            say("a crash loop", seconds_to_eio=time.monotonic() - began)
            assert time.monotonic() - began < 20
            assert serving.events("requests were given up (EIO)")
            until(lambda: any(r["looping"] for r in serving.events("pause before the next start")), "looping")
            before = len(serving.events("worker started"))
            time.sleep(1.5)
            assert len(serving.events("worker started")) - before <= 2, "not more often than that"
            index.with_suffix(".away").rename(index)
            serving.wait_ready(count + 1)
            assert held.read() == digest(source, "small/2"), "the handle is as good as before"
        assert sha256(serving.read("model", "native/weights")) == digest(source, "native/weights")


# --- Readers that are killed -----------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_readers_killed_in_mid_read_stop_nobody_else(tmp_path: Path, kills: int) -> None:
    with node(tmp_path) as serving:
        checkpoint(serving, tmp_path)
        folder = serving.path("model")
        done = subprocess.run(
            [sys.executable, "-S", READ_AND_DIE, folder, "shares/second", "small/1", str(kills)],
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        say("readers killed", **report)
        assert report["killed_in_a_read"] == kills
        assert report["worst_gap_seconds"] - report["noise_seconds"] < 1
        assert serving.events("worker ended") == []
        until(lambda: serving.counters()["files_open_served"] == 0, "their handles are closed")
