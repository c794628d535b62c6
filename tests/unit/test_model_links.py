"""Following links in a tree gives what the kernel gives: compared with a real one on the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ckptfs.model.links import leaves_by_text, leaving


@pytest.mark.parametrize(
    ("path", "target", "leaves"),
    [
        (b"l", b"..", True),
        (b"l", b"a/..", False),
        (b"l", b"a/../..", True),
        (b"d/l", b"..", False),
        (b"d/l", b"../..", True),
        (b"d/l", b".././a//..", False),
        (b"l", b"...", False),
    ],
)
def test_by_text(path: bytes, target: bytes, leaves: bool) -> None:
    assert leaves_by_text(path, target) is leaves


def follow(links: dict[bytes, bytes], directories: set[bytes]) -> bytes | None:
    return leaving(links, lambda path: path in directories)


def test_through_a_link_to_the_root() -> None:
    assert follow({b"a/up": b"..", b"out": b"a/up/.."}, {b"a"}) == b"out"
    assert follow({b"a/up": b"..", b"in": b"a/up/x"}, {b"a"}) is None


def test_loops_lead_nowhere() -> None:
    assert follow({b"a": b"b", b"b": b"a"}, set()) is None
    assert follow({b"a": b"a/../.."}, set()) is None
    assert follow({b"a": b"b/..", b"b": b"a/.."}, set()) is None


def test_what_cannot_be_walked_through_leads_nowhere() -> None:
    assert follow({b"l": b"not/there/../../.."}, set()) is None
    assert follow({b"f": b"file", b"l": b"f/.."}, set()) is None


def test_a_chain_of_100_000_links() -> None:
    links = {b"%d" % i: b"%d" % (i + 1) for i in range(100_000)} | {b"100000": b"d/up", b"d/up": b".."}
    assert follow(links, {b"d"}) is None
    assert follow(links | {b"out": b"0/.."}, {b"d"}) == b"out"


def test_links_that_double_at_every_step_take_no_time() -> None:
    """Followed naively, 2 ** 60 steps."""
    links = {b"%d" % i: b"%d/../d/../%d" % (i + 1, i + 1) for i in range(60)} | {b"60": b"d"}
    begun = time.perf_counter()
    assert follow(links, {b"d"}) is None
    assert time.perf_counter() - begun < 5


NAMES = [b"a", b"b", b"c"]
place = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
target = st.lists(st.sampled_from([*NAMES, b"..", b"."]), min_size=1, max_size=5).map(b"/".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.dictionaries(place, st.one_of(st.none(), target), max_size=8))
@example({(b"a", b"b", b"c"): b"../..", (b"b",): b"a/b/c/../x"})
def test_as_the_kernel_follows_them(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[tuple[bytes, ...], bytes | None]
) -> None:
    """A link leaves if, with every name that exists, the kernel gets from it out of the root.

    The root lies in a directory whose names (a, b, c) do not exist, so what a link reaches outside is
    told by where the kernel ends: a last component that is "..", or the parent of a missing one.
    """
    outside = tmp_path_factory.mktemp("links")
    root = os.fsencode(outside / "1" / "2")
    os.makedirs(root)
    directories: set[bytes] = set()
    links: dict[bytes, bytes] = {}
    for parts, where in sorted(entries.items()):
        path = b"/".join(parts)
        parents = [b"/".join(parts[:n]) for n in range(1, len(parts))]
        if any(p in links for p in parents) or path in directories or path in links:
            continue
        directories.update(parents)
        os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
        if where is None:
            directories.add(path)
            os.makedirs(os.path.join(root, path), exist_ok=True)
        else:
            links[path] = where
            os.symlink(where, os.path.join(root, path))
    stray = leaving(links, directories.__contains__)
    escapes = {link for link in links if _kernel_leaves(root, link, links)}
    if stray is None:
        assert not escapes
    else:
        assert stray in escapes
    _clear(outside)


def _kernel_leaves(root: bytes, link: bytes, links: dict[bytes, bytes]) -> bool:
    """Whether the kernel, walking the link's target component by component, stands outside at any step."""
    directory = os.path.join(root, os.path.dirname(link))
    components = links[link].split(b"/")
    for n in range(1, len(components) + 1):
        prefix = b"/".join(components[:n])
        try:
            fd = os.open(os.path.join(directory, prefix), os.O_PATH)
        except OSError:
            return False
        try:
            at = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        if at != root and not at.startswith(root + b"/"):
            return True
    return False


def _clear(directory: Path) -> None:
    for at, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(at, name))
        for name in directories:
            path = os.path.join(at, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    os.rmdir(directory)
