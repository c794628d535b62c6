"""The same bytes through every way to read, of every shape that a file can have."""

from __future__ import annotations

import errno
import mmap
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uring
from mounts import Mount, clean_up, start_mount

from ckptfs.testing.checkpoints import Files, noise

MIB = 1 << 20
PAGE = 4096

#: Sizes at the boundaries of pages, requests and chunks.
SIZES = [0, 1, 511, PAGE - 1, PAGE, PAGE + 1, 64 << 10, (64 << 10) + 1, MIB - 1, MIB, MIB + 1]
SIZES += [4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 123]

SHARED = noise(100, 4 * MIB)
ORIGINAL = SHARED + noise(101, 4 * MIB) + noise(102, 300_000)

FILES: Files = {f"size-{n}".encode(): noise(n, n) for n in SIZES}
FILES |= {
    b"original": ORIGINAL,
    # its first and last chunk lie in the original's blob, in another order, the middle in its own
    b"variant": ORIGINAL[4 * MIB : 8 * MIB] + noise(103, 4 * MIB) + SHARED + noise(102, 300_000),
    b"copy": ORIGINAL,
    b"zeros": bytes(10 * MIB + 5),
    b"sparse": noise(104, 4 * MIB) + bytes(8 * MIB) + noise(105, 4 * MIB) + bytes(4 * MIB) + b"end",
    b"same-twice": SHARED + SHARED + SHARED[:MIB],
}


@pytest.fixture(scope="module", params=[True, False], ids=["native", "daemon"])
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Both ways: whole files past the daemon, and all files through it."""
    options = {"passthrough": request.param}
    mount = start_mount(tmp_path_factory.mktemp("reads"), {"ckpt": FILES}, options)
    try:
        yield mount
    finally:
        clean_up(mount)


def by_read(path: str) -> bytes:
    parts = []
    fd = os.open(path, os.O_RDONLY)
    while part := os.read(fd, 100_003):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)


def by_pread_backwards(path: str) -> bytes:
    size = os.stat(path).st_size
    result = bytearray(size)
    fd = os.open(path, os.O_RDONLY)
    step = 777_777
    for offset in reversed(range(0, size, step)):
        part = os.pread(fd, step, offset)
        result[offset : offset + len(part)] = part
    assert os.pread(fd, 10, size) == b""
    assert os.pread(fd, 10, size + 5 * MIB) == b""
    os.close(fd)
    return bytes(result)


def by_mmap(path: str) -> bytes:
    if not os.stat(path).st_size:
        return b""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return mapped[:]


def by_private_mmap_in_random_order(path: str) -> bytes:
    size = os.stat(path).st_size
    if not size:
        return b""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    pages = list(range(0, size, PAGE))
    random.Random(7).shuffle(pages)
    result = bytearray(size)
    for at in pages:
        result[at : at + PAGE] = mapped[at : at + PAGE]
    mapped.close()
    return bytes(result)


def by_sendfile(path: str) -> bytes:
    size = os.stat(path).st_size
    ours, theirs = socket.socketpair()
    received = bytearray()

    def receive() -> None:
        while part := theirs.recv(1 << 20):
            received.extend(part)

    thread = threading.Thread(target=receive)
    thread.start()
    with open(path, "rb") as file:
        offset = 0
        while offset < size:
            offset += os.sendfile(ours.fileno(), file.fileno(), offset, size - offset)
    ours.close()
    thread.join()
    theirs.close()
    return bytes(received)


def by_splice(path: str) -> bytes:
    return subprocess.check_output([sys.executable, "-c", _SPLICE, path])


_SPLICE = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
while os.splice(fd, 1, 1 << 16): pass
"""


def by_direct_io(path: str) -> bytes:
    parts = []
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, MIB)
    while got := os.readv(fd, [buffer]):
        parts.append(buffer[:got])
    os.close(fd)
    return b"".join(parts)


