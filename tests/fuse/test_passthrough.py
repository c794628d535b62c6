"""Files that are read past the daemon: real mounts, and what reached Python counted."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from holding import Served, eventually, held, reader, result, served_alone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting with passthrough needs root")

CONTENT = os.urandom(3_000_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@contextlib.contextmanager
def native(folder: Path, files: dict[str, bytes]) -> Iterator[Served]:
    with served_alone(folder, files) as (served, said):
        if "does not offer passthrough" in said:
            pytest.skip(said)
        assert said == "native"
        yield served


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def is_used(path: Path) -> bool:
    """Does anybody but us have the file open, a mapping or the kernel itself included? Only of a file
    that nobody has can we get a lease to write."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    else:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    finally:
        os.close(fd)


def test_no_read_of_a_native_file_reaches_python(tmp_path: Path) -> None:
    with native(tmp_path, {"a": CONTENT}) as served:
        assert read(served.path("a")) == CONTENT
        fd = os.open(served.path("a"), os.O_RDONLY)
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == CONTENT
        into = os.memfd_create("into")
        assert os.sendfile(into, fd, 0, len(CONTENT)) == len(CONTENT)
        assert os.pread(into, 1 << 30, 0) == CONTENT
        os.close(fd)
        os.close(into)
        direct = os.open(served.path("a"), os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 65536) as buffer:
            assert os.preadv(direct, [buffer], 65536) == 65536
            assert buffer[:] == CONTENT[65536:131072]
        os.close(direct)
        eventually(lambda: served.stats()["releases"] == 3)
        stats = served.stats()
        assert stats["reads"] == 0
        assert stats["granted"] == stats["opens"] == 3


def test_other_files_are_served_as_ever(tmp_path: Path) -> None:
    with native(tmp_path, {"a": CONTENT, "served": CONTENT}) as served:
        assert read(served.path("served")) == CONTENT
        assert read(served.path("a")) == CONTENT
        assert served.stats()["reads"] > 0
        eventually(lambda: served.stats()["granted"] == 1)
        assert sorted(os.listdir(served.root)) == ["a", "served"], "OPENDIR goes the same way as OPEN"


def test_a_file_that_becomes_whole_while_open_is_native_after_its_last_handle_closed(tmp_path: Path) -> None:
    with native(tmp_path, {"late": CONTENT}) as served:
        first = os.open(served.path("late"), os.O_RDONLY)
        (served.directory / ".whole").touch()
        assert read(served.path("late")) == CONTENT, "not EIO: the kernel allows one mode at a time"
        eventually(lambda: served.stats()["releases"] == 1)
        assert served.stats()["granted"] == 0
        assert os.pread(first, 1 << 30, 0) == CONTENT
        os.close(first)
        eventually(lambda: served.stats()["files_open_served"] == 0)
        reads = served.stats()["reads"]
        assert read(served.path("late")) == CONTENT
        eventually(lambda: served.stats()["granted"] == 1)
        assert served.stats()["reads"] == reads


def test_a_file_that_is_native_no_more_stays_so_until_its_last_handle_closed(tmp_path: Path) -> None:
    with native(tmp_path, {"late": CONTENT}) as served:
        (served.directory / ".whole").touch()
        first = os.open(served.path("late"), os.O_RDONLY)
        (served.directory / ".whole").unlink()
        assert read(served.path("late")) == CONTENT
        assert served.stats()["reads"] == 0
        os.close(first)
        eventually(lambda: served.stats()["files_open_native"] == 0)
        assert read(served.path("late")) == CONTENT
        assert served.stats()["reads"] > 0


def test_opens_at_the_same_moment_share_one_backing_file(tmp_path: Path) -> None:
    with (
        native(tmp_path, {"a": CONTENT, "served": CONTENT}) as served,
        reader("16", served.root, str(served.directory)) as readers,
    ):
        eventually(lambda: served.stats()["opens"] > 300)
        report = result(readers)
        assert report["errors"] == []
        assert report["wrong"] == report["stuck"] == 0
        eventually(lambda: served.stats()["files_open_native"] == served.stats()["files_open_served"] == 0)


def test_nothing_stays_registered_when_many_files_were_opened_once(tmp_path: Path) -> None:
    files = {f"f{n:04}": b"%d" % n for n in range(1500)}
    with native(tmp_path, files) as served:
        for name, content in files.items():
            assert read(served.path(name)) == content
        eventually(lambda: served.stats()["releases"] == len(files))
        eventually(lambda: served.stats()["files_open_native"] == 0)
        assert served.stats()["granted"] == len(files)
        used = [name for name in files if is_used(served.directory / name)]
        assert used == [], "the kernel has let go of every backing file"


def test_a_mapping_outlives_its_handle(tmp_path: Path) -> None:
    """The kernel maps the backing file itself: RELEASE comes at close() although pages are still mapped.
    So "no open handle" does not mean "nobody reads it": only the lease knows."""
    with native(tmp_path, {"a": CONTENT}) as served:
        with reader("map", served.path("a")) as mapped:
            assert mapped.stdout
            assert mapped.stdin
            assert mapped.stdout.readline() == '"open"\n'
            eventually(lambda: served.stats()["releases"] == 1)
            eventually(lambda: served.stats()["files_open_native"] == 0)
            assert is_used(served.directory / "a")
            (served.directory / "a").unlink()
            mapped.stdin.write("\n")
            mapped.stdin.flush()
            assert mapped.stdout.readline() == f'"{DIGEST}"\n'
        assert served.stats()["reads"] == 0


