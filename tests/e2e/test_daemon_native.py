"""Files that the kernel reads past the daemon, while the daemon is replaced."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import Daemon, running, write_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root registers files with the kernel")

CONTENT = os.urandom(3_000_000)

# An interpreter in whose processes the extension has no effect: pyfuse3 is loaded before it.
WITHOUT_EXTENSION = """#!/bin/sh
shift 3
exec {python} -P -c 'import sys, pyfuse3
sys.argv[0] = "ckptfsd"
from ckptfsd.__main__ import main
main()' "$@"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    write_tree(tmp_path / "source", {"model.bin": CONTENT})
    with running() as daemon:
        daemon.run("create", "m", str(tmp_path / "source"))
        daemon.run("attach", "m", "--job", "j")
        yield daemon


def test_an_upgrade_that_would_cut_off_native_files_waits_until_they_are_closed(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.expected_errors = ["the upgrade failed", "are open past the daemon"]
    python = tmp_path / "python"
    python.write_text(WITHOUT_EXTENSION.format(python=sys.executable))
    python.chmod(0o755)
    path = daemon.mount / "m" / "model.bin"
    with path.open("rb") as held:
        assert daemon.json("status")["counters"]["files_open_native"] == 1
        refused = daemon.run("daemon", "upgrade", "--python", str(python), code=7)
        assert "1 file(s) are open past the daemon" in refused.stderr
        assert "pyfuse3 was imported before it" in refused.stderr
        assert "1 file(s) are open past the daemon" in daemon.json("status")["upgrade_note"]
        assert path.read_bytes() == held.read() == CONTENT

    upgraded = daemon.json("daemon", "upgrade", "--python", str(python))
    assert upgraded["now"]["worker_pid"] != upgraded["before"]["worker_pid"]
    assert "reads go through the daemon: the extension" in daemon.json("status")["mount_note"]
    assert path.read_bytes() == CONTENT
    assert daemon.json("status")["counters"]["native_opens"] == 0
    with path.open("rb") as held:  # served; and native again with the next worker, once it is closed
        daemon.run("daemon", "upgrade", "--python", sys.executable)
        assert daemon.json("status")["mount_note"] == ""
        assert path.read_bytes() == held.read() == CONTENT
        assert daemon.json("status")["counters"]["native_opens"] == 0
    assert path.read_bytes() == CONTENT
    assert daemon.json("status")["counters"]["native_opens"] == 1


def test_a_file_that_is_open_past_the_daemon_stays_so_through_every_worker(daemon: Daemon) -> None:
    path = daemon.mount / "m" / "model.bin"
    with path.open("rb") as held:
        for _ in range(2):
            daemon.run("daemon", "reload")
            counters = daemon.json("status")["counters"]
            assert (counters["files_open_native"], counters["files_open_served"]) == (1, 0)
            with path.open("rb") as again:
                assert again.read() == CONTENT
            assert os.pread(held.fileno(), len(CONTENT), 0) == CONTENT
        counters = daemon.json("status")["counters"]
        assert counters["reads_inline"] + counters["reads_in_thread"] == 0
    assert daemon.json("status")["counters"]["files_open_native"] == 0
