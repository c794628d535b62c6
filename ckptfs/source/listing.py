"""A source whose entries are all known at opening: a directory, a prefix, a zip, a plain tar, one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ckptfs.errors import SourceNotFound, SourceTooLarge
from ckptfs.source.base import SourceEntry, SourceFile
from ckptfs.source.limits import Limits


def _nothing() -> None:
    return None


class Listing:
    """Collects entries under the limits, then is the :class:`~ckptfs.source.base.Source`.

    ``label`` is how messages name the source; it holds no secrets.
    """

    sequential = False

    def __init__(
        self, kind: str, key: str, label: str, limits: Limits, close: Callable[[], None] = _nothing
    ) -> None:
        self.kind = kind
        self.key = key
        self._label = label
        self._limits = limits
        self._close = close
        self._entries: list[SourceEntry] = []
        self._known_bytes = 0
        #: None when a file's size is not known before it is read.
        self.total_bytes: int | None = 0

    def add(self, entry: SourceEntry) -> None:
        self._entries.append(entry)
        check_entries(self._label, len(self._entries), self._limits)
        if not isinstance(entry, SourceFile):
            return
        if entry.size_bytes is None:
            self.total_bytes = None
            return
        self._known_bytes += entry.size_bytes
        check_size(self._label, self._known_bytes, self._limits)
        if self.total_bytes is not None:
            self.total_bytes = self._known_bytes

    def check_not_empty(self) -> None:
        if not self._entries:
            raise SourceNotFound(f"{self._label} is empty: there is nothing to make a checkpoint of")

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterator[SourceEntry]:
        return iter(self._entries)

    def close(self) -> None:
        self._close()


def check_size(label: str, size_bytes: int, limits: Limits) -> None:
    """Refuse what is over the largest checkpoint."""
    if size_bytes > limits.max_bytes:
        raise SourceTooLarge(
            f"{label} holds at least {size_bytes:,} bytes, more than the {limits.max_bytes:,} that one "
            "checkpoint may have (max_checkpoint_bytes in the daemon's configuration)"
        )


def check_entries(label: str, count: int, limits: Limits) -> None:
    """Refuse more files than a manifest may have."""
    if count > limits.max_entries:
        raise SourceTooLarge(
            f"{label} holds more than {limits.max_entries:,} files, directories and links, the most that one "
            "checkpoint may have (max_entries in the daemon's configuration)"
        )
