"""The one boundary around every handler: nothing but FUSEError leaves.

pyfuse3 ends its loop when anything else does: the mount dies and its readers hang until the daemon
ends. (Cancellation goes through; it is no Exception, and comes only when the session stops.)
"""

from __future__ import annotations

import errno
import functools
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import structlog
from pyfuse3 import FUSEError

from ckptfs.fuse.errno_table import answer_for, is_fault

log = structlog.get_logger(__name__)

# One line for each handler and errno in this time; the rest are counted in the next line.
_LOG_SECONDS = 5.0


class Faults:
    """Counts what went wrong, and logs it, but not a thousand times for a thousand readers."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter(fuse_faults=0)
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def answer(self, handler: str, args: tuple[Any, ...], error: Exception) -> FUSEError:
        """What the kernel is told about an exception."""
        number = answer_for(error)
        if is_fault(error):
            self.counters["fuse_faults"] += 1
            self._say(handler, args, number, error)
        return FUSEError(number)

    def _say(self, handler: str, args: tuple[Any, ...], number: int, error: Exception) -> None:
        now = time.monotonic()
        last, unsaid = self._said.get((handler, number), (-_LOG_SECONDS, 0))
        if now - last < _LOG_SECONDS:
            self._said[handler, number] = (last, unsaid + 1)
            return
        self._said[handler, number] = (now, 0)
        log.error(
            "a request failed",
            request=handler,
            inode=args[0] if args and isinstance(args[0], int) else None,
            answer=errno.errorcode.get(number, str(number)),
            reason=str(error),
            unsaid_before=unsaid,
            exc_info=error,
        )


class HasFaults(Protocol):
    faults: Faults


_S = TypeVar("_S", bound=HasFaults)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Handler = Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]


def boundary(handler: _Handler[_S, _P, _R]) -> _Handler[_S, _P, _R]:
    async def guarded(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise self.faults.answer(handler.__name__, args, error) from None

    functools.update_wrapper(guarded, handler)
    return guarded
