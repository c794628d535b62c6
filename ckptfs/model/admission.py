"""Admission: from the names that a source yields, which nobody may trust, to the tree of a checkpoint.

Nothing is ever written to these paths, but a job will see them: what could lead it astray (absolute
paths, ``..``, links that leave the checkpoint, one name for two things) or harm it (devices, set-id
programs) is refused, naming the path. See also docs/format.md, "Manifest".
"""

from __future__ import annotations

from enum import Enum

from ckptfs.errors import SourceRefused
from ckptfs.model import links as following
from ckptfs.model.manifest import Directory, Link
from ckptfs.model.names import show_path

#: NAME_MAX and PATH_MAX of Linux.
COMPONENT_LIMIT_BYTES = 255
PATH_LIMIT_BYTES = 4096

#: Bounds the memory of a creation; ImageNet as single files would still fit.
DEFAULT_MAX_ENTRIES = 2_000_000


#: Following links takes time for every byte of their targets: some seconds for so many. A hub snapshot
#: has 80 bytes a link.
TARGETS_LIMIT_BYTES = 16 * 1024 * 1024


class Kind(Enum):
    DIRECTORY = "directory"
    FILE = "file"
    LINK = "symbolic link"


class Admission:
    """Collects the entries of a new checkpoint. Every call returns the entry's normalised path."""

    def __init__(self, *, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._kinds: dict[bytes, Kind] = {}
        self._targets: dict[bytes, bytes] = {}
        self._targets_bytes = 0

    def __len__(self) -> int:
        """How many entries there are, implied directories included."""
        return len(self._kinds)

    def kind(self, path: bytes) -> Kind | None:
        """What lies at a normalised path so far."""
        return Kind.DIRECTORY if path == b"" else self._kinds.get(path)

    def directory(self, path: bytes) -> bytes:
        """A directory; it may be repeated. The root (``.``) is one, and gets no entry."""
        normal = normalise(path)
        if normal and self._kinds.get(normal) is not Kind.DIRECTORY:
            self._add(normal, Kind.DIRECTORY)
        return normal

    def file(self, path: bytes, executable: bool = False) -> bytes:
        """A regular file. The engine makes its manifest entry when its content is known."""
        normal = normalise(path)
        self._add(normal, Kind.FILE)
        return normal

    def link(self, path: bytes, target: bytes) -> bytes:
        """A symbolic link. Whether it leaves the checkpoint through other links is known at `finish`."""
        normal = normalise(path)
        problem = following.target_problem(normal, target)
        if problem:
            raise _refused(normal, f"is a link that {problem} ({show_path(target[:200])})")
        self._targets_bytes += len(target)
        if self._targets_bytes > TARGETS_LIMIT_BYTES:
            raise _refused(normal, f"brings the targets of links to more than {TARGETS_LIMIT_BYTES} bytes")
        self._add(normal, Kind.LINK)
        self._targets[normal] = target
        return normal

    def special(self, path: bytes, what: str) -> None:
        """Anything else: always refused. ``what`` says what it is ("a device", "a set-uid file")."""
        raise _refused(path, f"is {what}, which a checkpoint may not hold")

    def finish(self) -> list[Directory | Link]:
        """The entries of all directories, implied ones included, and links, in path order."""
        stray = following.leaving(self._targets, lambda path: self._kinds.get(path) is Kind.DIRECTORY)
        if stray is not None:
            target = show_path(self._targets[stray][:200])
            raise _refused(stray, f"is a link that leaves the checkpoint through other links ({target})")
        return [
            Directory(path) if kind is Kind.DIRECTORY else Link(path, self._targets[path])
            for path, kind in sorted(self._kinds.items())
            if kind is not Kind.FILE
        ]

    def _add(self, path: bytes, kind: Kind) -> None:
        if not path:
            raise _refused(path, f"is the checkpoint's root, and a {kind.value} too")
        present = self._kinds.get(path)
        if present is not None:
            again = "occurs twice" if present is kind else f"is a {present.value} and a {kind.value}"
            raise _refused(path, again)
        self._add_parents(path)
        self._put(path, kind)

    def _add_parents(self, path: bytes) -> None:
        missing: list[bytes] = []
        parent = path.rpartition(b"/")[0]
        while parent:
            present = self._kinds.get(parent)
            if present is Kind.DIRECTORY:
                break
            if present is not None:
                raise _refused(path, f"lies below {show_path(parent)}, which is a {present.value}")
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for directory in reversed(missing):
            self._put(directory, Kind.DIRECTORY)

    def _put(self, path: bytes, kind: Kind) -> None:
        if len(self._kinds) >= self._max_entries:
            raise SourceRefused(f"the source has more than {self._max_entries} entries", path=show_path(path))
        self._kinds[path] = kind


def normalise(path: bytes) -> bytes:
    """A relative path without ``.``, doubled and trailing slashes; ``b""`` is the root.

    SourceRefused for what no checkpoint may hold: an absolute path, ``..``, a NUL byte, nothing at
    all, a component or path that no Linux file system would take.
    """
    if not path:
        raise _refused(path, "is an empty path")
    if path.startswith(b"/"):
        raise _refused(path, "is an absolute path")
    if b"\0" in path:
        raise _refused(path, "has a NUL byte in its path")
    components = [c for c in path.split(b"/") if c not in (b"", b".")]
    if b".." in components:
        raise _refused(path, 'has ".." in its path')
    if any(len(c) > COMPONENT_LIMIT_BYTES for c in components):
        raise _refused(path, f"has a name of more than {COMPONENT_LIMIT_BYTES} bytes")
    normal = b"/".join(components)
    if len(normal) > PATH_LIMIT_BYTES:
        raise _refused(path, f"is a path of more than {PATH_LIMIT_BYTES} bytes")
    return normal


def _refused(path: bytes, why: str) -> SourceRefused:
    shown = show_path(path if len(path) <= 300 else path[:300] + b"...")
    return SourceRefused(f'the entry "{shown}" {why}', path=show_path(path))
