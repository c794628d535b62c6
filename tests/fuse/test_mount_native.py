"""Whole files are read past the daemon; what that must not break."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

from mounts import Mount, Starter

from ckptfs.testing.checkpoints import noise

MIB = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def reads(mount: Mount) -> int:
    return mount.reads()


def test_a_whole_file_costs_the_daemon_no_read(mounted: Starter) -> None:
    content = noise(1, 6 * MIB + 5)
    mount = mounted({"c": {b"f": content}})
    assert "through the daemon" not in mount.notes
    assert Path(mount.path("c", "f")).read_bytes() == content
    with open(mount.path("c", "f"), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content
    assert reads(mount) == 0
    assert mount.counter("native_opens") == 2


def test_what_is_not_whole_goes_through_the_daemon(mounted: Starter) -> None:
    shared, other = noise(1, 4 * MIB), noise(2, 4 * MIB)
    files = {b"first": shared + noise(3, 4 * MIB), b"second": other + shared, b"small": b"in a pack"}
    mount = mounted({"c": files})
    for name, content in files.items():
        before = reads(mount)
        assert Path(mount.path("c", name.decode())).read_bytes() == content
        assert (reads(mount) > before) == (name != b"first")


def test_switched_off(mounted: Starter) -> None:
    mount = mounted({"c": {b"f": noise(1, MIB)}}, passthrough=False)
    assert "reads go through the daemon: passthrough is switched off" in mount.notes
    assert Path(mount.path("c", "f")).read_bytes() == noise(1, MIB)
    assert reads(mount) > 0


def test_what_is_mapped_is_not_punched(mounted: Starter, tmp_path: Path) -> None:
    """A mapping lives on when its handle is closed, and the daemon hears only of the handle."""
    kept, dead = noise(1, 4 * MIB), noise(2, 4 * MIB)
    mount = mounted({"a": {b"f": kept + dead}, "b": {b"g": kept + noise(3, 4 * MIB)}})
    fd = os.open(mount.path("a", "f"), os.O_RDONLY)
    # Not the mmap module's: that keeps a descriptor.
    address = libc.mmap(None, 8 * MIB, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    ordinal = mount.checkpoints["a"].ordinal
    mount.attach("b")
    deadline = time.monotonic() + 10
    while mount.do("open_files", ordinal=ordinal)["open_files"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    blobs = next(path.parents[1] for path in tmp_path.rglob("blobs/*/*"))
    before = on_disk(blobs)
    assert mount.do("remove", ordinal=ordinal) == {}
    assert ctypes.string_at(address, 8 * MIB) == kept + dead
    assert on_disk(blobs) == before, "the bytes wait for the mapping"
    assert Path(mount.path("b", "g")).read_bytes()[: 4 * MIB] == kept
    assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(8 * MIB)) == 0
    mount.do("settle")
    assert on_disk(blobs) == before - 4 * MIB
    assert Path(mount.path("b", "g")).read_bytes()[: 4 * MIB] == kept


def on_disk(blobs: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in blobs.glob("*/*"))
