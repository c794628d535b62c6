"""Workers that die of what they do, that hang, that cannot start: the holder gives nobody up for nothing,
and lets nobody wait for ever."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from holding import Served, eventually, held, started

from ckptfs.fuse.mountinfo import at

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the holder mounts, which needs root")

CONTENT = os.urandom(300_000)


def read(served: Served, name: str) -> bytes:
    return Path(served.path(name)).read_bytes()


def test_a_request_that_kills_each_worker_gets_eio_and_the_others_their_bytes(tmp_path: Path) -> None:
    with held(tmp_path, {"poison": CONTENT, "served": CONTENT}) as served:
        began = time.monotonic()
        with pytest.raises(OSError) as given_up:
            read(served, "poison")
        assert given_up.value.errno == errno.EIO
        assert time.monotonic() - began < 25
        assert "given up (EIO)" in served.said()
        assert read(served, "served") == CONTENT
        assert served.process.poll() is None


def test_an_open_that_kills_each_worker_gets_eio_too(tmp_path: Path) -> None:
    with held(tmp_path, {"worse": CONTENT, "served": CONTENT}) as served:
        with pytest.raises(OSError) as given_up:
            os.open(served.path("worse"), os.O_RDONLY)
        assert given_up.value.errno == errno.EIO
        assert read(served, "served") == CONTENT


def test_a_worker_that_cannot_start_any_more_ends_waiting_with_eio_and_is_tried_more_slowly(
    tmp_path: Path,
) -> None:
    with held(tmp_path, {"served": CONTENT}, failed_starts=3, slowest_seconds=1.0) as served:
        os.stat(served.path("served"))
        (served.directory / ".dies-on-serve").touch()
        served.kill_worker()
        with pytest.raises(OSError) as given_up:
            read(served, "served")
        assert given_up.value.errno == errno.EIO
        assert "looping=true" in served.said()
        starts = served.said().count("worker started")
        time.sleep(2.0)
        assert 1 <= served.said().count("worker started") - starts <= 3
        (served.directory / ".dies-on-serve").unlink()
        served.wait_ready(2)
        assert read(served, "served") == CONTENT


def test_a_worker_that_stops_answering_is_replaced(tmp_path: Path) -> None:
    with held(tmp_path, {"served": CONTENT}, hang_seconds=6.0) as served:
        eventually(lambda: os.stat(served.path("served")))
        os.kill(served.worker_pid(), signal.SIGSTOP)
        assert read(served, "served") == CONTENT
        assert "the worker hangs" in served.said()


def test_a_worker_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, worker=["sleep", "1000"], start_seconds=0.5) as served:
        assert served.wait() == 1
        assert "the worker takes too long" in served.said()
        assert at(served.root) is None


@pytest.mark.parametrize(
    ("worker", "status"), [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 1), (["/no/such"], 1)]
)
def test_the_first_worker_s_failure_is_the_holder_s(tmp_path: Path, worker: list[str], status: int) -> None:
    """A bad configuration is one line and an exit status, not a mount that nobody serves."""
    with started(tmp_path, worker=worker) as served:
        assert served.wait() == status
        assert at(served.root) is None


def test_without_resend_what_was_being_read_fails_soon_and_the_mount_comes_back(tmp_path: Path) -> None:
    with held(tmp_path, {"slow": CONTENT, "native": CONTENT}, resend=False) as served:
        assert "cannot send a dead worker's requests again" in served.said()
        open_before = os.open(served.path("native"), os.O_RDONLY)
        pid = os.fork()
        if pid == 0:
            try:
                read(served, "slow")
            except OSError as error:
                os._exit(error.errno or 0)
            os._exit(0)
        eventually(lambda: served.stats()["reads"] > 0)
        served.kill_worker()
        began = time.monotonic()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO)
        assert time.monotonic() - began < 5
        assert os.pread(open_before, 1 << 30, 0) == CONTENT, "native handles of the lost mount go on"
        os.close(open_before)
        served.wait_ready(2)
        assert read(served, "native") == CONTENT


def test_a_file_that_the_dead_worker_had_registered_and_not_written_down_is_let_go(tmp_path: Path) -> None:
    """The holder knows its ids, the next worker says which are in use."""
    from test_passthrough import is_used

    with held(tmp_path, {"a": CONTENT, "b": CONTENT}) as served:
        kept = os.open(served.path("a"), os.O_RDONLY)
        for kill in range(5):
            fd = os.open(served.path("b"), os.O_RDONLY)
            served.kill_worker()
            os.close(fd)
            served.wait_ready(2 + kill)
        eventually(lambda: served.stats()["files_open_native"] == 1)
        assert is_used(served.directory / "a")
        eventually(lambda: not is_used(served.directory / "b"))
        os.close(kept)
        eventually(lambda: not is_used(served.directory / "a"))


def test_the_holder_is_small(tmp_path: Path) -> None:
    with held(tmp_path, {"a": CONTENT}) as served:
        for kills in range(3):
            served.kill_worker()
            served.wait_ready(2 + kills)
        assert read(served, "a") == CONTENT
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        resident_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
        assert resident_kib < 15_000
        threads = next(line for line in status.splitlines() if line.startswith("Threads"))
        assert threads.split()[1] == "1"


def test_the_holder_is_the_last_to_be_killed_for_memory(tmp_path: Path) -> None:
    own = Path("/proc/self/oom_score_adj")
    score = own.read_text().strip()
    try:
        own.write_text("-1")
    except PermissionError:
        pytest.skip("no CAP_SYS_RESOURCE here")
    own.write_text(score)
    with held(tmp_path, {"a": CONTENT}) as served:
        assert int(Path(f"/proc/{served.process.pid}/oom_score_adj").read_text()) == -900
        assert Path(f"/proc/{served.worker_pid()}/oom_score_adj").read_text().strip() == score


def test_an_idle_holder_sleeps(tmp_path: Path) -> None:
    """Requests do not wake it: it never polls /dev/fuse."""
    with held(tmp_path, {"served": CONTENT}) as served:
        eventually(lambda: "worker ready" in served.said())
        before = switches(served.process.pid)
        for _ in range(300):
            read(served, "served")
        assert switches(served.process.pid) - before < 20
        assert served.stats()["opens"] >= 300


def switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("voluntary_ctxt_switches")))
