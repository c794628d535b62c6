"""What the service manager kept of the mount over a restart, and what is wanted after it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_daemon import BareDaemon, mounted_at

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

WITH_KEPT = str(Path(__file__).with_name("with_kept_mount.py"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BareDaemon]:
    """With the mount at ``before`` kept from the daemon before it."""
    before = tmp_path / "before"
    before.mkdir()
    daemon = BareDaemon(tmp_path / "d")
    daemon.prefix = [sys.executable, WITH_KEPT, str(before), str(daemon.store)]
    try:
        yield daemon
    finally:
        daemon.close()
        while mounted_at(before):
            subprocess.run(["umount", "-l", str(before)], check=True)


def test_the_same_path_goes_on(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.mount = tmp_path / "before"
    daemon.start()
    assert "adopted=true" in daemon.said()
    assert mounted_at(daemon.mount) == ["fuse.ckptfs"]
    assert os.listdir(daemon.mount) == []
    assert daemon.stop() == 0
    assert mounted_at(daemon.mount) == []


def test_a_mount_of_another_store_is_made_anew(daemon: BareDaemon, tmp_path: Path) -> None:
    """Its handles and pages are those of the store before."""
    daemon.mount = tmp_path / "before"
    daemon.store = tmp_path / "d" / "another"
    daemon.start()
    assert "is taken away: it is not what is wanted now" in daemon.said()
    assert "adopted=false" in daemon.said()
    assert mounted_at(daemon.mount) == ["fuse.ckptfs"], "one"
    assert daemon.stop() == 0
    assert mounted_at(daemon.mount) == []


def test_a_mount_at_another_path_does_not_stay_behind(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.start()
    assert "adopted=false" in daemon.said()
    assert f"the mount at {tmp_path / 'before'}, kept from before" in daemon.said()
    assert mounted_at(tmp_path / "before") == []
    assert daemon.mounted == ["fuse.ckptfs"]
    assert daemon.stop() == 0


def test_without_a_mount_none_stays_behind_with_readers_that_wait_for_ever(
    daemon: BareDaemon, tmp_path: Path
) -> None:
    daemon.mount = None
    daemon.start()
    assert mounted_at(tmp_path / "before") == []
    assert f"the mount at {tmp_path / 'before'}, kept from before" in daemon.said()
    held = [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.pid}/fd")]
    assert "/dev/fuse" not in held
    assert daemon.stop() == 0
