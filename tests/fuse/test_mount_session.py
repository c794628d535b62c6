"""The life of a mount: its tuning, its loop's traps and their cures, its end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, MountRefused, Starter, clean_up, start_mount

from ckptfs.fuse import mountinfo, tuning
from ckptfs.testing.checkpoints import noise

MIB = 1 << 20
NOBODY = 65534


# --- Tuning ------------------------------------------------------------------------------------------


def test_readahead_and_background_are_raised(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}}, read_ahead_kib=2048, max_background=777)
    found = mountinfo.at(mount.root)
    assert found
    assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text() == "2048\n"
    assert fusectl(found.minor, "max_background") == b"777\n"
    assert fusectl(found.minor, "congestion_threshold") == b"582\n"


def fusectl(connection: int, name: str) -> bytes:
    directory = tuning._open_fusectl()
    try:
        fd = os.open(f"{connection}/{name}", os.O_RDONLY, dir_fd=directory)
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def test_the_readahead_is_what_makes_it_fast(mounted: Starter) -> None:
    """Without it the kernel asks for 128 KiB at a time."""
    requests = {}
    for kib in (128, 8192):
        mount = mounted({"c": {b"f": noise(1, 16 * MIB)}}, read_ahead_kib=kib, passthrough=False)
        Path(mount.path("c", "f")).read_bytes()
        requests[kib] = mount.reads()
    assert requests[128] >= 100
    assert requests[8192] <= 24


# --- The freeze ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def ambushed(mount: Mount) -> Iterator[None]:
    """A client that is killed between the loop's poll and its read."""
    program = f"import os; print(flush=True); input(); os.path.exists({mount.path('nobody')!r})"
    client = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin
    assert client.stdout
    client.stdout.readline()
    mount.do("ambush", pid=client.pid)
    client.stdin.write("\n")
    client.stdin.close()
    assert client.wait(10) == -signal.SIGKILL
    client.stdout.close()
    yield


def answers_within(mount: Mount, seconds: float) -> bool:
    assert mount.process.stdin
    assert mount.process.stdout
    mount.process.stdin.write(b'{"do": "counters"}\n')
    mount.process.stdin.flush()
    if not select.select([mount.process.stdout], [], [], seconds)[0]:
        return False
    return bool(mount.process.stdout.readline())


def test_a_reader_killed_at_the_worst_moment_freezes_nothing(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": b"x"}})
    for _ in range(3):
        with ambushed(mount):
            assert answers_within(mount, 1.0)


def test_without_the_ticks_it_does_freeze(mounted: Starter) -> None:
    """The fault of the test above fires; this is what it looks like, until somebody touches the mount."""
    mount = mounted({"c": {b"f": b"x"}}, without_ticks=True)
    with ambushed(mount):
        assert not answers_within(mount, 1.5)
        os.path.exists(mount.path("somebody"))
        assert mount.process.stdout
        assert mount.process.stdout.readline()


def test_readers_killed_all_the_time(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": noise(1, 4 * MIB)}})
    program = (
        "import os\n"
        f"fd = os.open({mount.path('c', 'f')!r}, os.O_RDONLY)\n"
        "while True:\n"
        "    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.pread(fd, 1 << 22, 0)\n"
        f"    os.path.exists({mount.path('nobody')!r})\n"
    )
    for _ in range(15):
        clients = [subprocess.Popen([sys.executable, "-S", "-c", program]) for _ in range(4)]
        time.sleep(0.1)
        for client in clients:
            client.kill()
        for client in clients:
            client.wait()
        assert answers_within(mount, 1.0)
    assert mount.counter("fuse_faults") == 0
    assert "error" not in mount.said()


# --- A disk that stops ---------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Mount, Path]]:
    """A mount whose blobs lie on a disk that answers no read while the gate file exists."""
    store, gate = tmp_path / "store", tmp_path / "gate"
    files = {f"big-{i}".encode(): noise(i, 200_000) for i in range(60)}
    made = start_mount(tmp_path, {"c": {**files, b"small": b"small"}}, {})
    clean_up(made)
    (store / "blobs").rename(tmp_path / "backing")
    (store / "blobs").mkdir()
    disk = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("slow_disk.py")),
            str(tmp_path / "backing"),
            str(store / "blobs"),
            str(gate),
        ],
        stdout=subprocess.PIPE,
    )
    assert disk.stdout
    assert disk.stdout.readline() == b"ready\n"
    mount = None
    try:
        mount = start_mount(tmp_path, {}, {"attach": ["c"], "stop_grace_seconds": 0.5})
        yield mount, gate
    finally:
        gate.unlink(missing_ok=True)
        if mount:
            clean_up(mount)
        disk.terminate()
        disk.wait(10)
        disk.stdout.close()


def in_threads(paths: list[str]) -> tuple[list[threading.Thread], list[object]]:
    results: list[object] = []

    def read(path: str) -> None:
        try:
            results.append(Path(path).read_bytes())
        except OSError as error:
            results.append(error.errno)

    threads = [threading.Thread(target=read, args=[path]) for path in paths]
    for thread in threads:
        thread.start()
    return threads, results


def test_a_disk_that_stops_delays_no_metadata(slow: tuple[Mount, Path]) -> None:
    """More stalled reads than trio has threads, than the kernel's dozen in the background."""
    mount, gate = slow
    gate.touch()
    threads, results = in_threads([mount.path("c", f"big-{i}") for i in range(60)])
    time.sleep(0.5)
    worst = 0.0
    for i in range(40):
        start = time.monotonic()
        assert not os.path.exists(mount.path(f"nobody-{i}"))
        os.listdir(mount.root)
        os.stat(mount.path("c", f"big-{i}"))
        worst = max(worst, time.monotonic() - start)
    assert worst < 0.5
    assert results == []
    gate.unlink()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == sorted(noise(i, 200_000) for i in range(60))  # type: ignore[type-var]


def test_a_stop_waits_for_nobody(slow: tuple[Mount, Path]) -> None:
    """Readers in flight on a disk that does not answer: they get an error, the mount goes."""
    mount, gate = slow
    gate.touch()
    threads, results = in_threads([mount.path("c", "big-1"), mount.path("c", "big-2")])
    time.sleep(0.3)
    assert mount.process.stdin
    mount.process.stdin.close()
    for thread in threads:
        thread.join(5)
    assert len(results) == 2
    assert set(results) <= {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
    assert mountinfo.at(mount.root) is None
    assert "files are open at" in mount.said()
    assert "requests in flight were cut off" in mount.said()


def close_dead(fd: int) -> None:
    """Closing says that the mount is gone, and closes."""
    with contextlib.suppress(OSError):
        os.close(fd)


# --- The end ---------------------------------------------------------------------------------------------


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
        directory = tuning._open_fusectl()
        fd = os.open(f"{found.minor}/abort", os.O_WRONLY, dir_fd=directory)
        os.write(fd, b"1")
        os.close(fd)
        os.close(directory)
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
    assert int(fusectl(found.minor, "max_background")) > 12
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
