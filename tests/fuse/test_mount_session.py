"""The life of a mount: its tuning, its loop's traps and their cures, its end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import MountRefused, Starter

from ckptfs.fuse import mountinfo
from ckptfs.testing import fusectl
from ckptfs.testing.checkpoints import noise

MIB = 1 << 20
NOBODY = 65534


# --- Tuning ------------------------------------------------------------------------------------------


def test_readahead_and_background_are_raised(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}}, read_ahead_kib=2048, max_background=777)
    found = mountinfo.at(mount.root)
    assert found
    assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text() == "2048\n"
    assert fusectl.read(found.minor, "max_background") == b"777\n"
    assert fusectl.read(found.minor, "congestion_threshold") == b"582\n"


def test_the_readahead_is_what_makes_it_fast(mounted: Starter) -> None:
    """Without it the kernel asks for 128 KiB at a time."""
    requests = {}
    for kib in (128, 8192):
        mount = mounted({"c": {b"f": noise(1, 16 * MIB)}}, read_ahead_kib=kib, passthrough=False)
        Path(mount.path("c", "f")).read_bytes()
        requests[kib] = mount.reads()
    assert requests[128] >= 100
    assert requests[8192] <= 24


# --- The end ---------------------------------------------------------------------------------------------


def close_dead(fd: int) -> None:
    """Closing says that the mount is gone, and closes."""
    with contextlib.suppress(OSError):
        os.close(fd)


def test_a_clean_stop_leaves_nothing(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}})
    assert mount.stop() == 0
    assert mountinfo.at(mount.root) is None
    assert mount.said().count("warning") == 0


def test_a_native_file_outlives_the_mount(mounted: Starter) -> None:
    content = noise(1, 4 * MIB)
    mount = mounted({"c": {b"f": content}})
    with open(mount.path("c", "f"), "rb") as file:
        assert mount.stop() == 0
        assert mountinfo.at(mount.root) is None
        assert file.read() == content


def test_a_stop_with_open_files_detaches_lazily(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": noise(1, 4 * MIB)}}, passthrough=False)
    fd = os.open(mount.path("c", "f"), os.O_RDONLY)
    start = time.monotonic()
    assert mount.stop() == 0
    assert time.monotonic() - start < 4
    assert "files are open at" in mount.said()
    assert mountinfo.at(mount.root) is None
    with pytest.raises(OSError) as caught:
        os.pread(fd, 100, 3 * MIB)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    close_dead(fd)


def test_a_stop_under_readers_gives_bytes_or_an_error(mounted: Starter) -> None:
    content = noise(1, 8 * MIB)
    mount = mounted({"c": {b"f": content}}, passthrough=False)
    wrong: list[object] = []
    fd = os.open(mount.path("c", "f"), os.O_RDONLY)

    def read_until_it_ends() -> None:
        while True:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                got = os.pread(fd, MIB, 3 * MIB)
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                    wrong.append(error)
                return
            # The kernel answers what it had by then, and the error to the next call.
            if not got or not content[3 * MIB : 4 * MIB].startswith(got):
                wrong.append((len(got), content[3 * MIB : 4 * MIB].find(got)))

    threads = [threading.Thread(target=read_until_it_ends) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert mount.stop() == 0
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    close_dead(fd)
    assert wrong == []


@pytest.mark.parametrize("how", ["umount", "abort"])
def test_a_mount_taken_away_from_outside_is_an_error(mounted: Starter, how: str) -> None:
    mount = mounted({"c": {b"f": b"x"}})
    if how == "umount":
        subprocess.run(["umount", mount.root], check=True)
    else:
        found = mountinfo.at(mount.root)
        assert found
        fusectl.abort(found.minor)
    assert mount.process.wait(10) == 7
    assert mount.process.stdout
    assert b"was taken away from outside" in mount.process.stdout.read()
    assert mountinfo.at(mount.root) is None


def test_somebody_elses_mount_on_top_is_left_alone(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}})
    subprocess.run(["mount", "-t", "tmpfs", "on-top", mount.root], check=True)
    try:
        assert mount.stop() == 0
        top = mountinfo.at(mount.root)
        assert top
        assert top.source == "on-top"
    finally:
        subprocess.run(["umount", mount.root], check=True)


# --- Without root ------------------------------------------------------------------------------------------


@pytest.fixture
def open_tmp_path(tmp_path: Path) -> Iterator[Path]:
    """pytest's folders are for root only, and so is /dev/fuse on a machine without udev."""
    devices = os.open("/dev", os.O_RDONLY)
    fcntl.flock(devices, fcntl.LOCK_EX)  # another run of these tests changes the same device's mode
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    yield tmp_path
    device.chmod(mode)
    os.close(devices)


def test_an_unprivileged_mount_without_the_device(open_tmp_path: Path, mounted: Starter) -> None:
    Path("/dev/fuse").chmod(0o600)
    with pytest.raises(MountRefused, match=r"/dev/fuse: Permission denied; .*mode 0666"):
        mounted({"c": {b"f": b"x"}}, run_as=NOBODY)


def test_an_unprivileged_mount_of_a_user_without_a_name(open_tmp_path: Path, mounted: Starter) -> None:
    with pytest.raises(MountRefused, match="could not determine username"):
        mounted({"c": {b"f": b"x"}}, run_as=54321)


def test_an_unprivileged_mount(open_tmp_path: Path, mounted: Starter) -> None:
    user, content = NOBODY, noise(1, 5 * MIB)
    mount = mounted({"c": {b"d/f": content}}, run_as=user)
    assert f"only processes of user {user} see the mount" in mount.notes
    assert "readahead stays at the kernel's 128 KiB" in mount.notes
    found = mountinfo.at(mount.root)
    assert found
    # Asked for in INIT, which the kernel grants to everybody up to what its memory allows.
    assert int(fusectl.read(found.minor, "max_background")) > 12
    path = mount.path("c", "d", "f")
    assert subprocess.check_output(["cat", path], user=user, group=user, extra_groups=[]) == content
    with pytest.raises(PermissionError):
        os.listdir(mount.root)  # even root is "another user" to such a mount
    found = mountinfo.at(mount.root)
    assert found
    assert (found.fstype, found.source) == ("fuse.ckptfs", "ckptfs")
    assert mount.stop() == 0
    assert mountinfo.at(mount.root) is None


def test_an_unprivileged_mount_at_a_place_of_somebody_else(open_tmp_path: Path, mounted: Starter) -> None:
    theirs = open_tmp_path / "theirs"
    theirs.mkdir()
    with pytest.raises(MountRefused, match=r"cannot mount at .* without root: .*write access"):
        mounted({"c": {b"f": b"x"}}, run_as=NOBODY, mountpoint=str(theirs))
