"""Reads that the extension answers without Python: the same bytes, nothing waits, nothing stays open."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from pathlib import Path

import pytest
from mounts import Mount, Starter, clean_up, start_mount

from ckptfs.fuse import channel
from ckptfs.testing.checkpoints import Files, noise
from ckptfs.testing.maker import Tensor, safetensors

pytestmark = pytest.mark.skipif(bool(channel.missing()), reason=channel.missing() or "-")

MIB = 1 << 20


def model(names: list[str], pad: int) -> bytes:
    """Tensors of an odd size, behind a header of another length: in two models they lie at offsets that
    no page boundary has to do with."""
    tensors = {
        f"layer.{name}{'.' * pad}": Tensor("U8", (700_001,), noise(ord(name), 700_001)) for name in names
    }
    return safetensors(tensors)


BASE = model(list("abcdefgh"), 0)
MERGED = model(list("hgxfedybca"), 3)
FILES: Files = {
    b"base": BASE,
    b"merged": MERGED,
    b"sparse": noise(5, 4 * MIB) + bytes(5 * MIB) + noise(6, 4 * MIB) + b"end",
    b"big": noise(7, 20 * MIB + 123),
    b"small": b"small",
}


def forget(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def python_reads(mount: Mount) -> int:
    return mount.counter("reads_inline") + mount.counter("reads_in_thread")


@pytest.fixture
def mount(mounted: Starter) -> Mount:
    return mounted({"c": FILES}, passthrough=False)


def descriptors(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.process.pid}/fd"))


def test_every_range_of_every_shape_has_its_bytes(mount: Mount) -> None:
    rng = random.Random(1)
    for name, content in FILES.items():
        assert isinstance(content, bytes)
        path = mount.path("c", name.decode())
        fd = os.open(path, os.O_RDONLY)
        try:
            for _ in range(60):
                offset, length = rng.randrange(len(content)), rng.choice([1, 4096, 70_000, MIB, 3 * MIB])
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, length, offset) == content[offset : offset + length], (
                    name,
                    offset,
                    length,
                )
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert Path(path).read_bytes() == content
        finally:
            os.close(fd)
    assert mount.counter("reads_spliced") > 200
    assert mount.counter("fuse_faults") == 0


def test_a_sequential_read_of_cached_bytes_costs_python_one_request(mount: Mount) -> None:
    path = mount.path("c", "big")
    before = python_reads(mount), mount.counter("reads_spliced")
    with open(path, "rb", buffering=0) as file:
        assert file.read(MIB) == FILES[b"big"][:MIB]  # type: ignore[index]
        in_python = python_reads(mount) - before[0]
        while file.read(MIB):
            pass
        assert python_reads(mount) - before[0] == in_python
    assert in_python <= 8, "the first window of readahead"
    assert mount.counter("reads_spliced") - before[1] >= 12


def test_switched_off_python_reads(mounted: Starter) -> None:
    mount = mounted({"c": {b"big": FILES[b"big"]}}, passthrough=False, spliced_blobs=0)
    assert Path(mount.path("c", "big")).read_bytes() == FILES[b"big"]
    assert mount.counter("reads_spliced") == 0
    assert python_reads(mount) >= 20


def test_what_the_disk_has_is_pythons(mount: Mount) -> None:
    """Dropped from the page cache below the mount while the extension is at it."""
    path, content = mount.path("c", "big"), FILES[b"big"]
    assert isinstance(content, bytes)
    with open(path, "rb", buffering=0) as file:
        file.read(4096)
        assert mount.counter("spliced_files") == 1
        for blob in Path(mount.root).with_name("store").glob("blobs/*/*"):
            fd = os.open(blob, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = mount.counter("reads_in_thread")
        for offset in range(0, len(content), MIB):
            assert os.pread(file.fileno(), MIB, offset) == content[offset : offset + MIB]
        assert mount.counter("reads_in_thread") > before


def test_a_blob_cut_short_is_an_error_not_zeros(mount: Mount) -> None:
    path = mount.path("c", "big")
    with open(path, "rb", buffering=0) as file:
        file.read(4096)
        assert mount.counter("spliced_files") == 1
        for blob in Path(mount.root).with_name("store").glob("blobs/*/*"):
            if blob.stat().st_size == 20 * MIB + 123:
                os.truncate(blob, 10 * MIB)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output") as caught:
                os.pread(file.fileno(), 4096, 12 * MIB)
            assert caught.value.errno == errno.EIO
        assert os.pread(file.fileno(), 4096, 5 * MIB) == FILES[b"big"][5 * MIB :][:4096]  # type: ignore[index]


def test_a_closed_file_is_let_go(mount: Mount) -> None:
    before = None
    for _ in range(50):
        with open(mount.path("c", "merged"), "rb") as file:
            file.read(4096)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read(MIB)
        deadline = time.monotonic() + 5
        while mount.counter("spliced_files") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert mount.counter("spliced_files") == 0
        before = before or descriptors(mount)
    assert descriptors(mount) <= before
    maps = Path(f"/proc/{mount.process.pid}/maps").read_text()
    assert "/blobs/" not in maps


def test_more_files_than_may_be_kept(mounted: Starter) -> None:
    contents = {f"f{i}".encode(): noise(i, 3 * MIB) for i in range(12)}
    mount = mounted({"c": dict(contents)}, passthrough=False, spliced_blobs=4)
    files = {name: os.open(mount.path("c", name.decode()), os.O_RDONLY) for name in contents}
    rng = random.Random(2)
    for _ in range(300):
        name = rng.choice(list(contents))
        offset = rng.randrange(3 * MIB)
        os.posix_fadvise(files[name], 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(files[name], 50_000, offset) == contents[name][offset : offset + 50_000]
    assert mount.counter("spliced_files") <= 4
    assert mount.counter("reads_spliced") > 50
    for fd in files.values():
        os.close(fd)


def test_a_removed_checkpoint_gives_its_space_back(mount: Mount) -> None:
    """Nothing of ours still holds the blobs: removing asks for a write lease."""
    with open(mount.path("c", "big"), "rb", buffering=0) as file:
        file.read(MIB)
        assert mount.do("remove", ordinal=mount.checkpoints["c"].ordinal)["refused"] == 1
    deadline = time.monotonic() + 5
    while mount.do("open_files", ordinal=mount.checkpoints["c"].ordinal)["open_files"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mount.attach()
    mount.do("remove", ordinal=mount.checkpoints["c"].ordinal)
    mount.do("settle")
    left = [
        p for p in Path(mount.root).with_name("store").glob("blobs/*/*") if p.stat().st_blocks * 512 > MIB
    ]
    assert left == []


def test_readers_do_not_keep_the_loop_to_themselves(mount: Mount) -> None:
    """Four readers keep requests waiting at every moment; names are answered in between."""
    stop = threading.Event()

    def read() -> None:
        fd = os.open(mount.path("c", "big"), os.O_RDONLY)
        while not stop.is_set():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, 20 * MIB, MIB):
                os.pread(fd, MIB, offset)
        os.close(fd)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        worst = 0.0
        for i in range(100):
            start = time.monotonic()
            assert not os.path.exists(mount.path(f"nobody-{i}"))
            mount.do("counters")  # a task of the loop that is no request of the kernel's
            worst = max(worst, time.monotonic() - start)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert worst < 0.5
    assert mount.counter("reads_spliced") > 100


def test_a_stop_while_it_reads(tmp_path: Path) -> None:
    mount = start_mount(tmp_path, {"c": FILES}, {"passthrough": False})
    try:
        fd = os.open(mount.path("c", "big"), os.O_RDONLY)
        os.pread(fd, MIB, 0)
        assert mount.counter("spliced_files") == 1
        assert mount.stop() == 0
        os.close(fd)
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        clean_up(mount)
