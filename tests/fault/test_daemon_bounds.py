"""However many files are opened, of however many workers: what is held goes back to what it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import other_versions
import pytest
from daemon_process import until
from open_many import path_of
from survival import Node, checkpoint, every_kind, node, say
from talking import talking

from ckptfs.store import SMALL_FILE_BYTES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

OPEN_MANY = str(Path(__file__).with_name("open_many.py"))

# Files that are registered with the kernel at a time (ckptfs.fuse.modes).
MAX_REGISTERED = 16_384
# A process of open_many.py has so many open at most: RLIMIT_NOFILE is 20,000 on many systems.
PER_PROCESS = 5_000


def numbered_files(folder: Path, *, native: int, packed: int) -> Path:
    """``native`` files that are large enough for a blob of their own, then ``packed`` small ones. Each
    begins as open_many.py expects it; the rest is hole here."""
    for number in range(native + packed):
        path = folder / path_of(number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.write((number + 1).to_bytes(8, "little"))
            if number < native:
                file.truncate(SMALL_FILE_BYTES + 8)
    return folder


class Openers:
    """Processes of open_many.py, which share the files."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def do(self, word: str) -> int:
        """All at once; how many files that were as they should be."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
        answers = [process.stdout.readline().strip() for process in self._processes if process.stdout]
        assert all(answer.isdecimal() for answer in answers), answers
        return sum(int(answer) for answer in answers)


@contextlib.contextmanager
def openers(folder: str, files: int, *, each: int = PER_PROCESS) -> Iterator[Openers]:
    with contextlib.ExitStack() as stack:
        yield Openers(
            [
                stack.enter_context(
                    talking("-S", OPEN_MANY, folder, str(first), str(min(each, files - first)))
                )
                for first in range(0, files, each)
            ]
        )


def all_closed(serving: Node) -> None:
    def none() -> bool:
        counters = serving.counters()
        return not any(
            counters[k] for k in ("files_open_native", "files_open_served", "native_table_used", "open_files")
        )

    until(none, f"all is known to be closed: {serving.counters()}")


def not_grown(before: dict[str, int], after: dict[str, int], *, worker_kib: int) -> None:
    assert after["holder descriptors"] <= before["holder descriptors"], (before, after)
    # Blobs of the store's own bounded cache, threads that came and went.
    assert after["worker descriptors"] <= before["worker descriptors"] + 4, (before, after)
    assert after["holder KiB"] <= before["holder KiB"] + 256, (before, after)
    assert after["worker KiB"] <= before["worker KiB"] + worker_kib, (before, after)


LARGE = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("native", "packed", "at_once"),
    [(300, 300, 200), pytest.param(20_000, 80_000, 5_000, marks=LARGE)],
    ids=["600", "100000"],
)
def test_files_that_are_opened_once_leave_nothing(
    tmp_path: Path, native: int, packed: int, at_once: int
) -> None:
    source = numbered_files(tmp_path / "many", native=native, packed=packed)
    with node(tmp_path) as serving:
        serving.daemon.run("create", "many", str(source), timeout=600)
        serving.daemon.run("attach", "many", "--job", "j")
        folder = serving.path("many")
        everything = native + packed
        # One after the other.
        with openers(folder, everything, each=everything) as all_files:
            assert all_files.do("turn") == everything
            all_closed(serving)
            assert serving.counters()["native_opens"] == native
            first = serving.holds()
            assert all_files.do("turn") == everything
            all_closed(serving)
            second = serving.holds()
        say(f"{everything} files in turn", first=first, second=second)
        not_grown(first, second, worker_kib=1024)
        # Many at once.
        with openers(folder, at_once) as some:
            for _ in range(2):
                assert some.do("open") == at_once
                assert some.do("read") == at_once
                held = serving.holds()
                assert (held["files_open_native"], held["native_table_used"]) == (at_once, at_once)
                assert held["holder descriptors"] <= first["holder descriptors"] + 1
                assert some.do("close") == at_once
                all_closed(serving)
                first, second = second, serving.holds()
            say(f"{at_once} native files at once", open=held, closed=second)
            not_grown(first, second, worker_kib=1024)
            # And over a death.
            assert some.do("open") == at_once
            count = serving.kill_worker()
            serving.wait_ready(count + 1)
            counters = serving.counters()
            assert (counters["files_open_native"], counters["native_table_used"]) == (at_once, at_once)
            assert some.do("read") == at_once
            assert some.do("close") == at_once
            all_closed(serving)
            assert serving.holds()["holder descriptors"] <= first["holder descriptors"]
        assert serving.deaths() == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_open_files_than_can_be_registered_are_served_by_the_daemon(tmp_path: Path) -> None:
    files = 20_000
    source = numbered_files(tmp_path / "many", native=files, packed=0)
    with node(tmp_path) as serving:
        serving.daemon.run("create", "many", str(source), timeout=600)
        serving.daemon.run("attach", "many", "--job", "j")
        with openers(serving.path("many"), files) as all_files:
            assert all_files.do("open") == files
            counters = serving.counters()
            assert counters["files_open_native"] == MAX_REGISTERED
            assert counters["files_open_served"] == files - MAX_REGISTERED
            assert all_files.do("read") == files
            say("20,000 open", **serving.holds())
            count = serving.kill_worker()
            serving.wait_ready(count + 1)
            assert all_files.do("read") == files
            assert serving.counters()["files_open_native"] == MAX_REGISTERED
            assert all_files.do("close") == files
            all_closed(serving)


# --- Files that change their mode ------------------------------------------------------------------------

NO_EXTENSION = "the extension ckptfs.fuse._channel is not here"


@pytest.mark.slow
def test_a_file_that_can_be_native_while_it_is_open_is_so_after_it_was_closed(tmp_path: Path) -> None:
    """The real case is an upgrade: from a version without the extension to one that has it, and back."""
    name = "native/weights"
    content = every_kind()[name]
    without = other_versions.without_the_extension(tmp_path / "without")
    expected = ["the upgrade failed", "are open past the daemon"]
    with node(tmp_path, expected_errors=expected) as serving:
        checkpoint(serving, tmp_path)
        path = serving.path("model", name)
        serving.daemon.run("daemon", "upgrade", "--python", without)
        assert NO_EXTENSION in serving.daemon.client.status().mount_note
        first = os.open(path, os.O_RDONLY)
        assert modes(serving) == (0, 1)
        serving.daemon.run("daemon", "upgrade", "--python", sys.executable)
        assert NO_EXTENSION not in serving.daemon.client.status().mount_note
        second = os.open(path, os.O_RDONLY)
        assert modes(serving) == (0, 1), "in the mode of the handle that is open"
        for fd in (first, second):
            assert os.pread(fd, 1 << 30, 0) == content
            os.close(fd)
        all_closed(serving)
        third = os.open(path, os.O_RDONLY)
        assert modes(serving) == (1, 0), "and native when it was closed"
        assert os.pread(third, 1 << 30, 0) == content
        # The way back is not open before it is closed.
        refused = serving.daemon.run("daemon", "upgrade", "--python", without, code=7)
        assert "1 file(s) are open past the daemon" in refused.stderr
        assert modes(serving) == (1, 0)
        assert os.pread(third, 1 << 30, 0) == content
        os.close(third)
        all_closed(serving)
        serving.daemon.run("daemon", "upgrade", "--python", without)
        assert serving.read("model", name) == content


def modes(serving: Node) -> tuple[int, int]:
    counters = serving.counters()
    return counters["files_open_native"], counters["files_open_served"]


def test_files_that_are_opened_first_while_no_worker_lives(tmp_path: Path) -> None:
    """The next worker finds their OPENs before it finds anything else: what it registers for them then is
    not what its predecessor left."""
    files = 24
    source = numbered_files(tmp_path / "many", native=files, packed=0)
    with node(tmp_path) as serving:
        serving.daemon.run("create", "many", str(source))
        serving.daemon.run("attach", "many", "--job", "j")
        folder = serving.path("many")
        with openers(folder, files, each=1) as each, openers(folder, files) as again:
            assert each.do("turn") == files  # now the kernel knows the names: what it asks next is OPEN
            all_closed(serving)
            count = serving.kill_worker()
            until(lambda n=count: serving.deaths() >= n, "it is dead")
            assert each.do("open") == files
            serving.wait_ready(count + 1)
            assert serving.counters()["files_open_native"] == files
            assert again.do("open") == files, "a second handle names the same backing file"
            assert again.do("read") == each.do("read") == files
            assert again.do("close") == each.do("close") == files
        all_closed(serving)
