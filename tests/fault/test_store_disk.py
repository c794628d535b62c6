"""A full disk, a disk without inodes, and one that fails: on a real small file system, or injected where
the real thing happens (strace)."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import store_child
from store_child import BASE, CHUNK_BYTES, KEPT, NEW

from ckptfs.errors import StoreFull
from ckptfs.store import Store
from ckptfs.testing.audit import audit
from ckptfs.testing.bulk import fill as fill_index
from ckptfs.testing.disks import MakeDisk
from ckptfs.testing.writing import Writing, read_back, write

MB = 1_000_000
CHILD = str(Path(store_child.__file__))

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a loop file system needs root")


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def fill(store: Store, name: str, size: int, chunk_bytes: int = 500_000) -> Writing:
    """Put until the disk is full."""
    writing = Writing(store, name, {b"f": noise(99, size)}, chunk_bytes=chunk_bytes)
    with pytest.raises(StoreFull, match="the store's disk is full"):
        while writing.put_some(4):
            writing.draft.commit()
    return writing


def test_a_full_disk_loses_nothing_and_the_store_goes_on(disk: MakeDisk) -> None:
    store = Store.open(disk(100 * MB))
    old = write(store, "old", {b"f": noise(1, 20 * MB), b"s": b"small"}, chunk_bytes=500_000)
    free = store.disk_free_bytes()
    big = fill(store, "big", 120 * MB)
    assert store.disk_free_bytes() < 5 * MB
    assert read_back(store, old) == {b"f": noise(1, 20 * MB), b"s": b"small"}
    big.draft.fail("the disk is full", "store_full", keep=False)
    assert audit(store) == []
    assert abs(store.disk_free_bytes() - free) < MB
    new = write(store, "new", {b"f": noise(2, 10 * MB)}, chunk_bytes=500_000)
    assert read_back(store, new) == {b"f": noise(2, 10 * MB)}
    store.close()
    store = Store.open(store.path)
    assert audit(store) == []
    store.close()


def test_a_kept_creation_goes_on_when_there_is_room(disk: MakeDisk) -> None:
    store = Store.open(disk(100 * MB))
    old = write(store, "old", {b"f": noise(1, 40 * MB)}, chunk_bytes=500_000)
    contents = {b"f": noise(2, 60 * MB), b"s": noise(3, 10_000)}
    writing = Writing(store, "big", contents, chunk_bytes=500_000)
    with pytest.raises(StoreFull):
        while writing.put_some(4):
            writing.draft.commit()
    writing.draft.fail("the disk is full", "store_full", keep=True)
    assert audit(store) == []
    kept = store.drafts()[0].bytes_kept
    assert kept > 20 * MB
    store.remove(old.ordinal)
    again = Writing(store, "big", contents, chunk_bytes=500_000)
    assert again.draft.bytes_known == kept
    assert read_back(store, again.finish()) == contents
    assert audit(store) == []
    store.close()


def test_removal_works_on_a_disk_without_a_free_block(disk: MakeDisk) -> None:
    """The index has room of its own behind its end."""
    root = disk(60 * MB)
    store = Store.open(root)
    many = {b"f%04d" % n: noise(n, 3000) for n in range(3000)}
    old = write(store, "old", many)
    other = write(store, "other", {b"f": noise(1, 5 * MB)}, chunk_bytes=500_000)
    with open(f"{root}/ballast", "wb", buffering=0) as file, pytest.raises(OSError) as raised:
        for size in (1 << 20, 4096):  # down to the last block
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                if size == 4096:
                    raise
    assert raised.value.errno == errno.ENOSPC
    assert store.disk_free_bytes() < 4096
    report = store.remove(old.ordinal)
    assert report.bytes_freed == 9 * MB
    assert store.disk_free_bytes() > 9 * MB  # the index has taken its room again
    assert audit(store) == []
    store.close()
    # and a start on a full disk
    with open(f"{root}/ballast2", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(1 << 20))
    store = Store.open(root)
    assert read_back(store, other) == {b"f": noise(1, 5 * MB)}
    store.remove(other.ordinal)
    assert audit(store) == []
    store.close()


@pytest.mark.slow
def test_a_removal_from_a_large_index_takes_the_room_that_there_is(disk: MakeDisk) -> None:
    """Rows of one checkpoint lie between those of another: a removal changes nearly every page."""
    root = disk(200 * MB)
    keep = fill_index(root, 400_000, "keep")
    gone = fill_index(root, 50_000, "gone")
    store = Store.open(root)
    with open(f"{root}/ballast", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    assert store.disk_free_bytes() < 4096
    assert store.remove(gone.ordinal).chunks_freed == 50_000
    assert store.chunk_count() == 400_000
    assert store.checkpoints() == [keep]
    store.close()


def test_many_small_files_fill_the_disk(disk: MakeDisk) -> None:
    store = Store.open(disk(40 * MB))
    writing = Writing(store, "many", {b"f%05d" % n: noise(n, 3000) for n in range(12_000)})
    with pytest.raises(StoreFull):
        while writing.put_some(1000):
            writing.draft.commit()
    writing.draft.fail("the disk is full", "store_full", keep=False)
    assert audit(store) == []
    assert (store.chunk_count(), store.physical_bytes()) == (0, 0)
    store.close()


def test_a_disk_without_inodes(disk: MakeDisk) -> None:
    store = Store.open(disk(100 * MB, "ext4", "-N", "400"))
    contents = {b"f%03d" % n: noise(n, 70_000) for n in range(400)}
    writing = Writing(store, "many", contents)
    with pytest.raises(StoreFull):
        while writing.put_some(10):
            writing.draft.commit()
    writing.draft.fail("no inodes", "store_full", keep=False)
    assert audit(store) == []
    write(store, "few", {b"f": contents[b"f000"]})
    assert audit(store) == []
    store.close()


# --- A disk that fails --------------------------------------------------------------------------------


def calls(path: str, what: str, log: Path, call: str) -> int:
    """How often an undisturbed run makes a call."""
    command = ["strace", "-e", f"trace={call}", "-o", str(log), sys.executable, CHILD, path, what]
    subprocess.run(command, check=True, capture_output=True)
    return len(re.findall(rf"^{call}\(", log.read_text(), re.M))


@pytest.mark.parametrize(
    ("call", "error"), [("fdatasync", "EIO"), ("pwrite64", "EIO"), ("fsync", "EIO"), ("fdatasync", "ENOSPC")]
)
def test_a_failing_call_fails_the_creation_and_nothing_else(tmp_path: Path, call: str, error: str) -> None:
    prepared = str(tmp_path / "prepared")
    store = Store.open(prepared)
    store_child.prepare(store)
    store.close()
    counting = str(tmp_path / "counting")
    subprocess.run(["cp", "-a", "--sparse=always", prepared, counting], check=True)
    number = calls(counting, "create", tmp_path / "log", call)
    assert number >= 4
    for when in sorted({number // 4 + 1, number // 2, 3 * number // 4, number - 2}):
        path = str(tmp_path / "store")
        subprocess.run(["cp", "-a", "--sparse=always", prepared, path], check=True)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
        done = subprocess.run(
            ["strace", *inject, "-o", str(tmp_path / "log"), sys.executable, CHILD, path, "create_and_fail"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "(INJECTED)" in (tmp_path / "log").read_text()
        assert done.returncode == 0, (when, done.stderr)
        assert done.stdout.splitlines()[1] in ("StoreError", "StoreFull", "published"), done.stdout
        store = Store.open(path)
        assert audit(store) == []
        assert read_back(store, store.by_name("base")) == BASE  # type: ignore[arg-type]
        assert read_back(store, store.by_name("kept")) == KEPT  # type: ignore[arg-type]
        if store.by_name("new") is None:
            Writing(store, "new", NEW, chunk_bytes=CHUNK_BYTES).finish()
        assert read_back(store, store.by_name("new")) == NEW  # type: ignore[arg-type]
        assert audit(store) == []
        store.close()
        shutil.rmtree(path)


def test_bytes_that_did_not_reach_the_disk_are_never_claimed(tmp_path: Path) -> None:
    """After a failed fdatasync the kernel may have dropped the pages: trying again would claim success."""
    path = str(tmp_path / "store")
    Store.open(path).close()
    # the first fdatasync is the index's, for the beginning; the log proves that the second is a blob's
    log = tmp_path / "log"
    inject = ["-y", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2"]
    done = subprocess.run(
        ["strace", *inject, "-o", str(log), sys.executable, CHILD, path, "create_and_fail"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"fdatasync\(\d+<.*/blobs/.*INJECTED", log.read_text()), log.read_text()
    assert done.stdout.splitlines() == ["begun", "StoreError", "StoreError", "done"], done
    store = Store.open(path)
    assert audit(store) == []
    assert store.chunk_count() == 0
    store.close()
