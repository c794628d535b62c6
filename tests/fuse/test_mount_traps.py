"""The traps of pyfuse3's loop: the fault that springs each, with its cure and without.

- a blocking read(2) of /dev/fuse with the interpreter's lock held: whoever is killed between poll and read
  freezes everything (ticker.py);
- twelve requests in the background, the kernel's default: so many slow reads stop all readahead, and what
  would be one request for a megabyte becomes 256 for a page each;
- 99 tasks, pyfuse3's default: so many slow reads stop even `stat`;
- forty threads, trio's default, for everything: so many slow reads stop whatever else needs a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import Mount, Starter, clean_up, start_mount

from ckptfs.engine.nodes import NODE_BITS
from ckptfs.fuse import mountinfo
from ckptfs.store import Store
from ckptfs.testing.checkpoints import make_checkpoint, noise

MIB = 1 << 20

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


# Children that read as fast as they can, each killed after some milliseconds; says how many of them were
# waiting in the kernel for the mount's answer when they were killed.
_KILLER = """
import os, random, signal, sys, time
path, nobody, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng, waiting = random.Random(1), 0
for _ in range(count):
    pid = os.fork()
    if pid == 0:
        fd = os.open(path, os.O_RDONLY)
        while True:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.pread(fd, 1 << 22, 0)
            os.path.exists(nobody)
    time.sleep(rng.random() * 0.006)
    with open(f"/proc/{pid}/stat") as file:
        waiting += file.read().rpartition(")")[2].split()[0] in "DS"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(waiting)
"""


@pytest.mark.parametrize("spliced_blobs", [0, 1024], ids=["python", "spliced"])
def test_a_thousand_readers_killed_leave_no_gap_of_a_second(mounted: Starter, spliced_blobs: int) -> None:
    content = noise(1, 4 * MIB)
    mount = mounted({"c": {b"f": content}}, passthrough=False, spliced_blobs=spliced_blobs)
    mount.do("watch")
    words = [sys.executable, "-S", "-c", _KILLER, mount.path("c", "f"), mount.path("nobody"), "1000"]
    waiting = int(subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    assert waiting >= 50, "killed while they waited for an answer"
    assert 0 < mount.do("worst_gap")["seconds"] < 1.0
    assert Path(mount.path("c", "f")).read_bytes() == content
    assert (mount.counter("reads_spliced") > 500) == bool(spliced_blobs)
    assert mount.counter("fuse_faults") == 0


# --- A disk that stops ---------------------------------------------------------------------------------

Slow = Callable[..., Mount]


class Gate:
    """While it is closed nothing of the checkpoint "stuck" comes from the disk."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = path
        self._names = names

    def close(self) -> None:
        whole = self._path.with_suffix(".new")
        whole.write_text("\n".join(self._names))
        whole.rename(self._path)

    def open(self) -> None:
        self._path.unlink(missing_ok=True)


STUCK = 130
STUCK_BYTES = 200_000
FREE = noise(1000, 3 * MIB)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Slow, Gate]]:
    """Starts mounts, options as for MountConfig, whose blobs lie on a disk that can stop."""
    store_path, blobs = tmp_path / "store", tmp_path / "store" / "blobs"
    (tmp_path / "mount").mkdir()
    with contextlib.closing(Store.open(str(store_path))) as store:
        files = {f"big-{i}".encode(): noise(i, STUCK_BYTES) for i in range(STUCK)}
        make_checkpoint(store, "stuck", {**files})
        gate = Gate(tmp_path / "gate", [blob.name for blob in blobs.glob("*/*")])
        make_checkpoint(store, "free", {b"f": FREE, b"g": FREE[::-1]})
    blobs.rename(tmp_path / "backing")
    blobs.mkdir()
    disk = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("slow_disk.py")),
            str(tmp_path / "backing"),
            str(blobs),
            str(tmp_path / "gate"),
        ],
        stdout=subprocess.PIPE,
    )
    assert disk.stdout
    assert disk.stdout.readline() == b"ready\n"
    started: list[Mount] = []

    def start(**options: Any) -> Mount:
        made = start_mount(tmp_path, {}, {"attach": ["stuck", "free"], "stop_grace_seconds": 0.5, **options})
        started.append(made)
        return made

    try:
        yield start, gate
    finally:
        gate.open()
        for mount in started:
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


