"""Attach and detach under the eyes of readers: what appears, what goes, what goes on."""

from __future__ import annotations

import errno
import mmap
import os
import time
from pathlib import Path

import pytest
from mounts import Mount, Starter
from test_mount_tree import getdents, getdents_one_by_one

from ckptfs.testing.checkpoints import Files, noise

MIB = 1 << 20


def soon(condition: object, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def many(count: int) -> dict[str, Files]:
    return {f"ckpt-{i:03}": {b"f": str(i).encode()} for i in range(count)}


def test_a_name_is_there_the_moment_it_is_attached(mounted: Starter) -> None:
    mount = mounted(many(2), attach=[])
    for _ in range(20):
        assert not os.path.exists(mount.path("ckpt-000", "f"))
        mount.attach("ckpt-000")
        assert Path(mount.path("ckpt-000", "f")).read_bytes() == b"0"
        mount.attach()
        soon(lambda: not os.path.exists(mount.path("ckpt-000")), 0.5)


def test_the_root_shows_its_change(mounted: Starter) -> None:
    mount = mounted(many(3), attach=["ckpt-000"])
    before = os.stat(mount.root)
    mount.attach("ckpt-000", "ckpt-002")
    soon(lambda: os.stat(mount.root).st_nlink == 4, 0.5)
    assert os.stat(mount.root).st_mtime_ns > before.st_mtime_ns
    assert sorted(os.listdir(mount.root)) == ["ckpt-000", "ckpt-002"]


def test_a_detached_checkpoint_is_gone_by_name_and_stale_by_descriptor(mounted: Starter) -> None:
    mount = mounted({"ckpt": {b"d/seen": b"1", b"d/unseen": b"2"}})
    folder = os.open(mount.path("ckpt", "d"), os.O_RDONLY | os.O_DIRECTORY)
    os.stat("seen", dir_fd=folder)
    mount.attach()
    soon(lambda: not os.path.exists(mount.path("ckpt")), 0.5)
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path("ckpt", "d", "seen"))
    for name in ("seen", "unseen"):
        with pytest.raises(OSError) as caught:
            os.open(name, os.O_RDONLY, dir_fd=folder)
        assert caught.value.errno == errno.ESTALE
    with pytest.raises(OSError) as caught:
        os.listdir(folder)
    assert caught.value.errno == errno.ESTALE
    mount.attach("ckpt")  # the same numbers again: the old descriptor works again
    assert sorted(os.listdir(folder)) == ["seen", "unseen"]
    os.close(folder)


def test_open_and_mapped_files_go_on_after_the_detach(mounted: Starter) -> None:
    content = noise(5, 9 * MIB)
    mount = mounted({"ckpt": {b"open": content, b"mapped": content + b"!"}})
    ordinal = mount.checkpoints["ckpt"].ordinal
    fd = os.open(mount.path("ckpt", "open"), os.O_RDONLY)
    with open(mount.path("ckpt", "mapped"), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    soon(lambda: mount.do("open_files", ordinal=ordinal) == {"open_files": 2})
    mount.attach()
    soon(lambda: not os.path.exists(mount.path("ckpt")), 0.5)
    assert os.pread(fd, 9 * MIB, 0) == content
    assert mapped[:] == content + b"!"
    assert os.fstat(fd).st_size == 9 * MIB
    # while they are open the engine does not take the bytes away
    assert mount.do("remove", ordinal=ordinal) == {"refused": 2}
    os.close(fd)
    mapped.close()
    soon(lambda: mount.do("open_files", ordinal=ordinal) == {"open_files": 0})
    assert mount.do("remove", ordinal=ordinal) == {}


def test_a_listing_of_the_root_survives_changes(mounted: Starter) -> None:
    """No name twice, none lost that was there all the time, whatever comes and goes meanwhile."""
    everything = many(60)
    lasting = sorted(everything)[::2]
    mount = mounted(everything)
    seen: list[str] = []
    state = True
    # A small buffer, so that the kernel asks again after every few names.
    for count, (name, _, _) in enumerate(getdents_one_by_one(mount.root, 256)):
        seen.append(name.decode())
        if count % 10 == 0:
            state = not state
            mount.attach(*(lasting if state else everything))
    assert len(seen) == len(set(seen))
    assert set(lasting) <= set(seen)


def test_a_listing_goes_on_at_its_offset(mounted: Starter) -> None:
    mount = mounted({"ckpt": {f"d/{i:04}".encode(): b"" for i in range(2000)}} | many(20))
    for path in (mount.path("ckpt", "d"), mount.root):
        everything = getdents(path)
        assert len({offset for _, _, offset in everything}) == len(everything)
        assert getdents(path, buffer_bytes=512) == everything
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        names = [name.decode() for name, _, _ in everything]
        for at in (0, 1, 2, 7, 20, len(everything) - 1):
            os.lseek(fd, everything[at][2], os.SEEK_SET)
            with os.scandir(fd) as entries:
                rest = [entry.name for entry in entries]
            # scandir leaves out the dots and rewinds nothing
            assert rest == [n for n in names[at + 1 :] if n not in (".", "..")]
        os.close(fd)


def test_a_rename_keeps_what_is_open_and_moves_the_name(mounted: Starter) -> None:
    mount = mounted({"old": {b"f": b"content"}})
    inode = os.stat(mount.path("old", "f")).st_ino
    folder = os.open(mount.path("old"), os.O_RDONLY | os.O_DIRECTORY)
    mount.do("rename", ordinal=mount.checkpoints["old"].ordinal, was="old", name="new")
    soon(lambda: not os.path.exists(mount.path("old")), 0.5)
    assert os.stat(mount.path("new", "f")).st_ino == inode
    assert os.listdir(folder) == ["f"]
    os.close(folder)


def test_removed_and_made_again_is_another_inode(mounted: Starter) -> None:
    mount = mounted({"ckpt": {b"f": b"content"}, "twin": {b"f": b"content"}})
    first, second = os.stat(mount.path("ckpt", "f")), os.stat(mount.path("twin", "f"))
    assert first.st_ino != second.st_ino
    mount.attach("twin")
    mount.do("remove", ordinal=mount.checkpoints["ckpt"].ordinal)
    assert Path(mount.path("twin", "f")).read_bytes() == b"content"
    assert not os.path.exists(mount.path("ckpt"))
    assert _faults(mount) == 0


def _faults(mount: Mount) -> int:
    return mount.counter("fuse_faults")
