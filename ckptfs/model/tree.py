"""A manifest as a tree of nodes, for the mount and for `tree`.

Node 0 is the root, node i+1 is entry i of the manifest: a persistent number, from which the mount
makes inode numbers. Nothing is kept but two arrays of numbers: entries are sorted by path, so a name
is found by bisection, and siblings are in byte order of their names.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, overload

from ckptfs.model.manifest import Directory, Entry, File, Link, Manifest

ROOT = 0

NodeKind = Literal["d", "f", "l"]


class Tree:
    """The immutable tree of one checkpoint."""

    def __init__(self, manifest: Manifest) -> None:
        #: The manifest's: entry i is node i + 1.
        self.entries = manifest.entries
        count = len(self.entries) + 1
        # The children of node n are _children[_first[n] : _first[n + 1]], in ascending order.
        self._parents = array("I", bytes(4 * count))
        self._first = array("I", bytes(4 * (count + 1)))
        self._subdirectories = array("I", bytes(4 * count))
        self._fill()

    def _fill(self) -> None:
        directories = {b"": ROOT}
        counts, subdirectories, parents = self._first, self._subdirectories, self._parents
        for node, entry in enumerate(self.entries, 1):
            parent = directories[entry.path.rpartition(b"/")[0]]
            parents[node] = parent
            counts[parent + 1] += 1
            if type(entry) is Directory:
                directories[entry.path] = node
                subdirectories[parent] += 1
        for node in range(1, len(counts)):
            counts[node] += counts[node - 1]
        self._children = array("I", bytes(4 * len(self.entries)))
        places = array("I", self._first)
        for node in range(1, len(parents)):
            parent = parents[node]
            self._children[places[parent]] = node
            places[parent] += 1

    def __len__(self) -> int:
        """The number of nodes, the root included."""
        return len(self.entries) + 1

    def entry(self, node: int) -> Entry | None:
        """The manifest's entry; None for the root. IndexError when there is no such node."""
        if not 0 <= node <= len(self.entries):
            raise IndexError(node)
        return self.entries[node - 1] if node else None

    def name(self, node: int) -> bytes:
        """The last component of the node's path; empty for the root."""
        return self._path(node).rpartition(b"/")[2]

    def kind(self, node: int) -> NodeKind:
        entry = self.entry(node)
        if isinstance(entry, File):
            return "f"
        return "l" if isinstance(entry, Link) else "d"

    def size(self, node: int) -> int:
        """Bytes as `stat` shows them: of a file its content, of a link its target, of a directory 0."""
        entry = self.entry(node)
        if isinstance(entry, File):
            return entry.size_bytes
        return len(entry.target) if isinstance(entry, Link) else 0

    def nlink(self, node: int) -> int:
        """2 plus its sub-directories for a directory, as on a plain file system (find relies on it)."""
        return 2 + self._subdirectories[node] if self.kind(node) == "d" else 1

    def parent(self, node: int) -> int:
        """The directory that the node lies in; the root is its own."""
        return self._parents[node]

    def children(self, node: int) -> Sequence[tuple[bytes, int]]:
        """``(name, node)`` of what lies in a directory, by name. Made on access, so any slice is cheap."""
        return _Children(self, self._children, self._first[node], self._first[node + 1])

    def child_nodes(self, node: int, first: int = 0) -> array[int]:
        """The node numbers of what lies in a directory, by name, from the position ``first``."""
        return self._children[self._first[node] + first : self._first[node + 1]]

    def lookup(self, node: int, name: bytes) -> int | None:
        """The child of that name. ``.`` and ``..`` are not children."""
        if not name or b"/" in name:
            return None
        path = self._path(node)
        return self._at(path + b"/" + name if path else name)

    def find(self, path: bytes) -> int | None:
        """The node at a path from the root; ``""``, ``.`` and superfluous slashes are understood.

        Links are not followed and ``..`` finds nothing.
        """
        components = [c for c in path.split(b"/") if c not in (b"", b".")]
        return self._at(b"/".join(components)) if components else ROOT

    def _path(self, node: int) -> bytes:
        entry = self.entry(node)
        return entry.path if entry else b""

    def _at(self, path: bytes) -> int | None:
        index = bisect_left(self.entries, path, key=_path_of)
        if index < len(self.entries) and self.entries[index].path == path:
            return index + 1
        return None


def _path_of(entry: Entry) -> bytes:
    return entry.path


class _Children(Sequence[tuple[bytes, int]]):
    """A window on the tree's array of children."""

    __slots__ = ("_nodes", "_start", "_stop", "_tree")

    def __init__(self, tree: Tree, nodes: array[int], start: int, stop: int) -> None:
        self._tree, self._nodes, self._start, self._stop = tree, nodes, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> tuple[bytes, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[bytes, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[bytes, int] | list[tuple[bytes, int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        node = self._nodes[self._start + index]
        return self._tree.name(node), node
