"""When a dead worker is started again, and which of the requests that wait are given up. Decisions only.

A worker that is killed from outside, however often, costs its readers a pause. A worker that dies of
what it does must not make them wait for ever. What tells the two apart is not how fast it dies but how,
and what it answered before: SIGKILL comes from a person, or from the kernel out of memory.

- A request that waits gets *strikes* for each death that it lives through: three if the dead worker had
  taken it (it may have died of it) or failed to start, one otherwise and after SIGKILL. At fifteen it gets
  EIO, alone. A request that a worker answers is forgotten. So a reader sees at most five crashes in its
  own request, or fifteen deaths in all, and a kill every few seconds never adds up.
- When several starts in a row failed, the worker is *looping*: everything that waits gets EIO at each
  death, and pauses between starts grow. A start that ends with SIGKILL counts for a third of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_STRIKES_MAX = 15
_STRIKES_SUSPECT = 3
_STRIKES_BYSTANDER = 1

# A worker that was ready for this long has shown that it can work.
SETTLED_SECONDS = 10.0

# After a start that failed, and after a death soon after being ready that was not a SIGKILL.
_FIRST_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.5, 1.0)


class Death(NamedTuple):
    """``ready_seconds``: how long it was ready; negative: it never was. ``killed``: by SIGKILL."""

    ready_seconds: float
    killed: bool

    @property
    def failed_start(self) -> bool:
        return self.ready_seconds < 0


class Restarts:
    def __init__(self, *, failed_starts: int, slowest_seconds: float) -> None:
        self._looping_from = 3 * failed_starts
        self._slowest_seconds = slowest_seconds
        self._failures = 0  # thirds of a failed start, in a row
        self._quick_deaths = 0
        self._strikes: dict[int, int] = {}

    @property
    def looping(self) -> bool:
        return self._failures >= self._looping_from

    def died(self, death: Death) -> float:
        """Seconds to wait before the next start."""
        if death.failed_start:
            self._failures += 1 if death.killed else 3
            if self.looping:
                return min(2.0 ** ((self._failures - self._looping_from) // 3), self._slowest_seconds)
            return 0.0 if death.killed else self._first_pause(self._failures // 3)
        self._failures = 0
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
        for identities, suspect in ((taken, True), (waiting, death.failed_start)):
            strikes = _STRIKES_SUSPECT if suspect and not death.killed else _STRIKES_BYSTANDER
            for identity in identities:
                total = before.get(identity, 0) + strikes
                if self.looping or total >= _STRIKES_MAX:
                    condemned.add(identity)
                else:
                    self._strikes[identity] = total
        return condemned

    def _first_pause(self, times: int) -> float:
        pause = _FIRST_PAUSES_SECONDS[min(max(times, 1), len(_FIRST_PAUSES_SECONDS)) - 1]
        return min(pause, self._slowest_seconds)
