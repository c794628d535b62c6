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
    pending = [c for c in reversed(path.split(b"/")) if c not in (b"", b".")]
    node = ROOT
    followed = 0
    while pending:
        name = pending.pop()
        if name == b"..":
            node = tree.parent(node)
            continue
        child = tree.lookup(node, name) if tree.kind(node) == "d" else None
        if child is None:
            return None
        entry = tree.entry(child)
        if not isinstance(entry, Link):
            node = child
            continue
        followed += 1
        if followed > MAX_LINKS or entry.target.startswith(b"/"):
            return None
        pending += [c for c in reversed(entry.target.split(b"/")) if c not in (b"", b".")]
    return node
