"""What listing costs, and that it shows the same to everybody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, clean_up, start_mount

from ckptfs.testing.checkpoints import Files

WIDE = 6000  # a directory that is large, in listing.py's words
FILES: Files = {f"d{i}/f{j:03}".encode(): str(j).encode() for i in range(20) for j in range(100)}
FILES |= {f"wide/{i:05}".encode(): b"x" for i in range(WIDE)}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    mount = start_mount(tmp_path, {"ckpt": FILES}, {})
    try:
        yield mount
    finally:
        clean_up(mount)


def output(*command: str) -> list[str]:
    return subprocess.check_output(command, text=True).split()


def test_names_cost_no_request_each(mount: Mount) -> None:
    found = output("find", mount.path("ckpt"), "-type", "f")
    assert len(found) == len(FILES)
    assert mount.counter("lookups") < 40


def test_who_looks_at_files_asks_for_few_of_them(mount: Mount) -> None:
    """The first directory file by file; after that names come with attributes."""
    sizes = output("find", mount.path("ckpt"), "-type", "f", "-printf", "%s\n")
    assert sorted(sizes) == sorted(str(len(c)) for c in FILES.values() if isinstance(c, bytes))
    assert mount.counter("lookups") < 300


def test_a_large_directory_comes_with_attributes(mount: Mount) -> None:
    program = f"import os; print(sum(e.stat().st_size for e in os.scandir({mount.path('ckpt', 'wide')!r})))"
    assert output(sys.executable, "-c", program) == [str(WIDE)]
    assert mount.counter("lookups") < 40


def test_bare_and_full_listings_show_the_same(mount: Mount) -> None:
    path = mount.path("ckpt", "d7")
    bare = sorted((e.name, e.inode(), e.is_file(follow_symlinks=False)) for e in os.scandir(path))
    for entry in os.scandir(path):
        assert os.stat(entry.path).st_ino == entry.inode()
    before = mount.counter("lookups")
    for entry in os.scandir(mount.path("ckpt", "d8")):  # this process is one that looks by now
        entry.stat()
    assert mount.counter("lookups") - before < 5
    full = sorted((e.name, e.inode(), e.is_file(follow_symlinks=False)) for e in os.scandir(path))
    assert bare == full
    assert [name for name, _, _ in bare] == [f"f{j:03}" for j in range(100)]
