"""How much a source may hold and how long it may take; and what an opening carries along.

Every wait and every size in this room is bounded by a number here, so the daemon's configuration can
name it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ckptfs.errors import Interrupted
from ckptfs.source.base import FetchProgress

Extract = Literal["auto", "yes", "no"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a source may cost."""

    #: The largest checkpoint, in logical bytes (the limit of the service that ckptfs follows).
    max_bytes: int = 500 * 10**9
    #: The most files, directories and links. The manifest is held in memory while it is made.
    max_entries: int = 2_000_000
    connect_timeout_seconds: float = 10.0
    #: The longest silence inside one answer; also the window in which throughput is judged.
    read_timeout_seconds: float = 30.0
    #: Slower than this over a whole window counts as a failed try: an endless drip must end.
    min_throughput_bytes_per_second: int = 10_000
    #: Tries after the first one, for errors that may pass (5xx, 429, resets, timeouts).
    retries: int = 6
    #: An archive that grows by more than this factor *and* beyond the floor is a bomb. Deflate cannot
    #: exceed 1032, real weights stay below 100; a file of zeros passes while it is small.
    max_expansion: int = 1000
    expansion_floor_bytes: int = 10 * 2**30


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Opening:
    """One call of :func:`ckptfs.source.open.open_source`, handed down the room.

    ``credentials`` stay out of the repr: it ends up in logs and tracebacks.
    """

    uri: str
    options: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    extract: Extract = "auto"
    spool: str | None = None
    limits: Limits = field(default_factory=Limits)
    report: FetchProgress | None = None
    cancelled: Callable[[], bool] = _never
    #: Set when the source is closed: threads that still work for it end.
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def is_over(self) -> bool:
        return self.ended.is_set() or self.cancelled()

    def check_cancelled(self) -> None:
        """Raise :class:`~ckptfs.errors.Interrupted` when the creation was cancelled."""
        if self.is_over():
            raise Interrupted("the creation was cancelled while its source was being read")

    def sleep(self, seconds: float) -> None:
        """Wait, but notice a cancellation within a fifth of a second."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check_cancelled()
            time.sleep(min(left, 0.2))
