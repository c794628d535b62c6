"""`ckptfsd run` with a mount: this process becomes the holder, which starts the worker.

By execve, so that number, signals and the service manager's idea of the main process stay, and so that
nothing of what was imported to read the configuration stays in the holder's memory.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import ckptfs
import ckptfsd
from ckptfsd.config import Config, Effective
from ckptfsd.holder.mount import end_kept
from ckptfsd.holder.options import Options, program
from ckptfsd.holder.systemd import Manager


def become_holder(effective: Effective, arguments: list[str]) -> NoReturn:
    """``arguments``: what `ckptfsd run` was told, for the workers. Raises OSError."""
    options = holder_options(effective.config, worker_command(sys.executable, arguments))
    holder = program(options, python=sys.executable, roots=source_roots())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(holder.argv[0], holder.argv, {**os.environ, **holder.environment})


def without_mount() -> str:
    """This daemon mounts nothing, and the one before it in this unit may have: that mount, which the service
    manager kept for a restart, is taken away. Answers what there is to say."""
    manager = Manager(dict(os.environ))  # a copy: readiness is still to be said
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return end_kept(manager)


def holder_options(config: Config, worker: list[str]) -> Options:
    mount, holder = config.mount, config.holder
    return Options(
        mount=mount.path,
        worker=worker,
        store=os.path.realpath(config.store.path),
        read_ahead_kib=mount.read_ahead_kib,
        max_background=mount.max_background,
        passthrough=mount.passthrough,
        when_lost=holder.when_lost,
        start_seconds=holder.start_timeout_seconds,
        stop_seconds=holder.stop_timeout_seconds,
        pause_seconds=holder.pause_timeout_seconds,
        hang_seconds=holder.hang_timeout_seconds,
        failed_starts=holder.failed_starts,
        spare=holder.spare_worker,
        slowest_seconds=holder.slowest_restart_seconds,
        log_format=config.log.format,
    )


def worker_command(python: str, arguments: list[str]) -> list[str]:
    """The command line of a worker. -P: what lies in the working directory is not imported."""
    return [python, "-P", "-m", "ckptfsd", "worker", *arguments]


def source_roots() -> list[str]:
    """The directories that hold our two packages; the holder runs without the site module."""
    roots = [os.path.dirname(os.path.dirname(os.path.abspath(m.__file__ or ""))) for m in (ckptfs, ckptfsd)]
    return sorted(set(roots))
