"""SIGKILL of the worker under readers: a pause for them, and nothing else."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import until, write_tree
from job_readers import drop_pages
from survival import Node, checkpoint, every_kind, memory_kib, node, not_longer, readers, say

from ckptfs.errors import CkptfsError, ConnectionError, InUse
from ckptfs.testing import bulk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

READERS = 64

HOLDER_KIB = 15_000

SERVED_ONLY = "[mount]\npassthrough = false\n"


def kill_under_readers(serving: Node, source: Path, kills: int) -> dict[str, Any]:
    """Kill the worker again and again, each time at another moment after it got ready."""
    mounted = serving.path(source.name)
    with readers(mounted, source, READERS) as jobs:
        time.sleep(0.5)
        for _ in range(kills):
            count = serving.kill_worker()
            serving.wait_ready(count + 1)
            # Time to answer who waits: the pause for one death is measured, not that for two or three.
            time.sleep(random.uniform(0.2, 0.5))
        time.sleep(0.5)
        report = jobs.end_well()
    assert serving.deaths() == kills
    say(f"{kills} kills", **{k: v for k, v in report.items() if k != "errors"})
    return report


def check_kinds(serving: Node, *, native: bool) -> None:
    """The test is of what it says: some files are read past the daemon, others by it; or none is."""
    counters = serving.counters()
    assert (counters["native_opens"] > 0) == native
    assert counters["reads_inline"] + counters["reads_in_thread"] > 0


@pytest.mark.parametrize(
    ("kills", "config"),
    [
        pytest.param(5, "", id="5"),
        pytest.param(5, SERVED_ONLY, id="5-passthrough-off", marks=pytest.mark.slow),
        pytest.param(100, "", id="100", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(
            100, SERVED_ONLY, id="100-passthrough-off", marks=[pytest.mark.slow, pytest.mark.timeout(600)]
        ),
    ],
)
def test_kills_under_readers_cost_a_pause(tmp_path: Path, kills: int, config: str) -> None:
    with node(tmp_path, config=config) as serving:
        source = checkpoint(serving, tmp_path)
        with readers(serving.path("model"), source, READERS // 4) as jobs:
            time.sleep(0.3)
            jobs.end_well()
        before = serving.holds()
        report = kill_under_readers(serving, source, kills)
        check_kinds(serving, native=not config)
        not_longer(report)
        what_is_left(serving, before, kills)


def what_is_left(serving: Node, before: dict[str, int], kills: int) -> None:
    """Nothing but handles that a worker died with, one for each death at most; and they are in nobody's way
    for long."""
    time.sleep(0.5)
    after = serving.holds()
    phantoms = serving.counters()["open_files"]
    say(f"{kills} kills later", phantoms=phantoms, before=before, after=after)
    assert phantoms <= kills
    assert after["holder descriptors"] <= before["holder descriptors"]
    assert after["worker descriptors"] <= before["worker descriptors"] + 4
    assert after["holder KiB"] <= before["holder KiB"] + 512
    assert after["native_table_used"] == after["files_open_native"]
    assert memory_kib(serving.holder, "Rss") < HOLDER_KIB
    assert memory_kib(serving.holder, "Pss") < HOLDER_KIB
    serving.daemon.run("detach", "--job", "job-model")
    if phantoms:
        refused = serving.daemon.run("remove", "model", code=None)
        assert refused.returncode == InUse.exit_code
        assert (
            f"{phantoms} file(s) of checkpoint 'model' were open before the daemon's worker" in refused.stderr
        )
        assert "remove with --force" in refused.stderr
    serving.daemon.run("remove", "model", "--force")
    assert serving.daemon.client.checkpoints.list() == []


# --- Handles from before ---------------------------------------------------------------------------------


def test_a_handle_from_before_is_worth_an_error_when_its_checkpoint_was_removed(tmp_path: Path) -> None:
    """Whether the process that had a file open still has it the daemon cannot know after a death. Removed by
    force, the checkpoint is gone: what is read through that handle is an error, and never another's bytes."""
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        served, native = (
            os.open(serving.path("model", n), os.O_RDONLY) for n in ("small/2", "native/weights")
        )
        with contextlib.ExitStack() as stack:
            for fd in (served, native):
                stack.callback(os.close, fd)
            count = serving.kill_worker()
            serving.wait_ready(count + 1)
            serving.daemon.run("detach", "--job", "job-model")
            refused = serving.daemon.run("remove", "model", code=None)
            assert refused.returncode == InUse.exit_code
            assert "2 file(s) of checkpoint 'model' were open before the daemon's worker was replaced" in (
                refused.stderr
            )
            drop_pages(served)
            assert os.pread(served, 1 << 30, 0) == (source / "small/2").read_bytes(), "as long as it is there"
            serving.daemon.run("remove", "model", "--force")
            drop_pages(served)
            with pytest.raises(OSError) as stale:
                os.pread(served, 1 << 30, 0)
            assert stale.value.errno == errno.ESTALE
            # The kernel has the native file's own blob, whose name is gone and whose bytes are not.
            assert os.pread(native, 1 << 30, 0) == (source / "native/weights").read_bytes()
            # Another one under the same name takes nothing over.
            other = tmp_path / "other"
            write_tree(other, {name: bytes(reversed(content)) for name, content in every_kind().items()})
            serving.create("model", other)
            with pytest.raises(OSError):
                os.pread(served, 1 << 30, 0)
            assert os.pread(native, 1 << 30, 0) == (source / "native/weights").read_bytes()
            for name in every_kind():
                assert serving.read("model", name) == (other / name).read_bytes()
        until(lambda: serving.counters()["files_open_native"] == 0, "it is closed")


