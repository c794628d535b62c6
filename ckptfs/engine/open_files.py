"""Which files are open through the mount, and how often: while a file is, its checkpoint's bytes must stay.

A handle that was opened in an earlier process (*inherited*) is counted too, but may have been closed when
that process died. Which of a file's handles is closed nobody can say, so what was opened here goes first:
what is left of the inherited ones is what may be told apart no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from ckptfs.engine.nodes import split
from ckptfs.engine.reader import FileReader


class OpenFile:
    """``handles`` of one file, of which ``inherited`` at most are of an earlier process. ``reader`` is made
    when it is first needed."""

    __slots__ = ("handles", "inherited", "reader")

    def __init__(self, reader: FileReader | None = None, *, inherited: int = 0) -> None:
        self.reader = reader
        self.handles = self.inherited = inherited


class OpenFiles:
    """``on_close`` is told of a file whose last handle was closed, ``on_idle`` of a checkpoint (its ordinal)
    that has no open file any more."""

    def __init__(self, on_close: Callable[[int, FileReader], None], on_idle: Callable[[int], None]) -> None:
        self._files: dict[int, OpenFile] = {}
        self._of: Counter[int] = Counter()  # ordinal -> handles
        self._on_close = on_close
        self._on_idle = on_idle

    def __contains__(self, inode: int) -> bool:
        return inode in self._files

    def get(self, inode: int) -> OpenFile | None:
        return self._files.get(inode)

    def total(self) -> int:
        return self._of.total()

    def count(self, ordinal: int) -> int:
        """Handles of a checkpoint's files."""
        return self._of[ordinal]

    def inherited(self, ordinal: int) -> int:
        """Of these, those that may be closed already."""
        return sum(file.inherited for inode, file in self._files.items() if split(inode)[0] == ordinal)

    def adopt(self, handles: Mapping[int, int]) -> None:
        """inode -> handles of an earlier process, never less than there are."""
        for inode, count in handles.items():
            if inode not in self._files:
                self._files[inode] = OpenFile(inherited=count)
                self._of[split(inode)[0]] += count

    def disown(self, ordinal: int) -> None:
        """Inherited handles of a checkpoint do not count any more."""
        for inode, file in list(self._files.items()):
            if split(inode)[0] == ordinal and file.inherited:
                handles, file.inherited = file.inherited, 0
                self.close(inode, handles)

    def begin(self, ordinal: int) -> None:
        """A handle is about to be opened, and counts: :meth:`opened` or :meth:`give_up` follows."""
        self._of[ordinal] += 1

    def opened(self, inode: int, reader: FileReader | None) -> None:
        """``reader``: a new one, or None for the one that is there."""
        file = self._files.setdefault(inode, OpenFile(reader))
        file.reader = reader or file.reader
        file.handles += 1

    def give_up(self, ordinal: int) -> None:
        self._of[ordinal] -= 1
        if not self._of[ordinal]:
            del self._of[ordinal]
            self._on_idle(ordinal)

    def close(self, inode: int, handles: int = 1) -> None:
        """So many handles less. One that is not known is not counted."""
        file = self._files.get(inode)
        if file is None:
            return
        file.handles -= handles
        file.inherited = min(file.inherited, file.handles)
        if file.handles <= 0:
            del self._files[inode]
            if file.reader is not None:
                self._on_close(inode, file.reader)
        for _ in range(handles):
            self.give_up(split(inode)[0])
