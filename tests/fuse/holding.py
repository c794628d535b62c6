"""Real mounts of tests/fuse/mirror_worker.py, alone or below a holder, that always go away again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mirror_worker import read_stats
from talking import talking

import ckptfs
import ckptfsd
from ckptfs.fuse import mountinfo
from ckptfs.testing import fusectl
from ckptfsd.holder.options import Options, program

MIRROR = str(Path(__file__).with_name("mirror_worker.py"))
READER = str(Path(__file__).with_name("reader.py"))
ROOTS = [str(Path(module.__file__).parent.parent) for module in (ckptfs, ckptfsd) if module.__file__]

# Far more than any step needs on an idle machine; a test that needs it all has failed.
PATIENCE_SECONDS = 30.0


def eventually(check: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until ``check`` answers something true, and answer that."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def abort(root: str) -> bool:
    """End the connection of the mount at ``root``, as an administrator would through fusectl."""
    mounted = mountinfo.at(root)
    if mounted is None:
        return False
    try:
        fusectl.abort(mounted.minor)
    except FileNotFoundError:
        return False
    return True


class Served:
    """A mount of ``directory``'s files at ``root``. ``process`` is the holder, or the worker alone."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.root = str(folder / "mount")
        self.directory = folder / "files"
        self.stats_path = str(folder / "stats")
        self.log = folder / "log"

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def stats(self) -> dict[str, int]:
        return read_stats(self.stats_path)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def events(self) -> list[str]:
        """What the holder's log says, without times: "event key=value ..."."""
        return [line.split("] ", 1)[1] for line in self.said().splitlines() if "[ckptfsd.holder]" in line]

    # --- With a holder ---------------------------------------------------------------------------------

    def worker_pid(self) -> int:
        """Of the worker that was ready last."""
        ready = [e for e in self.events() if e.startswith(("worker ready", "upgraded"))]
        return int(ready[-1].split("pid=")[1].split()[0]) if ready else 0

    def ready_count(self) -> int:
        return sum(e.startswith(("worker ready", "upgraded")) for e in self.events())

    def wait_ready(self, count: int) -> None:
        eventually(lambda: self.ready_count() >= count)

    def kill_worker(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.worker_pid(), number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def clean_up(served: Served) -> None:
    process = served.process
    workers = _children(process.pid)
    try:
        if process.stdin:
            process.stdin.close()
        else:
            process.terminate()
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        abort(served.root)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.stdout:
            process.stdout.close()
        while mountinfo.at(served.root):
            subprocess.run(["umount", "-l", served.root], check=True)


def _prepare(folder: Path, files: dict[str, bytes]) -> None:
    (folder / "files").mkdir(exist_ok=True)
    (folder / "mount").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)


@contextlib.contextmanager
def served_alone(
    folder: Path, files: dict[str, bytes], *, prelude: str = "", environment: dict[str, str] | None = None
) -> Iterator[tuple[Served, str]]:
    """Without a holder. Also answers what the worker says of passthrough: "native", or why not.
    ``prelude``: Python to run in the worker before anything else."""
    _prepare(folder, files)
    arguments = [MIRROR, str(folder / "files"), str(folder / "stats"), str(folder / "mount")]
    if prelude:
        boot = (
            f"import sys, os, runpy; sys.path[0] = os.path.dirname(sys.argv[1]); del sys.argv[0]; "
            f"{prelude}; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        arguments = ["-c", boot, *arguments]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
    served = Served(process, folder)
    try:
        assert process.stdout
        said = process.stdout.readline().decode().strip()
        assert said, served.said()
        yield served, said
    finally:
        clean_up(served)


def start_holder(folder: Path, *, environment: dict[str, str] | None = None, **options: Any) -> Served:
    worker = [sys.executable, MIRROR, str(folder / "files"), str(folder / "stats")]
    defaults = {"mount": str(folder / "mount"), "worker": worker, "log_format": "text", "spare": False}
    told = Options(**{**defaults, **options})
    with (folder / "log").open("ab") as log:
        holder = program(told, python=sys.executable, roots=ROOTS)
        process = subprocess.Popen(
            holder.argv,
            stdin=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, **holder.environment, **(environment or {})},
        )
    return Served(process, folder)


@contextlib.contextmanager
def started(folder: Path, **options: Any) -> Iterator[Served]:
    """A holder that may well refuse to serve."""
    _prepare(folder, {})
    served = start_holder(folder, **options)
    try:
        yield served
    finally:
        clean_up(served)


@contextlib.contextmanager
def held(
    folder: Path, files: dict[str, bytes], *, environment: dict[str, str] | None = None, **options: Any
) -> Iterator[Served]:
    """Below a holder, with a worker that is ready."""
    _prepare(folder, files)
    served = start_holder(folder, environment=environment, **options)
    try:
        eventually(lambda: served.ready_count() or served.process.poll() is not None)
        assert served.process.poll() is None, served.said()
        yield served
    finally:
        clean_up(served)


@contextlib.contextmanager
def reader(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of reader.py; what it writes is one JSON object at its end."""
    with talking(READER, *arguments) as process:
        yield process


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """End the reader's work and take its report."""
    out, _ = process.communicate("", timeout=PATIENCE_SECONDS)
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report