def test_what_is_open_goes_on_without_any_daemon(tmp_path: Path) -> None:
    with native(tmp_path, {"a": CONTENT, "b": CONTENT}) as served:
        fd = os.open(served.path("a"), os.O_RDONLY)
        with reader("map", served.path("b")) as mapped:
            assert mapped.stdout
            assert mapped.stdin
            assert mapped.stdout.readline() == '"open"\n'
            served.process.send_signal(signal.SIGKILL)
            served.process.wait()
            assert os.pread(fd, 1 << 30, 0) == CONTENT
            mapped.stdin.write("\n")
            mapped.stdin.flush()
            assert mapped.stdout.readline() == f'"{DIGEST}"\n'
        os.close(fd)
        with pytest.raises(OSError) as gone:
            os.open(served.path("a"), os.O_RDONLY)
        assert gone.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def test_the_pages_are_in_memory_once(tmp_path: Path) -> None:
    with native(tmp_path, {"late": CONTENT}) as served, open(served.directory / "late", "rb") as below:
        with open(served.path("late"), "rb") as handle:
            handle.read()
            assert cached_bytes(handle.fileno()) >= len(CONTENT), "served: the mount has its own pages"
        (served.directory / ".whole").touch()
        eventually(lambda: served.stats()["files_open_served"] == 0)
        with open(served.path("late"), "rb") as handle:
            os.fsync(below.fileno())  # dirty pages are not dropped
            os.posix_fadvise(below.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert cached_bytes(below.fileno()) < len(CONTENT) // 2
            assert cached_bytes(handle.fileno()) == cached_bytes(below.fileno()), "the same pages"
            handle.read()
            assert cached_bytes(handle.fileno()) == cached_bytes(below.fileno()) >= len(CONTENT)


def cached_bytes(fd: int) -> int:
    """How much of the file is in the page cache (mincore(2) of a mapping)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        pages = ctypes.create_string_buffer(-(-len(mapping) // mmap.PAGESIZE))
        assert libc.mincore(address, len(mapping), pages) == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in pages.raw) * mmap.PAGESIZE


# --- Where it cannot work --------------------------------------------------------------------------------


def served_and_said(folder: Path, **arguments: object) -> str:
    with served_alone(folder, {"a": CONTENT}, **arguments) as (served, said):  # type: ignore[arg-type]
        assert read(served.path("a")) == CONTENT
        assert served.stats()["reads"] > 0
        return said


def test_without_the_extension_everything_is_served(tmp_path: Path) -> None:
    said = served_and_said(tmp_path, prelude="sys.modules['ckptfs.fuse._channel'] = None")
    assert said.startswith("the extension ckptfs.fuse._channel is not here")


def test_without_cap_sys_admin_everything_is_served(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if not os.stat(folder).st_mode & 0o001:
            folder.chmod(0o711)
    (tmp_path / "files").mkdir()
    os.chown(tmp_path / "files", 65534, 65534)
    said = served_and_said(tmp_path, environment={"MIRROR_LATER_USER": "65534"})
    assert "CAP_SYS_ADMIN" in said


def test_on_a_stacked_file_system_everything_is_served(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "files"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    tried = subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "overlay", str(tmp_path / "files")], capture_output=True
    )
    if tried.returncode:
        pytest.skip(f"no overlay here: {tried.stderr.decode()}")
    try:
        assert "stacked on another" in served_and_said(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "files")], check=True)


def test_an_extension_without_effect_is_noticed_at_the_first_close(tmp_path: Path) -> None:
    """A pyfuse3 that does not search for the symbol among all libraries, as when libfuse is part of it."""
    prelude = (
        "import ckptfs.fuse; sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND); "
        "import pyfuse3; sys.setdlopenflags(os.RTLD_NOW)"
    )
    with served_alone(tmp_path, {"a": CONTENT, "b": CONTENT}, prelude=prelude) as (served, said):
        assert said == "native", "it looked well"
        for _ in range(3):
            assert read(served.path("a")) == CONTENT
            assert read(served.path("b")) == CONTENT
        eventually(lambda: served.stats()["releases"] == 6)
        eventually(lambda: served.stats()["files_open_native"] == 0)
        assert served.stats()["granted"] == 0
        assert "pyfuse3 answers OPEN without the extension" in served.said()


def test_a_worker_without_privileges_has_its_files_registered_by_the_holder(tmp_path: Path) -> None:
    with held(tmp_path, {"a": CONTENT}) as served:
        status = Path(f"/proc/{served.worker_pid()}/status").read_text()
        effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        assert not int(effective, 16) >> 21 & 1, "it has CAP_SYS_ADMIN"
        assert read(served.path("a")) == CONTENT
        eventually(lambda: served.stats()["files_open_native"] == 0)
        eventually(lambda: served.stats()["granted"] == 1)  # counted after the answer
        assert served.stats()["reads"] == 0
        eventually(lambda: not is_used(served.directory / "a"))