@contextlib.contextmanager
def stuck_reads(mount: Mount, gate: Gate, count: int) -> Iterator[None]:
    """So many readers, each of a file of its own, that wait for the disk; afterwards they get their bytes."""
    gate.close()
    threads, results = in_threads([mount.path("stuck", f"big-{i}") for i in range(count)])
    time.sleep(0.5)
    assert results == [], "the disk stands still"
    try:
        yield
        assert results == []
    finally:
        gate.open()
        for thread in threads:
            thread.join(20)
    assert sorted(results) == sorted(noise(i, STUCK_BYTES) for i in range(count))  # type: ignore[type-var]


class Attempt:
    """Something that may hang, tried in a thread."""

    def __init__(self, what: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=what, daemon=True)
        self._thread.start()

    def done_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


def read_free(mount: Mount, name: str = "f") -> Attempt:
    return Attempt(lambda: Path(mount.path("free", name)).read_bytes())


def test_a_disk_that_stops_delays_no_metadata(slow: tuple[Slow, Gate]) -> None:
    """More stalled reads than pyfuse3 has tasks by default, trio threads, the kernel background requests."""
    start, gate = slow
    mount = start()
    with stuck_reads(mount, gate, 120):
        worst = 0.0
        for i in range(40):
            begun = time.monotonic()
            assert not os.path.exists(mount.path(f"nobody-{i}"))
            os.listdir(mount.root)
            os.stat(mount.path("stuck", f"big-{i}"))
            worst = max(worst, time.monotonic() - begun)
        assert worst < 0.5


def test_a_disk_that_stops_for_one_checkpoint_delays_no_other(slow: tuple[Slow, Gate]) -> None:
    start, gate = slow
    mount = start()
    with stuck_reads(mount, gate, 120):
        for _ in range(3):
            begun = time.monotonic()
            assert Path(mount.path("free", "f")).read_bytes() == FREE
            assert time.monotonic() - begun < 2.0
            forget(mount.path("free", "f"))


def forget(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_without_shares_it_delays_the_others(slow: tuple[Slow, Gate]) -> None:
    start, gate = slow
    mount = start(warm_reads=64, warm_reads_each=64)
    with stuck_reads(mount, gate, 120):
        attempt = read_free(mount)
        assert not attempt.done_within(1.5)
    assert attempt.done_within(10)


@pytest.mark.parametrize("cured", [True, False])
def test_twelve_stalled_reads_stop_no_readahead(slow: tuple[Slow, Gate], cured: bool) -> None:
    start, gate = slow
    mount = start(**({} if cured else {"max_background": 12}))
    with stuck_reads(mount, gate, 14):
        before = mount.reads()
        assert Path(mount.path("free", "f")).read_bytes() == FREE
        requests = mount.reads() - before
    assert (requests <= 3 * len(FREE) // MIB) == cured
    assert cured or requests > 100


def test_with_pyfuse3s_99_tasks_it_stops_stat(slow: tuple[Slow, Gate]) -> None:
    start, gate = slow
    mount = start(max_tasks=99)
    with stuck_reads(mount, gate, 120):
        attempt = Attempt(lambda: os.path.exists(mount.path("nobody")))
        assert not attempt.done_within(1.5)
    assert attempt.done_within(10)


@pytest.mark.parametrize("cured", [True, False])
def test_with_everybodys_forty_threads_it_stops_changes(slow: tuple[Slow, Gate], cured: bool) -> None:
    """A checkpoint gets another name: that is written to the index by a thread."""
    start, gate = slow
    mount = start(warm_reads=64, warm_reads_each=64, threads_of_everybody=not cured)
    ordinal = ordinal_of(mount, "free")
    with stuck_reads(mount, gate, 60):
        attempt = Attempt(lambda: mount.do("rename", ordinal=ordinal, was="free", name="renamed"))
        assert attempt.done_within(1.5) == cured
    assert attempt.done_within(10)
    assert Path(mount.path("renamed", "f")).read_bytes() == FREE


def ordinal_of(mount: Mount, name: str) -> int:
    return os.stat(mount.path(name)).st_ino >> NODE_BITS


def test_a_stop_waits_for_nobody(slow: tuple[Slow, Gate]) -> None:
    """Readers in flight on a disk that does not answer: they get an error, the mount goes."""
    start, gate = slow
    mount = start()
    gate.close()
    threads, results = in_threads([mount.path("stuck", "big-1"), mount.path("stuck", "big-2")])
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
