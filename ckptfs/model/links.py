"""Where the symbolic links of a tree lead: none may leave the checkpoint.

Two questions, and a link must pass both. `leaves_by_text` looks at the target alone, as rsync's
safe-links do: counted from the link's directory, no ``..`` may climb over the root. `leaving` follows
targets as the kernel does, through other links: ``up -> ..`` is harmless where it lies, but ``up/..``
from elsewhere may not be. A link that leads nowhere (dangling, a loop, through a file) stays: the
tree never changes, so it never leads anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: PATH_MAX less its NUL: the kernel makes no longer link.
TARGET_LIMIT_BYTES = 4095


def target_problem(path: bytes, target: bytes) -> str:
    """What is wrong with the target of the link at a (normalised) path, in words; empty if nothing is."""
    if not target:
        return "has no target"
    if b"\0" in target:
        return "has a NUL byte in its target"
    if len(target) > TARGET_LIMIT_BYTES:
        return f"has a target of more than {TARGET_LIMIT_BYTES} bytes"
    if target.startswith(b"/"):
        return "points to an absolute path"
    if leaves_by_text(path, target):
        return "points outside the checkpoint"
    return ""


def leaves_by_text(path: bytes, target: bytes) -> bool:
    depth = path.count(b"/")
    for component in target.split(b"/"):
        if component == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif component not in (b"", b"."):
            depth += 1
    return False


@dataclass(slots=True)
class _Walk:
    """One link being followed: where it has come to, and what of its target is left (reversed)."""

    link: bytes
    place: bytes
    rest: list[bytes]


def leaving(links: Mapping[bytes, bytes], is_directory: Callable[[bytes], bool]) -> bytes | None:
    """The first link (in the mapping's order) that leads out of the root through others, or None.

    ``links`` maps paths to targets. Each target is walked once, whatever the links make of each other:
    the time is that of reading all targets.
    """
    # None: leads nowhere, or is being followed just now (then it is a loop, which leads nowhere)
    known: dict[bytes, bytes | None] = {}
    for first in links:
        if first in known:
            continue
        known[first] = None
        walks = [_begin(first, links)]
        while walks:
            walk = walks[-1]
            if not walk.rest:
                known[walk.link] = walk.place
                walks.pop()
                continue
            component = walk.rest[-1]
            if component == b"..":
                if not walk.place:
                    return walk.link
                walk.place = walk.place.rpartition(b"/")[0]
                walk.rest.pop()
                continue
            place = walk.place + b"/" + component if walk.place else component
            if place in links:
                if place not in known:
                    known[place] = None
                    walks.append(_begin(place, links))
                    continue
                led = known[place]
            else:
                # the last component may be anything; what is walked through must be a directory
                led = place if is_directory(place) or len(walk.rest) == 1 else None
            walk.rest.pop()
            if led is None or (walk.rest and not is_directory(led) and led):
                walks.pop()  # known[walk.link] stays None
            else:
                walk.place = led
    return None


def _begin(link: bytes, links: Mapping[bytes, bytes]) -> _Walk:
    components = [c for c in links[link].split(b"/") if c not in (b"", b".")]
    return _Walk(link, link.rpartition(b"/")[0], components[::-1])
