"""A directory or a file of this node as a source."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ckptfs.errors import (
    Interrupted,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceTooLarge,
    SpecificationError,
)
from ckptfs.source import local
from ckptfs.source.base import (
    Ranged,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
    SourceSpecial,
)
from ckptfs.source.open import Limits, open_source
from ckptfs.testing import maker


def listed(path: Path | str | bytes, **more: Any) -> dict[bytes, SourceEntry]:
    with closing(open_source(os.fsdecode(path), **more)) as source:
        return {entry.path: entry for entry in source.entries()}


def only_file(path: Path) -> Ranged:
    (entry,) = listed(path).values()
    assert isinstance(entry, SourceFile) and entry.ranged is not None
    return entry.ranged


def read(ranged: Ranged, offset: int = 0, length: int | None = None) -> bytes:
    data = bytearray(ranged.size_bytes - offset if length is None else length)
    ranged.read_at(offset, memoryview(data))
    return bytes(data)


# --- What is found ----------------------------------------------------------------------------------


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    twins = ["\u00e9".encode(), "e\u0301".encode()]
    names = [b"new\nline", b"esc\x1b[31m", b"\xff\xfe", *twins, b"n" * 255, b"-rf"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    found = listed(tmp_path)
    assert sorted(found) == sorted(names)
    for name, entry in found.items():
        assert isinstance(entry, SourceFile) and entry.ranged is not None and read(entry.ranged) == name


def test_links_are_kept_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"1")
    (tmp_path / "to-directory").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "outside").symlink_to("/etc/passwd")
    assert listed(tmp_path) | {b"real/file": None} == {
        b"real": SourceDirectory(b"real"),
        b"real/file": None,
        b"to-directory": SourceLink(b"to-directory", b"real"),
        b"loop": SourceLink(b"loop", b"loop"),
        b"outside": SourceLink(b"outside", b"/etc/passwd"),
    }


def test_the_given_path_may_itself_be_a_link(tmp_path: Path) -> None:
    maker.write_tree(str(tmp_path / "tree"), {"a": b"1"})
    (tmp_path / "current").symlink_to("tree")
    assert list(listed(tmp_path / "current")) == [b"a"]
    (tmp_path / "file").symlink_to("tree/a")
    assert list(listed(tmp_path / "file")) == [b"a"]


def test_directories_come_before_what_they_hold_in_a_fixed_order(tmp_path: Path) -> None:
    maker.write_tree(str(tmp_path), {"b/z/1": b"1", "b/a/2": b"2", "a": b"3", "c": None})
    paths = list(listed(tmp_path))
    assert paths == [b"a", b"b", b"c", b"b/a", b"b/z", b"b/a/2", b"b/z/1"]
    assert paths == list(listed(tmp_path))


def test_executable_bits_are_found(tmp_path: Path) -> None:
    for mode in (0o644, 0o755, 0o100, 0o010, 0o001, 0o600):
        (tmp_path / f"{mode:o}").write_bytes(b"")
        (tmp_path / f"{mode:o}").chmod(mode)
    executable = {path for path, e in listed(tmp_path).items() if isinstance(e, SourceFile) and e.executable}
    assert executable == {b"755", b"100", b"10", b"1"}


def test_what_a_checkpoint_may_not_hold_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    os.mknod(tmp_path / "device", 0o20644, os.makedev(1, 3))
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755)):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).chmod(mode)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory").chmod(0o2755)  # how shared directories are set up: the bit is dropped
    assert listed(tmp_path) == {
        b"fifo": SourceSpecial(b"fifo", "a fifo"),
        b"socket": SourceSpecial(b"socket", "a socket"),
        b"device": SourceSpecial(b"device", "a device"),
        b"setuid": SourceSpecial(b"setuid", "a set-uid file"),
        b"setgid": SourceSpecial(b"setgid", "a set-gid file"),
        b"directory": SourceDirectory(b"directory"),
    }


def test_a_sparse_file_reads_as_zeros_where_it_has_holes(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"here")
    ranged = listed(tmp_path, limits=Limits(max_bytes=1 << 41))[b"sparse"].ranged  # type: ignore[union-attr]
    assert ranged is not None
    assert read(ranged, (1 << 39) - 4, 12) == b"\0\0\0\0here\0\0\0\0"
    assert read(ranged, (1 << 40) - 10, 10) == bytes(10)


# --- What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("/does/not/exist", SourceNotFound, "/does/not/exist does not exist"),
        ("/etc/passwd/x", SourceNotFound, "does not exist"),
        ("/dev/null", SourceDenied, "/dev/null is a device"),
        ("/" + "n" * 300, SourceNotFound, "longer than a path may be"),
        ("relative/path", SpecificationError, "not a whole path"),
        ("file://elsewhere/x", SpecificationError, "another host"),
        ("", SpecificationError, "missing"),
        ("ftp://host/file", SpecificationError, "ftp:// is not a kind of source"),
    ],
)
def test_bad_paths_are_explained(uri: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        open_source(uri)


def test_a_loop_of_links_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(SourceNotFound, match="loop"):
        open_source(str(tmp_path / "a"))


def test_an_empty_directory_and_an_empty_file_are_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name in ("directory", "file"):
        with pytest.raises(SourceNotFound, match=f"{name} is empty"):
            open_source(str(tmp_path / name))


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b%.txt").write_bytes(b"1")
    assert list(listed(f"file://{tmp_path}/a%20b%25.txt")) == [b"a b%.txt"]


def test_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="no options, so not endpoint_url"):
        open_source(str(tmp_path), options={"endpoint_url": "http://x"})


@pytest.mark.parametrize("source_type", ["s3", "web", "gopher"])
def test_a_source_type_that_does_not_fit_is_refused(tmp_path: Path, source_type: str) -> None:
    with pytest.raises(SpecificationError, match=source_type):
        open_source(str(tmp_path), source_type=source_type)


def test_limits_hold_while_listing(tmp_path: Path) -> None:
    maker.write_tree(str(tmp_path), {f"f{i}": b"1234" for i in range(10)})
    with pytest.raises(SourceTooLarge, match="at least 40 bytes, more than the 39"):
        open_source(str(tmp_path), limits=Limits(max_bytes=39))
    with pytest.raises(SourceTooLarge, match="more than 9 files"):
        open_source(str(tmp_path), limits=Limits(max_entries=9))
    assert open_source(str(tmp_path), limits=Limits(max_bytes=40, max_entries=10)).total_bytes == 40


@pytest.mark.parametrize("change", ["link", "directory"])
def test_a_directory_that_is_swapped_while_listing_is_noticed(tmp_path: Path, change: str) -> None:
    """Whoever owns a part of the tree must not make the daemon read what only the daemon may."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"private")
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    asked: list[None] = []

    def swap() -> bool:  # asked at the beginning, and again when the directory "a" has been found
        asked.append(None)
        if len(asked) == 2:
            (tree / "a").rename(tmp_path / "moved")
            if change == "link":
                (tree / "a").symlink_to(secret)
            else:
                secret.rename(tree / "a")
        return False

    with pytest.raises(SourceChanged, match="while the checkpoint was being made"):
        listed(tree, cancelled=swap)
    assert len(asked) >= 2


