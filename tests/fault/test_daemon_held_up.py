"""Workers that hang, with requests in their hands or not, and what becomes of those who wait for them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from daemon_process import until
from held_open import digest, held_open, sha256
from survival import LOST, checkpoint, every_kind, node, say

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")


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


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
@pytest.mark.slow
def test_a_worker_that_cannot_end_is_spoken_of(tmp_path: Path) -> None:
    """As one whose disk does not answer: nothing more can be done about it, and somebody should know."""
    hang = "[holder]\nhang_timeout_seconds = 6\n"
    with node(tmp_path, config=hang, expected_errors=["does not end"]) as serving:
        checkpoint(serving, tmp_path)
        name = "small/2"
        with held_open(serving.path("model", name)) as held:
            count = len(serving.ready())
            worker = HeldUp(serving.worker())
            try:
                held.ask()
                until(lambda: serving.events("the worker hangs"), "it is killed", 30)
                does_not_end = "a worker that was killed does not end: does its disk answer?"
                until(lambda: serving.events(does_not_end), "that is said", 60)
            finally:
                worker.let_go()
            serving.wait_ready(count + 1)
            assert held.answer() == digest(tmp_path / "model", name)
