from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.model.manifest import Directory, Entry, File, Link, Manifest, of
from ckptfs.model.tree import ROOT, Tree


def file(path: bytes, size: int = 0) -> File:
    return File(path, False, size, [size] if size else [], b"d" * 32 if size else b"")


def small() -> Tree:
    # "a-b" sorts between "a" and "a/x": siblings are not neighbours in a manifest
    return Tree(
        of(
            [
                Directory(b"a"),
                file(b"a-b", 7),
                Directory(b"a/d"),
                Link(b"a/l", b"../a-b"),
                file(b"a/d/y"),
                file(b"z"),
            ]
        )
    )


def test_nodes_are_numbered_as_in_the_manifest() -> None:
    tree = small()
    paths = [entry.path if (entry := tree.entry(node)) else b"" for node in range(len(tree))]
    assert paths == [b"", b"a", b"a-b", b"a/d", b"a/d/y", b"a/l", b"z"]


def test_children_and_parents() -> None:
    tree = small()
    assert list(tree.children(ROOT)) == [(b"a", 1), (b"a-b", 2), (b"z", 6)]
    assert list(tree.children(1)) == [(b"d", 3), (b"l", 5)]
    assert list(tree.children(2)) == []
    assert [tree.parent(node) for node in range(7)] == [0, 0, 0, 1, 3, 1, 0]


def test_children_are_a_sequence() -> None:
    children = small().children(ROOT)
    assert len(children) == 3
    assert children[-1] == (b"z", 6)
    assert children[1:] == [(b"a-b", 2), (b"z", 6)]
    with pytest.raises(IndexError):
        children[3]
    with pytest.raises(IndexError):
        children[-4]


def test_what_stat_shows() -> None:
    tree = small()
    assert [tree.kind(node) for node in range(7)] == ["d", "d", "f", "d", "f", "l", "f"]
    assert [tree.size(node) for node in range(7)] == [0, 0, 7, 0, 0, 6, 0]
    assert [tree.nlink(node) for node in range(7)] == [3, 3, 1, 2, 1, 1, 1]
    assert tree.entry(ROOT) is None


def test_lookup() -> None:
    tree = small()
    assert tree.lookup(ROOT, b"a") == 1
    assert tree.lookup(1, b"d") == 3
    for name in (b"", b".", b"..", b"a/d", b"b", b"a-", b"A", b"a\0"):
        assert tree.lookup(ROOT, name) is None
    assert tree.lookup(2, b"x") is None


def test_find() -> None:
    tree = small()
    for path in (b"", b".", b"/", b"./"):
        assert tree.find(path) == ROOT
    for path in (b"a/d", b"/a/d/", b"./a//d/."):
        assert tree.find(path) == 3
    for path in (b"a/x", b"a/../a", b"a/l/y", b"a-b/"[:2], b".."):
        assert tree.find(path) is None


@pytest.mark.parametrize("node", [-1, 7])
def test_no_such_node(node: int) -> None:
    with pytest.raises(IndexError):
        small().entry(node)


def test_an_empty_checkpoint() -> None:
    tree = Tree(of([]))
    assert len(tree) == 1
    assert list(tree.children(ROOT)) == []
    assert tree.nlink(ROOT) == 2
    assert tree.lookup(ROOT, b"a") is None


names = st.sampled_from([b"a", b"b", b"a-", b"a.b", b"\xff", b"A"])


@given(st.sets(st.lists(names, min_size=1, max_size=4).map(tuple), max_size=25))
def test_a_tree_says_what_the_paths_say(paths: set[tuple[bytes, ...]]) -> None:
    directories = {path[:n] for path in paths for n in range(1, len(path))}
    entries: list[Entry] = [Directory(b"/".join(p)) for p in directories]
    entries += [file(b"/".join(p)) for p in paths - directories]
    tree = Tree(of(entries))
    everything = directories | paths
    for path in everything | {()}:
        node = tree.find(b"/".join(path))
        assert node is not None
        expected = sorted(p[-1] for p in everything if p[:-1] == path and p)
        assert [name for name, _ in tree.children(node)] == expected
        for name, child in tree.children(node):
            assert tree.lookup(node, name) == child
            assert tree.parent(child) == node
            assert tree.name(child) == name
        if path in directories or path == ():
            assert tree.nlink(node) == 2 + sum(1 for d in directories if d[:-1] == path)


def wide(count: int) -> Manifest:
    """All in one directory."""
    return of([Directory(b"d"), *(file(b"d/%07d" % i) for i in range(count))])


def deep(count: int) -> Manifest:
    """A hundred in each directory."""
    directories = [Directory(b"%05d" % i) for i in range(count // 100)]
    return of([*directories, *(file(b"%05d/%02d" % divmod(i, 100)) for i in range(count))])


def best_of(times: int, work: Callable[[], object]) -> float:
    def once() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return min(once() for _ in range(times))


@pytest.mark.parametrize("make", [wide, deep])
def test_building_takes_time_in_proportion(make: Callable[[int], Manifest]) -> None:
    few, many = make(10_000), make(100_000)
    # ten times the entries: 10 in theory, 30 would be far from n log n but leaves room for a busy machine
    assert best_of(5, lambda: Tree(many)) < 30 * best_of(5, lambda: Tree(few))


def test_a_page_of_a_large_directory_costs_no_more_than_one_of_a_small_one() -> None:
    few, many = Tree(wide(1000)), Tree(wide(100_000))
    page = slice(500, 600)
    assert best_of(20, lambda: many.children(1)[page]) < 10 * best_of(20, lambda: few.children(1)[page])


def test_lookups_grow_with_the_logarithm() -> None:
    few, many = Tree(wide(1000)), Tree(wide(100_000))
    once = [b"%07d" % i for i in range(0, 1000, 7)]
    slow, fast = (best_of(5, lambda t=tree: [t.lookup(1, n) for n in once]) for tree in (many, few))
    assert slow < 10 * fast


def test_a_tree_takes_little_more_than_its_manifest() -> None:
    manifest = deep(100_000)
    tracemalloc.start()
    try:
        tree = Tree(manifest)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 24 * len(tree)
