"""A creation's progress: a bar on a terminal, plain lines elsewhere. Both go to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import click

from ckptfs.cli import rendering
from ckptfs.client.calls import Step
from ckptfs.model.records import CheckpointInfo, Progress
from ckptfs.model.sizes import format_bytes, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN_INTERVAL_SECONDS = 5.0  # a log is read later: a line now and then, and at each new phase


class Watcher(Protocol):
    def __call__(self, info: CheckpointInfo) -> None: ...


def describe(progress: Progress) -> str:
    """`downloading 1.2 GB of 4.3 GB (28 %), 210 MB/s, 15 s left, 3 of 12 files`"""
    done, total = progress.bytes_done, progress.bytes_total
    parts = []
    if total:
        parts.append(f"{format_bytes(done)} of {format_bytes(total)} ({100 * done // total} %)")
    elif done:
        parts.append(format_bytes(done))
    if progress.rate_bytes_per_second > 0:
        parts.append(f"{format_bytes(int(progress.rate_bytes_per_second))}/s")
    if progress.eta_seconds is not None:
        parts.append(f"{format_duration(progress.eta_seconds)} left")
    if progress.files_total:
        parts.append(f"{progress.files_done} of {rendering.count(progress.files_total, 'file')}")
    if progress.bytes_reused:
        parts.append(f"{format_bytes(progress.bytes_reused)} was here already")
    return f"{progress.phase} {', '.join(parts)}".strip()


class PlainProgress:
    """A line every few seconds and at each new phase."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._phase = ""
        self._said_at = float("-inf")

    def __call__(self, info: CheckpointInfo) -> None:
        progress = info.progress
        if progress is None or not progress.phase:
            return
        now = self._clock()
        if progress.phase != self._phase or now - self._said_at >= PLAIN_INTERVAL_SECONDS:
            self._phase, self._said_at = progress.phase, now
            self._say(f"{rendering.safe(info.name)}: {describe(progress)}")


class TerminalProgress:
    """One line that is drawn again and again: phase, bar, bytes, rate, time left."""

    def __enter__(self) -> TerminalProgress:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.fields[phase]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[bytes]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, phase="starting", bytes="", rate="", left="")
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, info: CheckpointInfo) -> None:
        progress = info.progress
        if progress is None:
            return
        done, total = progress.bytes_done, progress.bytes_total
        rate, left = progress.rate_bytes_per_second, progress.eta_seconds
        self._bars.update(
            self._task,
            total=total or None,
            completed=done,
            phase=progress.phase or info.status,
            bytes=f"{format_bytes(done)} of {format_bytes(total)}" if total else format_bytes(done),
            rate=f"{format_bytes(int(rate))}/s" if rate > 0 else "",
            left=f"{format_duration(left)} left" if left is not None else "",
        )


@contextmanager
def _plain() -> Iterator[Watcher]:
    yield PlainProgress(rendering.note)


def watcher() -> AbstractContextManager[Watcher]:
    """What draws progress here: by whether standard error is a terminal."""
    return TerminalProgress() if sys.stderr.isatty() else _plain()


@contextmanager
def steps(label: str, *, hidden: bool) -> Iterator[Callable[[Step[Any]], None] | None]:
    """A bar for a call that says how far it is; None where nobody would see it."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=0, label=label, file=sys.stderr) as bar:

        def watch(step: Step[Any]) -> None:
            if step.total:
                bar.length = step.total
                bar.update(step.done - bar.pos)

        yield watch
