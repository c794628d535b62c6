"""What stat, readdir, readlink and statfs show, on a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, clean_up, start_mount

from ckptfs.testing.checkpoints import Executable, Files, To, noise

MIB = 1 << 20
_SYS_GETDENTS64 = 61 if os.uname().machine == "aarch64" else 217
SPARSE = bytes(4 * MIB) + noise(3, 100) + bytes(4 * MIB - 100) + bytes(4 * MIB)

MODEL: Files = {
    b"config.json": b'{"hidden": 4}',
    b"run.sh": Executable(b"#!/bin/sh\necho hello\n"),
    b"empty": b"",
    b"weights/a.bin": noise(1, 3 * MIB + 17),
    b"weights/deep/er/b.bin": noise(2, 70_000),
    b"weights/sparse.bin": SPARSE,
    b"latest": To(b"weights/a.bin"),
    b"weights/up": To(b"../config.json"),
    b"dangling": To(b"nowhere"),
    b"hollow": None,
    b"new\nline \x1b[31m": b"odd",
    b"\xff\xfe not utf-8": b"odd too",
    b"n" * 255: b"the longest name",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    mount = start_mount(tmp_path_factory.mktemp("tree"), {"llama": MODEL, "second": {b"x": b"y"}}, {})
    try:
        yield mount
    finally:
        clean_up(mount)


def at(mount: Mount, path: bytes) -> bytes:
    return os.fsencode(mount.path("llama")) + b"/" + path


def test_every_file_has_its_bytes_size_and_mode(model: Mount) -> None:
    for path, what in MODEL.items():
        status = os.lstat(at(model, path))
        if what is None:
            assert stat.S_ISDIR(status.st_mode)
        elif isinstance(what, To):
            assert status.st_mode == stat.S_IFLNK | 0o777
            assert os.readlink(at(model, path)) == what.target
            assert status.st_size == len(what.target)
        else:
            executable = isinstance(what, Executable)
            content = what.content if isinstance(what, Executable) else what
            assert status.st_mode == stat.S_IFREG | (0o555 if executable else 0o444)
            assert status.st_size == len(content)
            assert Path(os.fsdecode(at(model, path))).read_bytes() == content


def test_owner_times_and_link_counts(model: Mount) -> None:
    created = model.checkpoints["llama"].created
    for path in (b"", b"config.json", b"weights", b"latest"):
        status = os.lstat(at(model, path))
        assert (status.st_uid, status.st_gid) == (0, 0)
        assert abs(status.st_mtime - created) < 1e-5
        assert status.st_mtime_ns == status.st_atime_ns == status.st_ctime_ns
    assert os.lstat(at(model, b"config.json")).st_nlink == 1
    assert os.lstat(at(model, b"")).st_nlink == 2 + 2  # weights, hollow
    assert os.lstat(at(model, b"weights")).st_nlink == 2 + 1
    assert os.lstat(at(model, b"hollow")).st_nlink == 2
    assert os.lstat(model.root).st_nlink == 2 + 2
    for path in (model.root, at(model, b""), at(model, b"weights")):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o555


def test_inode_numbers_come_from_ordinal_and_entry(model: Mount) -> None:
    ordinal = model.checkpoints["llama"].ordinal
    assert os.lstat(model.root).st_ino == 1
    assert os.lstat(at(model, b"")).st_ino == (ordinal << 32) + 1
    in_manifest = sorted({*MODEL, b"weights", b"weights/deep", b"weights/deep/er"})
    for index, path in enumerate(in_manifest):
        assert os.lstat(at(model, path)).st_ino == (ordinal << 32) + index + 2
    for entry in os.scandir(at(model, b"")):
        assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_blocks_leave_out_whole_chunks_of_zeros(model: Mount) -> None:
    assert os.stat(at(model, b"weights/sparse.bin")).st_blocks == 4 * MIB // 512
    assert os.stat(at(model, b"weights/a.bin")).st_blocks == -(-(3 * MIB + 17) // 512)
    assert os.stat(at(model, b"empty")).st_blocks == 0
    used = int(subprocess.check_output(["du", "-s", "-B1", at(model, b"weights/sparse.bin")]).split()[0])
    assert used == 4 * MIB


def test_d_type_says_what_an_entry_is(model: Mount) -> None:
    kinds = {entry.name: entry for entry in os.scandir(at(model, b""))}
    assert kinds[b"weights"].is_dir(follow_symlinks=False)
    assert kinds[b"latest"].is_symlink()
    assert kinds[b"run.sh"].is_file(follow_symlinks=False)


def test_listing_is_complete_and_has_dots(model: Mount) -> None:
    top = {p.partition(b"/")[0] for p in MODEL}
    assert set(os.listdir(at(model, b""))) == top
    raw = [name for name, _, _ in getdents(os.fsdecode(at(model, b"")))]
    assert raw[:2] == [b".", b".."]
    assert set(raw[2:]) == top
    inodes = {name: inode for name, inode, _ in getdents(os.fsdecode(at(model, b"weights/deep")))}
    assert inodes[b"."] == os.lstat(at(model, b"weights/deep")).st_ino
    assert inodes[b".."] == os.lstat(at(model, b"weights")).st_ino
    assert {n: i for n, i, _ in getdents(os.fsdecode(at(model, b"")))}[b".."] == 1


def test_statfs_means_something(model: Mount) -> None:
    stats = os.statvfs(model.root)
    logical = sum(c.size_bytes for c in model.checkpoints.values())
    assert 0 <= stats.f_blocks * stats.f_frsize - logical < stats.f_frsize
    assert (stats.f_bfree, stats.f_bavail, stats.f_ffree) == (0, 0, 0)
    # every entry, the two checkpoints' directories and the root
    assert stats.f_files == len(MODEL) + 3 + 1 + 2 + 1
    assert stats.f_namemax == 255
    assert stats.f_flag & os.ST_RDONLY
    assert stats.f_flag & os.ST_NOSUID


def test_mounted_as_what_it_is(model: Mount) -> None:
    line = next(x for x in Path("/proc/self/mounts").read_text().splitlines() if x.split()[1] == model.root)
    source, _, fstype, options = line.split()[:4]
    assert (source, fstype) == ("ckptfs", "fuse.ckptfs")
    assert {"ro", "nosuid", "nodev", "default_permissions", "allow_other"} <= set(options.split(","))
    assert model.notes == ""


def test_names_that_are_not_there(model: Mount) -> None:
    for path in (at(model, b"absent"), model.path("nobody"), at(model, b"weights/absent/x")):
        with pytest.raises(FileNotFoundError):
            os.stat(path)
    with pytest.raises(NotADirectoryError):
        os.stat(at(model, b"config.json/x"))


@pytest.mark.parametrize("where", ["", "llama", "llama/weights"])
def test_a_name_of_256_bytes_is_too_long(model: Mount, where: str) -> None:
    with pytest.raises(OSError) as caught:
        os.stat(model.path(where, "n" * 256))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_name_that_is_absent_in_a_checkpoint_is_asked_once(model: Mount) -> None:
    """Immutable: the kernel may remember that there is no such name. In the root it must not."""
    before = _requests(model)
    for _ in range(50):
        assert not os.path.exists(at(model, b"adapter_config.json"))
    assert _requests(model) - before <= 3
    before = _requests(model)
    for _ in range(50):
        assert not os.path.exists(model.path("not-yet"))
    assert _requests(model) - before >= 50


def _requests(mount: Mount) -> int:
    return mount.counter("lookups")


def test_links_are_followed(model: Mount) -> None:
    assert os.stat(at(model, b"latest")).st_size == 3 * MIB + 17
    assert Path(os.fsdecode(at(model, b"weights/up"))).read_bytes() == MODEL[b"config.json"]
    with pytest.raises(FileNotFoundError):
        os.stat(at(model, b"dangling"))
    with pytest.raises(OSError) as caught:
        os.open(at(model, b"latest"), os.O_RDONLY | os.O_NOFOLLOW)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError) as caught:
        os.readlink(at(model, b"config.json"))
    assert caught.value.errno == errno.EINVAL


def test_executables_run(model: Mount) -> None:
    assert subprocess.check_output([at(model, b"run.sh")]) == b"hello\n"
    with pytest.raises(PermissionError):
        subprocess.check_output([at(model, b"config.json")])


def test_extended_attributes_are_none(model: Mount) -> None:
    path = at(model, b"config.json")
    assert os.listxattr(path) == []
    with pytest.raises(OSError) as caught:
        os.getxattr(path, b"user.any")
    assert caught.value.errno == errno.ENODATA


def test_file_handles_for_nfs_find_their_file(model: Mount) -> None:
    """name_to_handle_at and open_by_handle_at: the kernel looks up "." and ".." by inode number."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    path = at(model, b"weights/deep/er/b.bin")
    assert libc.name_to_handle_at(-100, path, handle, ctypes.byref(mount_id), 0) == 0
    root = os.open(model.root, os.O_RDONLY)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
        fd = libc.open_by_handle_at(root, handle, os.O_RDONLY)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        assert os.read(fd, 16) == noise(2, 70_000)[:16]
        os.close(fd)
    finally:
        os.close(root)


def getdents(path: str, buffer_bytes: int = 32768) -> list[tuple[bytes, int, int]]:
    return list(getdents_one_by_one(path, buffer_bytes))


def getdents_one_by_one(path: str, buffer_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, inode, offset of the next) as getdents64(2) answers them."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(buffer_bytes)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while got := libc.syscall(_SYS_GETDENTS64, fd, buffer, buffer_bytes):
            assert got > 0, os.strerror(ctypes.get_errno())
            at = 0
            while at < got:
                inode, following, length = struct.unpack_from("<QqH", buffer, at)
                yield buffer.raw[at + 19 : at + length].split(b"\0")[0], inode, following
                at += length
    finally:
        os.close(fd)
