"""When a dead worker is started again, and which of the requests that wait are given up. Decisions only.

A worker that is killed from outside, however often, costs its readers a pause. A worker that dies of
what it does must not make them wait for ever. What tells the two apart is not how fast it dies:

- a request that waits gets *strikes* for each death that it lives through: three if the dead worker had
  taken it (it may have died of it) or never became ready, one otherwise. At fifteen it gets EIO, alone.
  A request that a worker answers is forgotten. So a reader sees at most five deaths in its own request,
  or fifteen in others', and a kill every few seconds never adds up.
- when several starts in a row did not become ready, the worker is *looping*: everything that waits gets
  EIO at each death, and pauses between starts grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_STRIKES_MAX = 15
_STRIKES_TAKEN = 3
_STRIKES_WAITING = 1

# A worker that was ready for this long has shown that it can work.
SETTLED_SECONDS = 10.0

# After a start that failed, and after a death soon after being ready that was not a SIGKILL.
_FIRST_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.5, 1.0)


class Death(NamedTuple):
    """``ready_seconds``: how long it was ready; negative: it never was. ``killed``: by SIGKILL, which
    comes from a person or from the kernel out of memory."""

    ready_seconds: float
    killed: bool


class Restarts:
    def __init__(self, *, failed_starts: int, slowest_seconds: float) -> None:
        self._failed_starts_max = failed_starts
        self._slowest_seconds = slowest_seconds
        self._failed_starts = 0
        self._quick_deaths = 0
        self._strikes: dict[int, int] = {}

    @property
    def looping(self) -> bool:
        return self._failed_starts >= self._failed_starts_max

    def died(self, death: Death) -> float:
        """Seconds to wait before the next start."""
        if death.ready_seconds < 0:
            self._failed_starts += 1
            beyond = self._failed_starts - self._failed_starts_max
            if beyond >= 0:
                return min(2.0**beyond, self._slowest_seconds)
            return self._first_pause(self._failed_starts)
        self._failed_starts = 0
        if death.ready_seconds >= SETTLED_SECONDS:
            self._quick_deaths = 0
        if death.killed:
            return 0.0
        self._quick_deaths += 1
        return self._first_pause(self._quick_deaths)

    def condemn(self, taken: Iterable[int], waiting: Iterable[int], death: Death) -> set[int]:
        """Which requests (their identities) get EIO now. To be called after :meth:`died`."""
        before, self._strikes = self._strikes, {}
        condemned = set()
        for identities, strikes in (
            (taken, _STRIKES_TAKEN),
            (waiting, _STRIKES_WAITING if death.ready_seconds >= 0 else _STRIKES_TAKEN),
        ):
            for identity in identities:
                total = before.get(identity, 0) + strikes
                if self.looping or total >= _STRIKES_MAX:
                    condemned.add(identity)
                else:
                    self._strikes[identity] = total
        return condemned

    def _first_pause(self, times: int) -> float:
        pause = _FIRST_PAUSES_SECONDS[min(times, len(_FIRST_PAUSES_SECONDS)) - 1]
        return min(pause, self._slowest_seconds)
