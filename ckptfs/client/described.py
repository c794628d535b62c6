"""What both faces' checkpoint objects know: the last record that the daemon gave."""

from __future__ import annotations

from ckptfs.model.records import CheckpointInfo, Progress


class Described:
    """A checkpoint as of the last look. ``refresh`` looks again."""

    def __init__(self, info: CheckpointInfo) -> None:
        self.info = info

    @property
    def id(self) -> str:
        """``b3:…``, the digest of its manifest; before it is ready the creation's, ``c-…``."""
        return self.info.id

    @property
    def status(self) -> str:
        """``new``, ``downloading``, ``ready``, ``failed`` or ``archived``."""
        return self.info.status

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def size(self) -> int:
        """Logical bytes."""
        return self.info.size

    @property
    def billed_size(self) -> int:
        """Bytes that are charged: once, by size."""
        return self.info.billed_size

    @property
    def reason(self) -> str:
        """Why it failed; empty otherwise."""
        return self.info.reason

    @property
    def progress(self) -> Progress | None:
        return self.info.progress

    @property
    def reference(self) -> str:
        """What finds this very checkpoint, also when it was renamed or became ready meanwhile."""
        return self.info.creation or self.info.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.status} {self.id}>"
