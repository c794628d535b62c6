"""Follow a path through the symbolic links of a checkpoint, as the kernel would on the mount."""

from __future__ import annotations

from ckptfs.model.manifest import Link
from ckptfs.model.tree import ROOT, Tree

#: As Linux's MAXSYMLINKS: more is a loop.
MAX_LINKS = 40


def resolve(tree: Tree, path: bytes) -> int | None:
    """The node at ``path`` with all links followed, the last one too; None when there is none.

    Admission refused links that leave the checkpoint, so an absolute target is just not found.
    """
    pending = path.split(b"/")[::-1]
    node = ROOT
    followed = 0
    while pending:
        name = pending.pop()
        if tree.kind(node) != "d":  # not even "." or a slash may follow
            return None
        if name in (b"", b"."):
            continue
        if name == b"..":
            node = tree.parent(node)
            continue
        child = tree.lookup(node, name)
        if child is None:
            return None
        entry = tree.entry(child)
        if not isinstance(entry, Link):
            node = child
            continue
        followed += 1
        if followed > MAX_LINKS or entry.target.startswith(b"/"):
            return None
        pending += entry.target.split(b"/")[::-1]
    return node
