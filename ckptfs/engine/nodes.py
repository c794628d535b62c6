"""The nodes of one checkpoint as stat and readdir show them, and the numbers that they have.

Numbers are derived from persistent facts alone, so that another process understands them too:

- inode 1 is the root of the mount; ``ordinal << 32 | node + 1`` is a node of a checkpoint, where node
  0 is its root directory and node i + 1 its manifest's entry i. Ordinals are never used again, so
  neither are inode numbers;
- a file's handle is its inode number;
- a directory's offsets: 1 after ".", 2 after "..", then 2 + ordinal in the root, whose entries come
  and go, and 3 + position inside a checkpoint, which never changes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from ckptfs.model.chunking import TARGET_CHUNK_BYTES
from ckptfs.model.digest import zero_digest
from ckptfs.model.manifest import DIGEST_BYTES, File, Link
from ckptfs.model.tree import Tree
from ckptfs.store import Checkpoint

ROOT_INODE = 1
NAME_MAX_BYTES = 255
BLOCK_BYTES = 512  # the unit of st_blocks
DIRECTORY_BYTES = 4096  # what ext4 says of a small directory; nobody can do anything with it

NODE_BITS = 32
_NODE_MASK = (1 << NODE_BITS) - 1
DOTS = 2  # offsets that "." and ".." take

DIRECTORY_MODE = stat.S_IFDIR | 0o555
_FILE_MODE = stat.S_IFREG | 0o444
_EXECUTABLE_MODE = stat.S_IFREG | 0o555
_LINK_MODE = stat.S_IFLNK | 0o777


class Answer(OSError):
    """An errno that is the right answer to what was asked, not a fault: nothing to log."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


class Attributes(NamedTuple):
    """What stat shows. Owner is root, all three times are ``time_ns``."""

    inode: int
    mode: int
    nlink: int
    size_bytes: int
    blocks: int
    time_ns: int


#: One entry of a listing: name, offset of the next, and the six fields of :class:`Attributes`. A plain
#: tuple, because a directory has many: naming the fields of each would take longer than all the rest.
Listed = tuple[bytes, int, int, int, int, int, int, int]


class Loaded:
    """A checkpoint whose manifest is in memory."""

    __slots__ = ("base", "checkpoint", "own_blobs", "time_ns", "tree")

    def __init__(self, checkpoint: Checkpoint, tree: Tree, own_blobs: dict[int, int]) -> None:
        self.checkpoint = checkpoint
        self.tree = tree
        self.own_blobs = own_blobs
        self.base = (checkpoint.ordinal << NODE_BITS) + 1
        self.time_ns = nanoseconds(checkpoint.created)

    def attributes(self, node: int) -> Attributes:
        tree = self.tree
        entry = tree.entry(node)
        inode = self.base + node
        if type(entry) is File:
            mode = _EXECUTABLE_MODE if entry.executable else _FILE_MODE
            return Attributes(inode, mode, 1, entry.size_bytes, _blocks(entry), self.time_ns)
        if type(entry) is Link:
            return Attributes(inode, _LINK_MODE, 1, len(entry.target), 0, self.time_ns)
        return Attributes(inode, DIRECTORY_MODE, tree.nlink(node), DIRECTORY_BYTES, 0, self.time_ns)


def tree_children(loaded: Loaded, node: int, dots: list[Listed], start: int) -> Iterator[Listed]:
    yield from dots
    # Written out: a listing of 100,000 files spends most of its time here.
    tree, base, time_ns, entries = loaded.tree, loaded.base, loaded.time_ns, loaded.tree.entries
    parent = tree.entry(node)
    cut = len(parent.path) + 1 if parent else 0
    first = max(0, start - DOTS)
    for following, child in enumerate(tree.child_nodes(node, first), first + DOTS + 1):
        entry = entries[child - 1]
        if type(entry) is File and (size := entry.size_bytes) < TARGET_CHUNK_BYTES:  # no hole in it
            mode = _EXECUTABLE_MODE if entry.executable else _FILE_MODE
            blocks = (size + BLOCK_BYTES - 1) // BLOCK_BYTES
            yield entry.path[cut:], following, base + child, mode, 1, size, blocks, time_ns
        else:
            yield entry.path[cut:], following, *loaded.attributes(child)


def split(inode: int) -> tuple[int, int]:
    return inode >> NODE_BITS, (inode & _NODE_MASK) - 1


def check_node(loaded: Loaded, node: int) -> None:
    if not 0 <= node <= len(loaded.tree):
        raise Answer(errno.ESTALE)


def nanoseconds(seconds: float) -> int:
    """Through microseconds: a float of seconds since 1970 has no more digits than that."""
    return round(seconds * 1_000_000) * 1000


def _blocks(file: File) -> int:
    """What the file takes, in units of 512 bytes. Full grid chunks of zeros are holes."""
    size = file.size_bytes
    if size >= TARGET_CHUNK_BYTES:
        zero = zero_digest(TARGET_CHUNK_BYTES)
        digests = file.digests
        at = digests.find(zero)
        while at >= 0:
            if at % DIGEST_BYTES == 0 and file.lengths[at // DIGEST_BYTES] == TARGET_CHUNK_BYTES:
                size -= TARGET_CHUNK_BYTES
            at = digests.find(zero, at + 1)
    return -(-size // BLOCK_BYTES)