# --- The control socket ----------------------------------------------------------------------------------


def ask(serving: Node) -> float:
    began = time.monotonic()
    assert serving.daemon.client.status().mounted
    return time.monotonic() - began


def test_a_question_between_two_workers_waits_and_is_answered(tmp_path: Path) -> None:
    with node(tmp_path) as serving, concurrent.futures.ThreadPoolExecutor(50) as clients:
        waited = []
        for _ in range(2):
            count = serving.kill_worker()
            # Gone before anybody asks: what was being answered is another matter.
            until(lambda n=count: serving.deaths() >= n, "it is dead")
            asked = [clients.submit(ask, serving) for _ in range(50)]
            assert len(serving.ready()) == count, "nobody serves yet"
            waited += [answer.result(30) for answer in asked]
            serving.wait_ready(count + 1)
        assert len(waited) == 100
        say("status between two workers", longest_seconds=max(waited))
        assert max(waited) > 0.1, "they did wait"


@pytest.mark.slow
def test_clients_during_upgrades_get_an_answer_or_one_that_a_retry_cures(tmp_path: Path) -> None:
    over = threading.Event()

    def keep_asking() -> tuple[int, int]:
        answers = retries = 0
        while not over.is_set():
            try:
                ask(serving)
            except CkptfsError as error:
                assert isinstance(error, ConnectionError), error
                assert error.retryable
                retries += 1
                ask(serving)
            answers += 1
        return answers, retries

    with node(tmp_path) as serving, concurrent.futures.ThreadPoolExecutor(50) as clients:
        try:
            asking = [clients.submit(keep_asking) for _ in range(50)]
            for _ in range(2):
                count = len(serving.ready())
                os.kill(serving.holder, signal.SIGHUP)
                serving.wait_ready(count + 1)
        finally:
            over.set()
        answers = [client.result(60) for client in asking]
        say("50 clients", answers=sum(a for a, _ in answers), retries=sum(r for _, r in answers))
        assert all(answered > 0 for answered, _ in answers)
        assert len(serving.events("upgraded")) == 2


# --- Soon --------------------------------------------------------------------------------------


@pytest.fixture
def million(tmp_path: Path) -> Iterator[str]:
    store = str(tmp_path / "store")
    bulk.fill(store, 1_000_000)
    yield store


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_with_a_million_chunks_a_worker_is_there_within_a_second(tmp_path: Path, million: str) -> None:
    with node(tmp_path, options=["--store", million]) as serving:
        source = checkpoint(serving, tmp_path)
        assert serving.daemon.client.status().store.chunks > 1_000_000
        names = ["small/0", "small/1", "small/2", "small/3", "shares/second", "shares/third"]
        waited = []
        for name in names:
            count = serving.kill_worker()
            began = time.monotonic()
            assert serving.read("model", name) == (source / name).read_bytes()
            waited.append(time.monotonic() - began)
            serving.wait_ready(count + 1)
        say("kill to the first answer, a million chunks", median=statistics.median(waited), worst=max(waited))
        assert statistics.median(waited) < 1.0
