"""What a checkpoint may hold: every refusal, and that nothing harmless is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import SourceRefused
from ckptfs.model.admission import TARGETS_LIMIT_BYTES, Admission, Kind, normalise
from ckptfs.model.manifest import Directory, File, Link, of


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        (b"a", b"a"),
        (b"./a", b"a"),
        (b"a/", b"a"),
        (b"a//b", b"a/b"),
        (b"./a/././b/", b"a/b"),
        (b".", b""),
        (b"./", b""),
        (b"...", b"..."),
        (b"..a/b..", b"..a/b.."),
        (b"a\\..\\b", b"a\\..\\b"),
        (b" ", b" "),
        (b"\xff\n\x1b", b"\xff\n\x1b"),
        (b"x" * 255, b"x" * 255),
    ],
)
def test_normal_paths(raw: bytes, normal: bytes) -> None:
    assert normalise(raw) == normal


BAD_PATHS = {
    "empty": (b"", "empty"),
    "absolute": (b"/etc/passwd", "absolute"),
    "absolute twice": (b"//a", "absolute"),
    "the root of all": (b"/", "absolute"),
    "up": (b"..", '".."'),
    "up and away": (b"../x", '".."'),
    "up in the middle": (b"a/../b", '".."'),
    "up at the end": (b"a/..", '".."'),
    "NUL": (b"a\0b", "NUL"),
    "a long name": (b"x" * 256, "255"),
    "a long path": (b"/".join([b"x" * 200] * 21), "4096"),
}


@pytest.mark.parametrize(("path", "why"), BAD_PATHS.values(), ids=BAD_PATHS)
def test_bad_paths_are_refused_everywhere(path: bytes, why: str) -> None:
    for call in (
        lambda a: a.file(path),
        lambda a: a.directory(path),
        lambda a: a.link(path, b"x"),
    ):
        admission = Admission()
        with pytest.raises(SourceRefused, match=why) as caught:
            call(admission)
        assert "path" in caught.value.data
        assert caught.value.message.isprintable()
        assert admission.finish() == []


def test_the_longest_path() -> None:
    path = b"/".join([b"x" * 255] * 15 + [b"y" * 254, b"z"])
    assert len(path) == 4096
    assert Admission().file(path) == path


def test_directories_and_implied_ones() -> None:
    admission = Admission()
    assert admission.directory(b"./") == b""
    assert admission.file(b"./a/b//c", executable=True) == b"a/b/c"
    assert admission.directory(b"a/") == b"a"
    assert admission.directory(b"a") == b"a"
    admission.directory(b"e")
    admission.file(b"e/f")
    assert admission.finish() == [Directory(b"a"), Directory(b"a/b"), Directory(b"e")]
    assert len(admission) == 5
    assert admission.kind(b"") is Kind.DIRECTORY
    assert admission.kind(b"a/b/c") is Kind.FILE
    assert admission.kind(b"nothing") is None


def test_entries_come_in_path_order() -> None:
    admission = Admission()
    for path in (b"z", b"a/x", b"a-b", b"a/y/z"):
        admission.directory(path)
    admission.link(b"b", b"a")
    paths = [entry.path for entry in admission.finish()]
    assert paths == sorted(paths)


Add = tuple[str, bytes]

TWICE: dict[str, tuple[list[Add], str]] = {
    "a file": ([("f", b"a"), ("f", b"a")], "twice"),
    "a file by another spelling": ([("f", b"a/b"), ("f", b"a//./b")], "twice"),
    "a link": ([("l", b"a"), ("l", b"a")], "twice"),
    "a file and a link": ([("f", b"a"), ("l", b"a")], "is a file and a symbolic link"),
    "a file and a directory": ([("f", b"a"), ("d", b"a")], "is a file and a directory"),
    "a directory and a file": ([("d", b"a"), ("f", b"a")], "is a directory and a file"),
    "an implied directory and a file": ([("f", b"a/b"), ("f", b"a")], "is a directory and a file"),
    "an implied directory and a link": ([("f", b"a/b"), ("l", b"a")], "is a directory and a symbolic link"),
    "a link and a directory": ([("l", b"a"), ("d", b"a")], "is a symbolic link and a directory"),
    "below a file": ([("f", b"a"), ("f", b"a/b")], "below a, which is a file"),
    "far below a file": ([("f", b"a"), ("d", b"a/b/c/d")], "below a, which is a file"),
    "through a link": ([("l", b"a"), ("f", b"a/b")], "below a, which is a symbolic link"),
    "a link through a link": ([("l", b"a"), ("l", b"a/b/c")], "below a, which is a symbolic link"),
    "a file for the root": ([("f", b".")], "root"),
    "a link for the root": ([("l", b"./")], "root"),
}


@pytest.mark.parametrize(("adds", "why"), TWICE.values(), ids=TWICE)
def test_one_path_is_one_thing(adds: list[Add], why: str) -> None:
    admission = Admission()
    *first, (last_kind, last_path) = adds
    for kind, path in first:
        add(admission, kind, path)
    with pytest.raises(SourceRefused, match=why):
        add(admission, last_kind, last_path)


def add(admission: Admission, kind: str, path: bytes) -> None:
    if kind == "f":
        admission.file(path)
    elif kind == "d":
        admission.directory(path)
    else:
        admission.link(path, b"somewhere")


def test_twins_in_unicode_and_case_are_two_files() -> None:
    admission = Admission()
    for path in ("\u00e9", "e\u0301", "A", "a"):
        admission.file(path.encode())
    assert len(admission) == 4


@pytest.mark.parametrize("what", ["a device", "a fifo", "a socket", "a set-uid file"])
def test_special_files_are_refused_by_name(what: str) -> None:
    with pytest.raises(SourceRefused, match=f'"dir/x" is {what}') as caught:
        Admission().special(b"dir/x", what)
    assert caught.value.data["path"] == "dir/x"


def test_a_hostile_path_cannot_drive_a_terminal() -> None:
    with pytest.raises(SourceRefused) as caught:
        Admission().special(b"\x1b]0;owned\x07\n" + b"x" * 10_000, "a device")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_there_is_a_limit_to_entries_implied_ones_included() -> None:
    admission = Admission(max_entries=3)
    admission.file(b"a/b/c")
    admission.directory(b"a/b")
    with pytest.raises(SourceRefused, match="more than 3 entries"):
        admission.file(b"d")
    with pytest.raises(SourceRefused, match="more than 3 entries"):
        Admission(max_entries=3).file(b"a/b/c/d")


GOOD_LINKS = {
    "a neighbour": (b"l", b"a"),
    "below": (b"l", b"d/e"),
    "up inside": (b"d/e/l", b"../../a"),
    "the root": (b"d/l", b".."),
    "itself": (b"l", b"l"),
    "nowhere": (b"l", b"not/there"),
    "through a file": (b"l", b"a/x"),
    "odd names": (b"l", b"\xff\n"),
    "with dots and slashes": (b"d/l", b".//../a/"),
}


@pytest.mark.parametrize(("path", "target"), GOOD_LINKS.values(), ids=GOOD_LINKS)
def test_links_that_stay(path: bytes, target: bytes) -> None:
    admission = Admission()
    admission.file(b"a")
    admission.directory(b"d/e")
    admission.link(path, target)
    assert Link(path, target) in admission.finish()


BAD_LINKS = {
    "absolute": (b"l", b"/etc/passwd", "absolute"),
    "up": (b"l", b"../x", "outside"),
    "up from below": (b"d/l", b"../../x", "outside"),
    "down and up": (b"l", b"d/../../x", "outside"),
    "up and down again": (b"d/l", b"../../d/x", "outside"),
    "empty": (b"l", b"", "no target"),
    "NUL": (b"l", b"a\0b", "NUL"),
    "too long": (b"l", b"a/" * 2048, "4095"),
}


@pytest.mark.parametrize(("path", "target", "why"), BAD_LINKS.values(), ids=BAD_LINKS)
def test_links_that_leave_are_refused_at_once(path: bytes, target: bytes, why: str) -> None:
    with pytest.raises(SourceRefused, match=why) as caught:
        Admission().link(path, target)
    assert caught.value.message.isprintable()


def test_a_link_that_leaves_through_another() -> None:
    admission = Admission()
    admission.link(b"a/b/up", b"../..")
    admission.link(b"out", b"a/b/up/../x")
    with pytest.raises(SourceRefused, match="through other links") as caught:
        admission.finish()
    assert caught.value.data["path"] == "out"


def test_links_that_were_listed_in_any_order() -> None:
    admission = Admission()
    admission.link(b"out", b"a/b/up/../x")
    admission.link(b"a/b/up", b"../..")
    with pytest.raises(SourceRefused, match="through other links"):
        admission.finish()


def test_there_is_a_limit_to_what_links_hold() -> None:
    admission = Admission()
    with pytest.raises(SourceRefused, match="targets of links"):
        for i in range(TARGETS_LIMIT_BYTES // 4000 + 1):
            admission.link(b"%d" % i, b"x/" * 2000)


components = st.sampled_from([b"a", b"b", b".", b"..", b"", b"\xff", b"x" * 256, b"a\0"])
paths = st.lists(components, max_size=5).map(b"/".join)


@given(st.lists(st.tuples(st.sampled_from("fdl"), paths, paths), max_size=20))
def test_whatever_comes_what_is_admitted_is_a_manifest(adds: list[tuple[str, bytes, bytes]]) -> None:
    admission = Admission()
    files = []
    for kind, path, target in adds:
        try:
            if kind == "f":
                files.append(File(admission.file(path), False, 0, [], b""))
            elif kind == "d":
                admission.directory(path)
            else:
                admission.link(path, target)
        except SourceRefused:
            continue
    try:
        entries = admission.finish()
    except SourceRefused:
        return
    assert len(of([*entries, *files]).entries) == len(admission)
