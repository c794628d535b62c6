"""Before mounting: each thing that is in the way gets one clear line, and nothing is touched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import MountRefused, Starter

from ckptfs.fuse import mountinfo


def refusal(mounted: Starter, mountpoint: Path) -> str:
    with pytest.raises(MountRefused) as caught:
        mounted({"c": {b"f": b"x"}}, mountpoint=str(mountpoint))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_mountpoint(mounted: Starter, tmp_path: Path) -> None:
    message = refusal(mounted, tmp_path / "a b")
    assert "a b does not exist" in message
    assert f"mkdir -p '{tmp_path}/a b'" in message
    assert not (tmp_path / "a b").exists()


def test_a_mountpoint_that_is_not_empty(mounted: Starter, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thing").touch()
    assert re.search("used is not empty .it holds 'thing'.", refusal(mounted, tmp_path / "used"))


def test_a_mountpoint_that_is_a_file(mounted: Starter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in refusal(mounted, tmp_path / "file")
    assert "not a directory" in refusal(mounted, tmp_path / "file" / "below")


def test_a_mountpoint_that_cannot_be_looked_into(mounted: Starter, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be used" in refusal(mounted, tmp_path / "loop")


def test_a_mountpoint_of_something_else(mounted: Starter, tmp_path: Path) -> None:
    path = tmp_path / "with blank"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "other-disk", path], check=True)
    try:
        assert re.search(r"is a mountpoint already \(other-disk, tmpfs\)", refusal(mounted, path))
    finally:
        subprocess.run(["umount", path], check=True)


def test_the_mountpoint_of_a_live_daemon(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}})
    assert "is the mount of another ckptfsd" in refusal(mounted, Path(mount.root))
    assert os.listdir(mount.root) == ["c"]


def test_the_mountpoint_of_a_stopped_daemon(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}})
    mount.process.send_signal(signal.SIGSTOP)
    try:
        assert "of a ckptfsd that does not answer" in refusal(mounted, Path(mount.root))
    finally:
        mount.process.send_signal(signal.SIGCONT)
    assert os.listdir(mount.root) == ["c"]


def test_a_dead_mount_is_cleared_and_said(mounted: Starter) -> None:
    dead = mounted({"c": {b"f": b"x"}})
    for _ in range(2):  # two on one path are cleared too
        dead.process.kill()
        dead.process.wait()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(dead.root)
    mount = mounted({"d": {b"f": b"x"}}, mountpoint=dead.root)
    assert f"a dead ckptfs mount was cleared from {dead.root}" in mount.notes
    assert os.listdir(mount.root) == ["d"]
    assert mount.stop() == 0
    assert mountinfo.at(mount.root) is None


def test_a_mountpoint_behind_a_link_is_found_again(mounted: Starter, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    mount = mounted({"c": {b"f": b"x"}}, mountpoint=str(tmp_path / "link"))
    assert mount.root == str(tmp_path / "real")
    assert os.listdir(tmp_path / "link") == ["c"]
    assert "is the mount of another ckptfsd" in refusal(mounted, tmp_path / "link")


def test_no_fuse_device(tmp_path: Path) -> None:
    """In a mount namespace whose /dev is empty."""
    (tmp_path / "mount").mkdir()
    program = (
        "from ckptfs.fuse.mountpoint import prepare\n"
        f"try: prepare({str(tmp_path / 'mount')!r})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    script = 'mount -t tmpfs none /dev && exec "$0" -c "$1"'
    said = subprocess.check_output(["unshare", "-m", "sh", "-c", script, sys.executable, program], text=True)
    assert said.startswith("MountError there is no /dev/fuse")


def test_a_device_that_may_not_be_mounted(tmp_path: Path) -> None:
    """Root without CAP_SYS_ADMIN, as in a container."""
    (tmp_path / "mount").mkdir()
    program = (
        "from ckptfs.fuse.kernel_mount import attach\n"
        f"try: attach({str(tmp_path / 'mount')!r}, allow_other=True)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.check_output(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", program],
        text=True,
    )
    assert said.startswith("MountError cannot mount")
    assert "CAP_SYS_ADMIN" in said


def test_a_second_mount_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    program = f"""
import trio
from ckptfs.engine.view import View
from ckptfs.fuse import FuseSession
from ckptfs.fuse.channel import OwnBackings
from ckptfs.fuse.connection import connect
from ckptfs.store import Store
one, two = connect({str(tmp_path / "one")!r}), connect({str(tmp_path / "two")!r})
def session(view, connection):
    return FuseSession(view, connection, OwnBackings(connection.fuse_fd))
async def main():
    view = View(Store.open({str(tmp_path / "store")!r}), dict)
    async with trio.open_nursery() as nursery:
        await nursery.start(session(view, one).run)
        try: await session(view, two).run()
        except Exception as error: print(type(error).__name__, error)
        nursery.cancel_scope.cancel()
    await one_more(view)
async def one_more(view):
    async with trio.open_nursery() as nursery:
        await nursery.start(session(view, two).run)
        nursery.cancel_scope.cancel()
        print("again")
try:
    trio.run(main)
finally:
    for connection in (one, two):
        connection.unmount()
        connection.close()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "MountError this process serves a mount already" in said
    assert said.rstrip().endswith("again") or "again" in said
    assert mountinfo.at(str(tmp_path / "one")) is None
    assert mountinfo.at(str(tmp_path / "two")) is None
