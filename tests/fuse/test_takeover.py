"""A worker dies and another takes its connection over: readers wait, and get their bytes."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from holding import Served, eventually, held, reader, result

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting with a holder needs root")

CONTENT = os.urandom(1_000_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Reading(threading.Thread):
    """Reads one file in the background. The holding fixtures abort the mount in the end, so it ends too."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.content = b""
        self.error: OSError | None = None
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self.content = Path(self._path).read_bytes()
        except OSError as error:
            self.error = error
        self.seconds = time.monotonic() - began


def test_twenty_kills_under_readers_cost_no_error_and_no_wrong_byte(tmp_path: Path) -> None:
    names = ("native1", "native2", "served1", "served2", "slow1")
    with held(tmp_path, {name: os.urandom(400_000) for name in names}) as served:
        with reader("24", served.root, str(served.directory)) as readers:
            for kills in range(1, 21):
                pid = started_pids(served)[-1]
                if kills % 4:  # or else at some moment before it is ready
                    eventually(lambda pid=pid: served.worker_pid() == pid)
                time.sleep(kills % 5 * 0.1)
                os.kill(pid, signal.SIGKILL)
                eventually(lambda kills=kills: len(started_pids(served)) == kills + 1)
            assert served.said().count("SIGKILL") == 20
            opens = served.stats()["opens"]
            eventually(lambda: served.stats()["opens"] > opens + 50)
            report = result(readers)
        assert report["errors"] == []
        assert report["wrong"] == 0
        assert report["stuck"] == 0
        assert report["reads"] > 100
        assert served.stats()["granted"] > 0
        assert "given up" not in served.said()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hundred_kills_under_64_readers(tmp_path: Path) -> None:
    names = [f"{kind}{n}" for kind in ("native", "served") for n in range(8)]
    with held(tmp_path, {name: os.urandom(400_000) for name in names}) as served:
        with reader("64", served.root, str(served.directory)) as readers:
            for kills in range(1, 101):
                time.sleep(0.3 + kills % 7 * 0.1)
                served.kill_worker()
                served.wait_ready(kills + 1)
            time.sleep(1)
            report = result(readers)
        assert report["errors"] == []
        assert report["wrong"] == report["stuck"] == 0
        assert report["reads"] > 1000
        # The pause that a reader sees: until the next worker is ready, and its turn among 64 threads that
        # share one interpreter with the reads of all the others.
        assert report["worst_seconds"] < 10
        assert "given up" not in served.said()
        print(report)


def started_pids(served: Served) -> list[int]:
    return [int(e.split("pid=")[1].split()[0]) for e in served.events() if e.startswith("worker started")]


def test_a_request_that_the_dead_worker_had_taken_is_answered_by_the_next(tmp_path: Path) -> None:
    with held(tmp_path, {"slow": CONTENT}) as served:
        reading = Reading(served.path("slow"))
        eventually(lambda: served.stats()["reads"] > 0)
        served.kill_worker()
        reading.join(20)
        assert reading.error is None
        assert reading.content == CONTENT


def test_handles_and_mappings_of_before_are_read_after(tmp_path: Path) -> None:
    with held(tmp_path, {"native": CONTENT, "served": CONTENT}) as served:
        kinds = [(how, name) for how in ("hold", "map") for name in ("native", "served")]
        holders = [reader(how, served.path(name)) for how, name in kinds]
        processes = [manager.__enter__() for manager in holders]
        try:
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == '"open"\n'
            served.kill_worker()
            for process in processes:
                assert process.stdin
                assert process.stdout
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == f'"{DIGEST}"\n'
        finally:
            for manager in holders:
                manager.__exit__(None, None, None)


def test_modes_are_known_after_a_restart(tmp_path: Path) -> None:
    """Opened before, opened again after: in the same mode and with the same backing file, or it is EIO."""
    with held(tmp_path, {"late": CONTENT, "native": CONTENT}) as served:
        cached = os.open(served.path("late"), os.O_RDONLY)
        native = os.open(served.path("native"), os.O_RDONLY)
        (served.directory / ".whole").touch()
        served.kill_worker()
        served.wait_ready(2)
        for name in ("late", "native"):
            assert Path(served.path(name)).read_bytes() == CONTENT
        assert os.pread(cached, 1 << 30, 0) == CONTENT
        os.close(cached)
        os.close(native)
        eventually(lambda: served.stats()["releases"] == 4)
        eventually(lambda: served.stats()["files_open_served"] == served.stats()["files_open_native"] == 0)
        granted = served.stats()["granted"]
        assert Path(served.path("late")).read_bytes() == CONTENT
        eventually(lambda: served.stats()["granted"] == granted + 1)


def test_what_is_native_does_not_notice(tmp_path: Path) -> None:
    """Reads through an open native handle while no worker runs at all."""
    with held(tmp_path, {"native": CONTENT}, slowest_seconds=30.0, failed_starts=1) as served:
        fd = os.open(served.path("native"), os.O_RDONLY)
        (served.directory / ".dies-on-serve").touch()
        served.kill_worker()
        eventually(lambda: "pause before the next start" in served.said())
        began = time.monotonic()
        assert os.pread(fd, 1 << 30, 0) == CONTENT
        assert time.monotonic() - began < 1.0
        os.close(fd)


def test_readers_of_a_stopped_worker_wait_and_stay_killable(tmp_path: Path) -> None:
    """Not so a second lookup of a name that is being looked up: that is the kernel's own wait
    (d_alloc_parallel), which nothing ends but the first. So the name is known here."""
    with held(tmp_path, {"served": CONTENT}) as served:
        os.stat(served.path("served"))
        pid = served.worker_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            reading = Reading(served.path("served"))
            with reader("hold", served.path("served")) as process:
                time.sleep(0.5)
                assert process.poll() is None
                began = time.monotonic()
                process.kill()
                process.wait(10)
                assert time.monotonic() - began < 1.0
            assert reading.is_alive()
        finally:
            os.kill(pid, signal.SIGCONT)
        reading.join(20)
        assert reading.content == CONTENT


def test_upgrades_under_readers_cost_nothing(tmp_path: Path) -> None:
    names = ("native1", "served1", "slow1")
    with held(tmp_path, {name: os.urandom(400_000) for name in names}) as served:
        pids = {served.worker_pid()}
        with reader("16", served.root, str(served.directory)) as readers:
            for upgrades in range(1, 6):
                served.process.send_signal(signal.SIGHUP)
                served.wait_ready(1 + upgrades)
                pids.add(served.worker_pid())
            report = result(readers)
        assert len(pids) == 6
        assert report["errors"] == []
        assert report["wrong"] == report["stuck"] == 0
        assert report["worst_seconds"] < 10
        assert [e for e in served.events() if "ended" in e and "status 0" not in e] == []
        eventually(lambda: served.stats()["files_open_served"] == served.stats()["files_open_native"] == 0)