def test_a_cancelled_listing_ends(tmp_path: Path) -> None:
    maker.write_small_files(str(tmp_path), 3000)
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Interrupted):
        open_source(str(tmp_path), cancelled=cancelled)


_AS_NOBODY = """
import os, sys
from ckptfs.source.open import open_source
from ckptfs.errors import SourceDenied
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    open_source(sys.argv[1])
except SourceDenied as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["file", "directory", "top"])
def test_what_may_not_be_read_is_named(what: str, request: pytest.FixtureRequest) -> None:
    assert os.geteuid() == 0, "run as root, as the daemon does: this test drops its rights in a child"
    directory = tempfile.TemporaryDirectory()  # pytest's own may be entered by its owner only
    request.addfinalizer(directory.cleanup)
    Path(directory.name).chmod(0o755)
    tree = Path(directory.name) / "tree"
    maker.write_tree(str(tree), {"file": b"1", "directory/x": b"1"})
    secret = {"file": tree / "file", "directory": tree / "directory", "top": tree}[what]
    secret.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(tree)], capture_output=True, text=True, check=True
        )
    finally:
        secret.chmod(0o755)
    assert f"{secret} may not be read by the daemon" in done.stdout


# --- The pin ----------------------------------------------------------------------------------------


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"X")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


def _link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [_append, _overwrite, _replace, _link, _fifo, Path.unlink, lambda path: os.truncate(path, 10)],
    ids=["append", "overwrite", "replace", "link", "fifo", "unlink", "truncate"],
)
def test_a_change_after_listing_is_noticed(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(maker.noise(1, 100_000))
    ranged = only_file(path)
    read(ranged, 0, 50_000)
    change(path)
    with pytest.raises(SourceChanged, match=r"model\.bin .* while the checkpoint was being made"):
        read(ranged, 50_000, 50_000)


def test_a_write_in_the_same_tick_as_the_listing_is_noticed(tmp_path: Path) -> None:
    """Times advance in ticks: without a pause, the second write could leave the same ones."""
    path = tmp_path / "model.bin"
    for _ in range(20):
        path.write_bytes(b"a" * 1000)
        ranged = only_file(path)
        first = read(ranged, 0, 500)
        with open(path, "r+b") as file:
            file.write(b"b" * 1000)
        with pytest.raises(SourceChanged):
            read(ranged, 500, 500)
        assert first == b"a" * 500


def test_the_pause_for_the_tick_is_paid_once(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"a" * 1000)
    ranged = only_file(path)
    read(ranged)
    began = time.monotonic()
    for _ in range(20):
        read(ranged)
    assert time.monotonic() - began < 10 * local.TICK_SECONDS


def test_a_pin_is_of_the_content_not_of_the_access(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"a")
    pins = set()
    for _ in range(2):
        (entry,) = listed(path).values()
        assert isinstance(entry, SourceFile)
        pins.add(entry.pin)
        path.read_bytes()
    assert len(pins) == 1


def test_an_error_of_the_disk_is_not_taken_for_a_change() -> None:
    error = local.at_door(OSError(5, "Input/output error"), b"/data/x")
    assert isinstance(error, SourceError) and error.retryable and "/data/x" in str(error)


def test_no_descriptor_is_held_between_reads(tmp_path: Path) -> None:
    maker.write_small_files(str(tmp_path), 300)
    before = len(os.listdir("/proc/self/fd"))
    with closing(open_source(str(tmp_path))) as source:
        for entry in source.entries():
            if isinstance(entry, SourceFile) and entry.ranged is not None:
                read(entry.ranged)
                assert len(os.listdir("/proc/self/fd")) == before