def by_direct_nonblocking_pread(path: str) -> bytes:
    """As the Run:ai streamer opens files."""
    size = os.stat(path).st_size
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK)
    buffer = mmap.mmap(-1, 2 * MIB)
    parts = []
    for offset in range(0, size, 2 * MIB):
        parts.append(buffer[: os.preadv(fd, [buffer], offset)])
    os.close(fd)
    return b"".join(parts)


def by_io_uring(path: str) -> bytes:
    return uring.read_all(path, 256 << 10)


def by_cp(path: str) -> bytes:
    return subprocess.check_output(["cat", path])


WAYS: list[Callable[[str], bytes]] = [
    by_read,
    by_pread_backwards,
    by_mmap,
    by_private_mmap_in_random_order,
    by_sendfile,
    by_splice,
    by_direct_io,
    by_direct_nonblocking_pread,
    by_io_uring,
    by_cp,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
def test_the_same_bytes(mount: Mount, way: Callable[[str], bytes], cached: bool) -> None:
    """Cold: the mount's page cache is dropped first, so that the requests really reach the daemon."""
    for name, content in FILES.items():
        path = mount.path("ckpt", name.decode())
        if not cached:
            drop_cached_pages(path)
        assert way(path) == content, name
    assert mount.counter("fuse_faults") == 0


def drop_cached_pages(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_blobs_that_are_not_cached_are_read_in_threads(
    mount: Mount, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Path(mount.root).with_name("store")
    before = mount.counter("reads_in_thread")
    for blob in store.glob("blobs/*/*"):
        drop_cached_pages(str(blob))
    for name, content in FILES.items():
        path = mount.path("ckpt", name.decode())
        drop_cached_pages(path)
        assert by_read(path) == content
    assert mount.counter("reads_in_thread") > before
    assert mount.counter("fuse_faults") == 0


def test_large_requests(mount: Mount) -> None:
    """The kernel asks for a megabyte at a time, not for its default of 128 KiB."""
    path = mount.path("ckpt", f"size-{9 * MIB + 123}")
    drop_cached_pages(path)
    before = mount.reads()
    by_read(path)
    assert mount.reads() - before <= 14


def test_a_second_read_does_not_come_to_the_daemon(mount: Mount) -> None:
    path = mount.path("ckpt", "original")
    by_read(path)
    before = mount.read_bytes()
    assert by_read(path) == ORIGINAL
    assert by_mmap(path) == ORIGINAL
    assert mount.read_bytes() == before


def test_many_readers_at_once_get_their_own_bytes(mount: Mount) -> None:
    names = ["original", "variant", "copy", "sparse", "same-twice"]
    wrong: list[str] = []

    def reader(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            name = rng.choice(names)
            content = FILES[name.encode()]
            assert isinstance(content, bytes)
            fd = os.open(mount.path("ckpt", name), os.O_RDONLY)
            try:
                offset = rng.randrange(len(content))
                length = rng.choice([1, 4096, 70_000, 3 * MIB])
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
                if os.pread(fd, length, offset) != content[offset : offset + length]:
                    wrong.append(f"{name} {offset} {length}")
            finally:
                os.close(fd)

    threads = [threading.Thread(target=reader, args=[seed]) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_holes_and_data(mount: Mount) -> None:
    """lseek(SEEK_DATA, SEEK_HOLE) takes a file for all data: true, if not the whole truth."""
    fd = os.open(mount.path("ckpt", "sparse"), os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        assert os.lseek(fd, 5 * MIB, os.SEEK_DATA) == 5 * MIB
        assert os.lseek(fd, 0, os.SEEK_HOLE) == size
        with pytest.raises(OSError) as caught:
            os.lseek(fd, size, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
    finally:
        os.close(fd)


def test_copies_of_tools_are_equal(mount: Mount, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", mount.path("ckpt"), tmp_path / "cp"], check=True)
    for name, content in FILES.items():
        assert (tmp_path / "cp" / name.decode()).read_bytes() == content
    assert subprocess.run(["diff", "-r", mount.path("ckpt"), tmp_path / "cp"], check=False).returncode == 0
    # a sparse file stays sparse in a copy
    assert (tmp_path / "cp" / "zeros").stat().st_blocks * 512 < MIB
