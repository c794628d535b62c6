"""Mistakes in the configuration of a daemon that jobs read through: nobody is to notice but who made them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import Daemon, running, until, write_tree

SMALL = b"small" * 100  # served by the daemon


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ckptfsd.toml"
    path.write_text("[ingest]\nworkers = 2\n")
    return path


@pytest.fixture
def daemon(tmp_path: Path, file: Path) -> Iterator[Daemon]:
    write_tree(tmp_path / "source", {"small.bin": SMALL})
    with running(options=["--config", str(file)]) as daemon:
        daemon.run("create", "m", str(tmp_path / "source"))
        daemon.run("attach", "m", "--job", "j")
        yield daemon


def kill_worker(daemon: Daemon) -> int:
    worker = int(daemon.json("status")["worker_pid"])
    os.kill(worker, signal.SIGKILL)
    until(lambda: daemon.json("status")["worker_pid"] != worker, "another worker")
    return worker


def test_a_mistake_that_nobody_reloaded_does_no_harm_when_a_worker_dies(daemon: Daemon, file: Path) -> None:
    daemon.expected_errors = ["mistake", "unknown key", "upgrade failed"]
    with (daemon.mount / "m" / "small.bin").open("rb") as held:
        file.write_text("[ingest]\nwokers = 2\n")
        for _ in range(2):  # the second one has it from the one that had it from the first
            kill_worker(daemon)
            os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(held.fileno(), 1000, 0) == SMALL
            note = daemon.json("status")["upgrade_note"]
            assert "unknown key 'wokers'" in note
            assert "the configuration before it is in force" in note
        refused = daemon.run("daemon", "reload", code=7)
        assert "unknown key 'wokers'" in refused.stderr
        assert os.pread(held.fileno(), 1000, 0) == SMALL

        file.write_text("[ingest]\nworkers = 3\n")
        daemon.run("daemon", "reload")
        assert daemon.json("status")["upgrade_note"] == ""
        assert os.pread(held.fileno(), 1000, 0) == SMALL


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("[control]\nadmin_group = 'no-such-group'\n", "there is no group 'no-such-group'"),
        ("[control]\nsocket_group = 'no-such-group'\n", "there is no group 'no-such-group'"),
    ],
    ids=["admin-group", "socket-group"],
)
def test_nor_does_one_that_is_found_when_it_is_used(
    daemon: Daemon, file: Path, mistake: str, says: str
) -> None:
    daemon.expected_errors = ["mistake", "no-such-group", "upgrade failed"]
    file.write_text(mistake)
    for _ in range(2):
        kill_worker(daemon)
        assert (daemon.mount / "m" / "small.bin").read_bytes() == SMALL
        assert says in daemon.json("status")["upgrade_note"]
    assert says in daemon.run("daemon", "reload", code=7).stderr


def test_a_mistake_at_the_first_start_is_one_line(tmp_path: Path) -> None:
    """Nothing was in force before."""
    (tmp_path / "c.toml").write_text("[ingest]\nwokers = 2\n")
    with (
        pytest.raises(AssertionError, match="unknown key 'wokers'"),
        running(options=["--config", str(tmp_path / "c.toml")]),
    ):
        pass
