"""Damage below the mount: EIO for what it hits, said with checkpoint and path, and nothing else changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, clean_up, start_mount

from ckptfs.testing.checkpoints import noise

MIB = 1 << 20


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    checkpoints = {
        "sick": {b"d/big": noise(1, 6 * MIB), b"whole": noise(2, 2 * MIB)},
        "healthy": {b"f": noise(3, 2 * MIB)},
    }
    mount = start_mount(tmp_path, checkpoints, {})
    try:
        yield mount
    finally:
        clean_up(mount)


def blob_of(mount: Mount, size: int) -> Path:
    found = [p for p in Path(mount.root).with_name("store").glob("blobs/*/*") if p.stat().st_size == size]
    assert len(found) == 1
    return found[0]


def failure(path: str, offset: int) -> int | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, 4096, offset)
        return None
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)


def test_a_truncated_blob(mount: Mount) -> None:
    os.truncate(blob_of(mount, 6 * MIB), 4 * MIB)
    path = mount.path("sick", "d", "big")
    for _ in range(50):
        assert failure(path, 5 * MIB) == errno.EIO
    assert failure(path, 0) is None
    assert Path(mount.path("sick", "whole")).read_bytes() == noise(2, 2 * MIB)
    assert Path(mount.path("healthy", "f")).read_bytes() == noise(3, 2 * MIB)
    assert mount.counter("fuse_faults") >= 50
    said = mount.said()
    assert "checkpoint 'sick': blob" in said
    assert "in the middle of d/big (offset 5242880)" in " ".join(said.split())
    assert said.count("a request failed") <= 3


def test_a_lost_blob_is_no_lost_name(mount: Mount) -> None:
    blob_of(mount, 6 * MIB).unlink()
    assert failure(mount.path("sick", "d", "big"), 0) == errno.EIO
    assert Path(mount.path("healthy", "f")).read_bytes() == noise(3, 2 * MIB)


def test_a_damaged_manifest(tmp_path: Path) -> None:
    mount = start_mount(tmp_path, {"sick": {b"f": b"x"}, "healthy": {b"f": b"y"}}, {"attach": []})
    try:
        manifest = tmp_path / "store" / "manifests" / mount.checkpoints["sick"].digest.hex()
        manifest.write_bytes(manifest.read_bytes()[:-1] + b"!")
        mount.attach("sick", "healthy")
        assert sorted(os.listdir(mount.root)) == ["healthy", "sick"]
        with pytest.raises(OSError) as caught:
            os.listdir(mount.path("sick"))
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError) as caught:
            os.stat(mount.path("sick", "f"))
        assert caught.value.errno == errno.EIO
        assert Path(mount.path("healthy", "f")).read_bytes() == b"y"
        assert "a checkpoint cannot be shown" in mount.said()
    finally:
        clean_up(mount)


def test_open_files_cost_no_descriptors(tmp_path: Path) -> None:
    """Six hundred files open at a time: the daemon has a bounded number of its own."""
    files = {f"{i:04}".encode(): noise(i, 70_000) for i in range(600)}
    mount = start_mount(tmp_path, {"ckpt": files}, {})
    try:
        descriptors = f"/proc/{mount.process.pid}/fd"
        opened = [os.open(mount.path("ckpt", name.decode()), os.O_RDONLY) for name in files]
        for fd, content in zip(opened, files.values(), strict=True):
            assert os.pread(fd, 100_000, 0) == content
        assert mount.do("open_files", ordinal=mount.checkpoints["ckpt"].ordinal) == {"open_files": 600}
        assert len(os.listdir(descriptors)) < 300
        for fd in opened:
            os.close(fd)
    finally:
        clean_up(mount)
