"""Reloads, upgrades and deaths at moments when no worker is ready, or the next one has shown nothing yet."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import other_versions
import pytest
from bare_daemon import BareDaemon, children
from daemon_process import until
from survival import checkpoint, every_kind, node, readers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

#: A worker that another one followed, or a spare of the version before.
DISMISSED = {("status 0", "leaving"), ("SIGKILL", "leaving")}


def test_a_reload_during_the_first_start_does_not_end_the_daemon(tmp_path: Path) -> None:
    daemon = BareDaemon(tmp_path / "d")
    try:
        daemon.spawn()
        until(lambda: children(daemon.pid), "a worker starts")
        daemon.send(signal.SIGHUP)
        until(lambda: "] upgraded pid=" in daemon.said() or daemon.process.poll() is not None, "its reload")
        assert daemon.process is not None and daemon.process.poll() is None, daemon.said()
        assert "a reload follows when a worker serves" in daemon.said(), "it came before that"
        assert daemon.client().status().mounted
        assert daemon.stop() == 0
    finally:
        daemon.close()


def test_reloads_without_number_after_a_death_cost_no_read(tmp_path: Path) -> None:
    """Each was told to the worker that was being started, which took it for an order to leave."""
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        with readers(serving.path("model"), source, 8) as jobs:
            serving.kill_worker()
            end = time.monotonic() + 4
            while time.monotonic() < end:
                os.kill(serving.holder, signal.SIGHUP)
                time.sleep(0.02)
            jobs.end_well()
        until(lambda: len(serving.workers()) == 1, "the last reload is over")
        assert serving.events("a reload follows when a worker serves"), "some came too early"
        assert len(serving.events("upgraded")) >= 2, "and were done afterwards"
        ends = {(r["how"], r["state"]) for r in serving.events("worker ended")}
        assert ends - DISMISSED == {("SIGKILL", "ready")}, "no worker ended but the one that was killed"
        assert serving.events("requests were given up (EIO)") == []


def test_a_version_that_cannot_serve_is_not_kept_because_the_old_worker_died(tmp_path: Path) -> None:
    python = other_versions.that_crashes_with_the_connection(tmp_path / "other")
    with node(tmp_path, expected_errors=["the upgrade failed"]) as serving:
        source = checkpoint(serving, tmp_path)
        ask = partial(serving.daemon.run, "daemon", "upgrade", "--python", python, code=None)
        asked = threading.Thread(target=ask)
        asked.start()
        until(lambda: len(serving.workers()) == 2, "the next one starts")
        serving.kill_worker()
        serving.wait_ready(2)
        for name in every_kind():
            assert serving.read("model", name) == (source / name).read_bytes(), name
        asked.join()
        ends = [r["how"] for r in serving.events("worker ended") if r["state"] != "leaving"]
        assert ends == ["SIGKILL", "SIGABRT"], "the other version had its chance, once"
        assert serving.events("requests were given up (EIO)") == []
