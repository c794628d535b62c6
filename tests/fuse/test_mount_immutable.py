"""Every attempt to change something is refused, by the kernel and, were it not for the kernel, by us."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import Mount, clean_up, start_mount

from ckptfs.testing.checkpoints import To, tree_of

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    files = {b"file": b"content", b"folder/inner": b"more", b"link": To(b"file"), b"hollow": None}
    mount = start_mount(tmp_path_factory.mktemp("immutable"), {"ckpt": files}, {})
    try:
        yield mount
    finally:
        clean_up(mount)


#: name -> a system call on the checkpoint's directory
Change = Callable[[str], object]
CHANGES: dict[str, Change] = {
    "open for writing": lambda d: os.open(f"{d}/file", os.O_WRONLY),
    "open for reading and writing": lambda d: os.open(f"{d}/file", os.O_RDWR),
    "open for appending": lambda d: os.open(f"{d}/file", os.O_WRONLY | os.O_APPEND),
    "open with O_TRUNC": lambda d: os.open(f"{d}/file", os.O_RDONLY | os.O_TRUNC),
    "creat": lambda d: os.open(f"{d}/new", os.O_CREAT | os.O_WRONLY, 0o644),
    "creat for reading": lambda d: os.open(f"{d}/new", os.O_CREAT | os.O_RDONLY, 0o644),
    "open with O_TMPFILE": lambda d: os.open(d, os.O_TMPFILE | os.O_RDWR),
    "truncate": lambda d: os.truncate(f"{d}/file", 0),
    "unlink": lambda d: os.unlink(f"{d}/file"),
    "rmdir": lambda d: os.rmdir(f"{d}/hollow"),
    "mkdir": lambda d: os.mkdir(f"{d}/new"),
    "rename": lambda d: os.rename(f"{d}/file", f"{d}/new"),
    "rename over": lambda d: os.rename(f"{d}/file", f"{d}/folder/inner"),
    "rename exchange": lambda d: _call(
        _libc.renameat2(_AT_FDCWD, f"{d}/file".encode(), _AT_FDCWD, f"{d}/link".encode(), 2)
    ),
    "link": lambda d: os.link(f"{d}/file", f"{d}/new"),
    "symlink": lambda d: os.symlink("file", f"{d}/new"),
    "mknod of a fifo": lambda d: os.mkfifo(f"{d}/new"),
    "mknod of a device": lambda d: os.mknod(f"{d}/new", 0o600 | 0o020000, os.makedev(1, 3)),
    "chmod": lambda d: os.chmod(f"{d}/file", 0o777),
    "chown": lambda d: os.chown(f"{d}/file", 1, 1),
    "lchown": lambda d: os.lchown(f"{d}/link", 1, 1),
    "utimes": lambda d: os.utime(f"{d}/file", (1, 1)),
    "utimes of a directory": lambda d: os.utime(f"{d}/folder"),
    "setxattr": lambda d: os.setxattr(f"{d}/file", "user.x", b"y"),
    "setxattr create": lambda d: os.setxattr(f"{d}/file", "user.x", b"y", os.XATTR_CREATE),
    "removexattr": lambda d: os.removexattr(f"{d}/file", "user.x"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_refused_with_erofs(mount: Mount, name: str) -> None:
    directory = mount.path("ckpt")
    before = tree_of(directory)
    with pytest.raises(OSError) as caught:
        CHANGES[name](directory)
    assert caught.value.errno == errno.EROFS
    assert tree_of(directory) == before


@pytest.mark.parametrize("name", ["mkdir", "creat", "symlink", "mknod of a fifo"])
def test_nothing_is_made_in_the_root(mount: Mount, name: str) -> None:
    with pytest.raises(OSError) as caught:
        CHANGES[name](mount.root)
    assert caught.value.errno == errno.EROFS
    assert os.listdir(mount.root) == ["ckpt"]


def test_checkpoints_are_not_removed_through_the_root(mount: Mount) -> None:
    for change in (
        lambda: os.rmdir(mount.path("ckpt")),
        lambda: os.rename(mount.path("ckpt"), mount.path("other")),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS


def test_access_knows_that_nothing_can_be_written(mount: Mount) -> None:
    for path in (mount.root, mount.path("ckpt"), mount.path("ckpt", "file")):
        assert os.access(path, os.R_OK)
        with pytest.raises(OSError) as caught:
            _call(_libc.access(path.encode(), os.W_OK))
        assert caught.value.errno == errno.EROFS
    assert not os.access(mount.path("ckpt", "file"), os.X_OK)


def test_a_descriptor_for_reading_changes_nothing(mount: Mount) -> None:
    """As on every file system these say EBADF or EACCES: the descriptor is the wrong one."""
    fd = os.open(mount.path("ckpt", "file"), os.O_RDONLY)
    try:
        for change in (
            lambda: os.write(fd, b"x"),
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.posix_fallocate(fd, 0, 100),
            lambda: _call(_libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096))),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError) as caught:
            os.ftruncate(fd, 0)
        assert caught.value.errno in (errno.EINVAL, errno.EBADF)
        for change in (
            lambda: os.fchmod(fd, 0o777),
            lambda: os.fchown(fd, 1, 1),
            lambda: os.utime(fd, (1, 1)),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 7, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        private = mmap.mmap(fd, 7, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        private[:7] = b"changed"  # the job's own copy
        private.close()
        os.fsync(fd)
    finally:
        os.close(fd)
    assert Path(mount.path("ckpt", "file")).read_bytes() == b"content"


def test_the_handlers_refuse_too(tmp_path: Path) -> None:
    """Root remounts it read-write: then no MS_RDONLY answers first, the requests reach the daemon."""
    files = {b"file": b"content", b"folder/inner": b"more", b"link": To(b"file"), b"hollow": None}
    mount = start_mount(tmp_path, {"ckpt": files}, {})
    try:
        subprocess.run(["mount", "-i", "-o", "remount,rw", mount.root], check=True)
        assert not os.statvfs(mount.root).f_flag & os.ST_RDONLY
        directory = mount.path("ckpt")
        before = tree_of(directory)
        for name, change in CHANGES.items():
            with pytest.raises(OSError) as caught:
                change(directory)
            if name == "open with O_TMPFILE":  # pyfuse3 has no handler for it
                assert caught.value.errno == errno.EOPNOTSUPP
            elif name == "removexattr" or name == "rename exchange":
                assert caught.value.errno in (errno.EROFS, errno.EINVAL, errno.ENODATA)
            else:
                assert caught.value.errno == errno.EROFS, name
            assert tree_of(directory) == before
        fd = os.open(f"{directory}/file", os.O_RDONLY)
        with pytest.raises(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)
        assert mount.counter("fuse_faults") == 0
    finally:
        clean_up(mount)
