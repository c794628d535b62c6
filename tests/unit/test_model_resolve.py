"""A path through links ends where the kernel ends."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptfs.model.manifest import Directory, Entry, File, Link, of
from ckptfs.model.resolve import MAX_LINKS, resolve
from ckptfs.model.tree import Tree


def tree() -> Tree:
    return Tree(
        of(
            [
                Directory(b"d"),
                File(b"d/f", False, 0, [], b""),
                Link(b"f", b"d/f"),
                Link(b"d/up", b".."),
                Link(b"loop", b"loop"),
                Link(b"nowhere", b"not/there"),
            ]
        )
    )


@pytest.mark.parametrize(
    ("path", "end"),
    [
        (b"", b""),
        (b"f", b"d/f"),
        (b"d/up/f", b"d/f"),
        (b"d/up/d/up", b""),
        (b"/d/./f", b"d/f"),
        (b"d/..", b""),
        (b"f/..", None),
        (b"d/f/x", None),
        (b"loop", None),
        (b"nowhere", None),
        (b"x", None),
    ],
)
def test_paths(path: bytes, end: bytes | None) -> None:
    assert resolve(tree(), path) == (None if end is None else tree().find(end))


def test_as_many_links_as_the_kernel_follows() -> None:
    links: list[Entry] = [Link(b"%03d" % i, b"%03d" % (i + 1)) for i in range(MAX_LINKS + 1)]
    chain = Tree(of([*links, Directory(b"%03d" % (MAX_LINKS + 1))]))
    assert resolve(chain, b"000") is None
    assert resolve(chain, b"001") == len(chain) - 1


NAMES = [b"a", b"b", b"c"]
place = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
target = st.lists(st.sampled_from([*NAMES, b"..", b"."]), min_size=1, max_size=4).map(b"/".join)


SYS_OPENAT2 = 437
RESOLVE_IN_ROOT = 0x10


class OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def kernel_end(root: int, path: bytes) -> bytes | None:
    """Where the kernel ends with this directory as its root, as a tree has it: above the root is the root."""
    how = OpenHow(os.O_PATH, 0, RESOLVE_IN_ROOT)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_OPENAT2, root, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        assert ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return None
    try:
        return os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.dictionaries(place, st.one_of(st.none(), st.just(b""), target), max_size=8),
    st.lists(target, min_size=1, max_size=5),
)
def test_as_the_kernel_follows_them(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[tuple[bytes, ...], bytes | None],
    asked: list[bytes],
) -> None:
    outside = tmp_path_factory.mktemp("tree")
    root = os.fsencode(outside / "root")
    os.mkdir(root)
    made: dict[bytes, Entry] = {}
    for parts, what in sorted(entries.items()):
        path = b"/".join(parts)
        parents = [b"/".join(parts[:n]) for n in range(1, len(parts))]
        if path in made or any(not isinstance(made.get(p, Directory(p)), Directory) for p in parents):
            continue
        made |= {p: Directory(p) for p in parents}
        os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
        at = os.path.join(root, path)
        if what is None:
            made[path] = Directory(path)
            os.mkdir(at)
        elif what == b"":
            made[path] = File(path, False, 0, [], b"")
            os.close(os.open(at, os.O_CREAT))
        else:
            made[path] = Link(path, what)
            os.symlink(what, at)
    whole = Tree(of(list(made.values())))
    directory = os.open(root, os.O_PATH)
    try:
        for path in asked:
            end = kernel_end(directory, path)
            node = resolve(whole, path)
            if end is None:
                assert node is None
            else:
                entry = whole.entry(node) if node else None
                assert node is not None
                assert os.path.join(root, entry.path if entry else b"").rstrip(b"/") == end
    finally:
        os.close(directory)
    shutil.rmtree(outside)
