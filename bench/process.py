"""What a server costs while it runs: the processes that it consists of, their CPU time and memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all that descend from it, as they are now."""
    found = [pid]
    for parent in found:  # grows meanwhile
        found += _children(parent)
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants so far, those that have ended included."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # After the name, which may hold anything: utime, stime, and of waited-for children the same.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))
    return ticks / _TICKS_PER_SECOND


def memory_bytes(pid: int, field: str) -> int:
    """Sum over a process and its descendants of a field of /proc/PID/status, such as ``VmRSS``."""
    return sum(_status_bytes(each, field) for each in tree(pid))


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield from map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())


def _status_bytes(pid: int, field: str) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0
