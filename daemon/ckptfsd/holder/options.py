"""What the holder is told: one JSON object in its environment, written by `ckptfsd run`."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

#: The variables that a holder is started with (boot, main), and that it does not leave to its workers.
ROOTS, OPTIONS = "CKPTFSD_HOLDER_ROOTS", "CKPTFSD_HOLDER_OPTIONS"


class Options(NamedTuple):
    """Names, units and defaults; docs/operations.md is made for people, this is what they become."""

    mount: str
    worker: list[str]  # the command line of the worker
    store: str = ""  # the store that the mount shows: another one gets another mount
    allow_other: bool | None = None  # None: where the system lets us
    read_ahead_kib: int = 8192
    max_background: int = 4096
    passthrough: bool = True
    max_stack_depth: int = 1
    # False: do as on a kernel that cannot resend (before 6.9). For tests.
    resend: bool = True
    # When somebody else unmounts or aborts the mount: "remount" or "stop".
    when_lost: str = "remount"
    # A worker has this long to be ready, and to stop, before it is killed.
    start_seconds: float = 60.0
    stop_seconds: float = 20.0
    # How long the old worker of an upgrade may take to let go, and one that is prepared to be ready.
    pause_seconds: float = 10.0
    # A worker that has begun to send heartbeats and stops doing so is killed after this. 0: never.
    hang_seconds: float = 90.0
    # Starts in a row that did not become ready, after which what waits gets EIO and pauses grow.
    failed_starts: int = 5
    # Whether a second worker waits, prepared, for the death of the one that serves.
    spare: bool = True
    # The longest pause between two starts.
    slowest_seconds: float = 15.0
    log_format: str = "text"  # or "json"


def parse(text: str) -> Options:
    """Raises ValueError or TypeError with what is wrong."""
    values = json.loads(text)
    options = Options(**values)
    if not options.worker:
        raise ValueError("no worker to start")
    if options.when_lost not in ("remount", "stop"):
        raise ValueError(f"when_lost is 'remount' or 'stop', not {options.when_lost!r}")
    return options


def render(options: Options) -> str:
    return json.dumps(options._asdict())


class Program(NamedTuple):
    """How a holder is started: its command line, and what its environment has more than ours."""

    argv: list[str]
    environment: dict[str, str]


def program(options: Options, *, python: str, roots: list[str]) -> Program:
    """``roots``: the directories that hold ``ckptfs`` and ``ckptfsd``.

    With -I -S: the site module and what hooks into it would add half the holder's memory again. So it is
    told where its source roots are. Nothing of it needs the mountpoint on its command line, but people do.
    """
    boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")
    told = {ROOTS: ":".join(roots), OPTIONS: render(options)}
    return Program([python, "-I", "-S", boot, options.mount], told)
