"""The real daemon when more goes wrong than one death: both processes, the mount itself, readers that are
killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bare_daemon import kill_and_wait, mounted_at
from daemon_process import until
from held_open import digest, held_open, sha256
from holding import abort
from survival import LOST, Node, checkpoint, every_kind, node, not_longer, readers, say

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

READ_AND_DIE = str(Path(__file__).with_name("read_and_die.py"))

# What an administrator may wait for after taking a mount away, at most.
NOTICED_SECONDS = 5.0


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
