"""The worker that waits, prepared, for the death of the one that serves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import other_versions
import pytest
from bare_daemon import kill_and_wait
from daemon_process import CKPTFS, until
from survival import Node, checkpoint, every_kind, memory_kib, node, not_longer, process_name, readers, say

from ckptfs.errors import UpgradeFailed

TICKS = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

LIMIT = "[store]\nderived_limit_bytes = {}\n"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def derived_limit(serving: Node) -> int:
    return serving.daemon.client.status().store.derived_limit_bytes


def test_it_takes_the_place_of_one_that_died(tmp_path: Path) -> None:
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        with readers(serving.path("model"), source, 8) as jobs:
            for starts in (1, 2, 3):
                spare = serving.wait_spare()
                count = serving.kill_worker()
                serving.wait_ready(count + 1)
                assert serving.worker() == spare
                assert serving.daemon.client.status().worker_starts == starts
            report = jobs.end_well()
        not_longer(report)
        say("three deaths with a spare worker", worst=report["worst_seconds"])
        spare = serving.wait_spare()
        say("a spare worker", pss_kib=memory_kib(spare, "Pss"), anonymous_kib=memory_kib(spare, "Pss_Anon"))
        assert serving.workers() == [serving.worker()]
        assert serving.daemon.client.status().spare_pid == spare
        serving.daemon.stop()
        until(lambda: process_name(spare) == "", "it goes with the daemon", 1)
        warned = [r for r in serving.events("worker ended") if r["level"] == "warning"]
        assert [r["how"] for r in warned] == ["SIGKILL"] * 3, "its own end is nothing to look at"


def test_its_own_death_disturbs_nobody(tmp_path: Path) -> None:
    with node(tmp_path) as serving:
        source = checkpoint(serving, tmp_path)
        worker = serving.worker()
        kill_and_wait(serving.wait_spare())
        until(lambda: serving.events("no spare worker for now"), "it is noticed")
        assert serving.worker() == worker
        count = serving.kill_worker()  # and now without one
        serving.wait_ready(count + 1)
        for name in every_kind():
            assert serving.read("model", name) == (source / name).read_bytes(), name
        serving.wait_spare()


def test_it_has_the_configuration_of_when_it_is_to_serve(tmp_path: Path) -> None:
    with node(tmp_path, config=LIMIT.format(1000)) as serving:
        spare = serving.wait_spare()
        (tmp_path / "ckptfsd.toml").write_text(LIMIT.format(2000))
        serving.wait_ready(serving.kill_worker() + 1)
        assert (serving.worker(), derived_limit(serving)) == (spare, 2000)


def test_a_mistake_in_the_configuration_does_not_matter_to_it(tmp_path: Path) -> None:
    """Nobody reloaded yet: the one before it is in force, whenever the mistake was made."""
    with node(tmp_path, config=LIMIT.format(1000)) as serving:
        serving.daemon.expected_errors += ["the configuration has a mistake"]
        before = serving.wait_spare()
        (tmp_path / "ckptfsd.toml").write_text(LIMIT.format("'many'"))
        for _ in range(2):
            spare = serving.wait_spare()
            serving.wait_ready(serving.kill_worker() + 1)
            assert (serving.worker(), derived_limit(serving)) == (spare, 1000)
        assert spare != before, "the second was started with the mistake there"
        assert "derived_limit_bytes" in serving.daemon.client.status().upgrade_note


def test_a_reload_is_not_made_by_it(tmp_path: Path) -> None:
    """It may be of a version from before, and of weeks ago."""
    with node(tmp_path) as serving:
        spare = serving.wait_spare()
        serving.daemon.run("daemon", "reload")
        assert serving.worker() != spare
        until(lambda: process_name(spare) == "", "it is let go")
        assert serving.wait_spare() not in (spare, serving.worker())
        assert serving.daemon.client.status().upgrades == 1
        serving.wait_ready(serving.kill_worker() + 1)
        assert serving.daemon.client.status().upgrades == 1, "a death is none"


def test_reloads_leave_the_holder_asleep(tmp_path: Path) -> None:
    """Whenever a spare is let go, also in the middle of its start, nothing of it is waited for any more."""
    with node(tmp_path) as serving:
        for wait in (0.0, 0.1, 0.6):
            count = len(serving.ready())
            started = serving.events("worker started")[-1]
            until(lambda s=started: s["spare"] or serving.events("worker started")[-1]["spare"], "a spare")
            time.sleep(wait)
            os.kill(serving.holder, signal.SIGHUP)
            serving.wait_ready(count + 1)
            used, began = cpu_seconds(serving.holder), time.monotonic()
            time.sleep(0.5)
            busy = (cpu_seconds(serving.holder) - used) / (time.monotonic() - began)
            assert busy < 0.3, f"{busy:.0%} of a core"


def test_an_upgrade_to_nothing_leaves_it_where_it_is(tmp_path: Path) -> None:
    with node(tmp_path, expected_errors=["cannot be started", "upgrade failed"]) as serving:
        spare = serving.wait_spare()
        with pytest.raises(UpgradeFailed, match="No such file"):
            serving.daemon.client.upgrade("/nonexistent/python")
        assert serving.wait_spare() == spare
        assert serving.daemon.client.status().spare_pid == spare
        assert f"{spare} in reserve" in serving.daemon.run("status").stdout
        serving.wait_ready(serving.kill_worker() + 1)
        assert serving.worker() == spare


def test_it_serves_also_when_the_worker_dies_in_an_upgrade(tmp_path: Path) -> None:
    """The one that is to be upgraded to has yet to start, and may never."""
    python = other_versions.that_hangs(tmp_path / "other")
    config = "[holder]\nstart_timeout_seconds = 3\n"
    with node(tmp_path, config=config, expected_errors=["upgrade failed"]) as serving:
        spare = serving.wait_spare()
        upgrade = subprocess.Popen(
            [*CKPTFS, "daemon", "upgrade", "--python", python],
            env=serving.daemon.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: len(serving.workers()) == 2, "the next one starts")
        serving.wait_ready(serving.kill_worker() + 1)
        assert serving.worker() == spare
        assert serving.workers()[0] == spare
        _, said = upgrade.communicate(timeout=20)
        assert "the upgrade failed" in said
        until(lambda: serving.events("no upgrade"), "the one that hangs is ended")
        until(lambda: serving.workers() == [spare], "and gone")
        serving.wait_spare()


def test_an_upgrade_goes_on_behind_it(tmp_path: Path) -> None:
    with node(tmp_path) as serving:
        spare = serving.wait_spare()
        os.kill(serving.holder, signal.SIGHUP)
        until(lambda: len(serving.workers()) == 2, "the next one starts")
        count = serving.kill_worker()
        serving.wait_ready(count + 2)
        assert serving.ready()[-2] == spare
        assert serving.daemon.client.status().upgrades == 1
        until(lambda: process_name(spare) == "", "it has done its work")


def test_one_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with node(tmp_path, config="[holder]\npause_timeout_seconds = 1\n") as serving:
        spare = serving.wait_spare()
        os.kill(spare, signal.SIGSTOP)
        serving.wait_ready(serving.kill_worker() + 1)
        assert serving.worker() != spare
        assert process_name(spare) == "", "it was killed"


def test_workers_that_crash_are_not_followed_any_faster(tmp_path: Path) -> None:
    """The pauses between them are there so that a crash loop does not take a core."""
    with node(tmp_path) as serving:
        for _ in range(3):
            serving.wait_spare()
            serving.wait_ready(serving.kill_worker(signal.SIGABRT) + 1)
        pauses = [r["seconds"] for r in serving.events("pause before the next start")]
        assert pauses == [0.1, 0.2], "none for the first"


def test_a_mount_that_was_taken_away_is_served_again_by_it(tmp_path: Path) -> None:
    with node(tmp_path, expected_errors=["the mount was lost"]) as serving:
        source = checkpoint(serving, tmp_path)
        spare = serving.wait_spare()
        count = len(serving.ready())
        subprocess.run(["umount", "-l", str(serving.daemon.mount)], check=True)
        serving.wait_ready(count + 1)
        assert serving.worker() == spare
        for name in every_kind():
            assert serving.read("model", name) == (source / name).read_bytes(), name


def test_it_does_not_outlive_the_holder(tmp_path: Path) -> None:
    with node(tmp_path) as serving:
        worker, spare = serving.worker(), serving.wait_spare()
        try:
            os.kill(serving.holder, signal.SIGKILL)
            until(lambda: process_name(spare) == "", "it goes")
            assert process_name(worker) == "ckptfsd-worker", "and the one that serves stays"
        finally:
            serving.daemon.kill()
            kill_and_wait(worker)
            serving.daemon.start()


def test_none_is_started_where_it_is_not_wanted(tmp_path: Path) -> None:
    with node(tmp_path, config="[holder]\nspare_worker = false\n") as serving:
        serving.wait_ready(serving.kill_worker() + 1)
        time.sleep(1)
        assert serving.events("worker started")[-1]["pid"] == serving.worker()
