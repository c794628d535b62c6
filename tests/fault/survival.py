"""A real ckptfsd whose processes die, with a checkpoint that has files of every kind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bare_daemon import children
from daemon_process import Daemon, running, until, write_tree
from talking import talking

from ckptfs.store import SMALL_FILE_BYTES
from ckptfs.testing.checkpoints import noise

_READERS = str(Path(__file__).with_name("job_readers.py"))
_WITHOUT_RESEND = str(Path(__file__).with_name("without_resend.py"))

CHUNK_BYTES = 4 << 20

# What a reader may wait for a worker that was killed.
PAUSE_SECONDS = 2.0

# What is said at level ERROR of a connection that ended.
LOST = ["the mount was lost", "the request loop failed", "fuse: reading device"]


def every_kind() -> dict[str, bytes]:
    """Files that are native where that is allowed, packed ones, and two that share a chunk: the second of
    them and the third have their bytes in two places."""
    shared = noise(1, CHUNK_BYTES)
    return {
        "native/weights": noise(2, 6_000_000),
        "native/more": noise(3, SMALL_FILE_BYTES + 1),
        **{f"small/{n}": noise(10 + n, size) for n, size in enumerate((1, 300, 4096, SMALL_FILE_BYTES))},
        "shares/first": shared + noise(4, 700_000),
        "shares/second": noise(5, CHUNK_BYTES) + shared + noise(6, 500_000),
        "shares/third": shared + noise(7, 300_000),
    }


class Node:
    """The daemon's two processes: what they say, what they hold."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def path(self, *parts: str) -> str:
        return os.path.join(self.daemon.mount, *parts)

    def read(self, *parts: str) -> bytes:
        return Path(self.path(*parts)).read_bytes()

    def create(self, name: str, source: Path, *, attach: bool = True) -> None:
        self.daemon.run("create", name, str(source))
        if attach:
            self.daemon.run("attach", name, "--job", f"job-{name}")

    # --- What the holder says --------------------------------------------------------------------------

    def holder_records(self) -> list[dict[str, Any]]:
        return [r for r in self.daemon.records() if r.get("logger") == "ckptfsd.holder"]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [r for r in self.holder_records() if r["event"] == event]

    def said(self) -> str:
        return self.daemon.log.read_text(errors="replace")

    @property
    def holder(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    def workers(self) -> list[int]:
        """Without the spare one, which waits for a death."""
        started = self.events("worker started")
        spares = {r["pid"] for r in started if r["spare"]} - set(self.ready())
        return [pid for pid in children(self.holder) if pid not in spares]

    def spare(self) -> int:
        """The one that waits for a death and is prepared for it; 0: there is none."""
        named = (pid for pid in children(self.holder) if process_name(pid) == "ckptfsd-spare")
        return next(named, 0)

    def wait_spare(self) -> int:
        until(self.spare, "a spare worker is prepared")
        return self.spare()

    def ready(self) -> list[int]:
        """The workers that came to serve, in order."""
        return [r["pid"] for r in self.holder_records() if r["event"] in ("worker ready", "upgraded")]

    def worker(self) -> int:
        return self.ready()[-1]

    def wait_ready(self, count: int, *, seconds: float = 30) -> None:
        until(lambda: len(self.ready()) >= count, f"worker {count} is ready", seconds)

    def kill_worker(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill the one that serves; how many were ready before."""
        count = len(self.ready())
        os.kill(self.worker(), number)
        return count

    def deaths(self, how: str = "SIGKILL") -> int:
        """Without those that were to end, as a spare of the version before."""
        ended = self.events("worker ended")
        return sum(r["how"] == how and r["state"] != "leaving" for r in ended)

    # --- What it holds ---------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        return self.daemon.client.status().counters

    def holds(self) -> dict[str, int]:
        """Descriptors and anonymous memory of both processes, and what is registered with the kernel."""
        counters = self.counters()
        worker = self.worker()
        return {
            "holder descriptors": descriptors(self.holder),
            "worker descriptors": descriptors(worker),
            "holder KiB": memory_kib(self.holder, "Pss_Anon"),
            "worker KiB": memory_kib(worker, "Pss_Anon"),
            **{k: counters[k] for k in ("files_open_native", "files_open_served", "native_table_used")},
        }


def process_name(pid: int) -> str:
    with contextlib.suppress(OSError):  # it has gone
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_kib(pid: int, field: str) -> int:
    """A field of smaps_rollup: Rss, Pss, Pss_Anon."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith(f"{field}:")))


@contextlib.contextmanager
def node(
    folder: Path,
    *,
    config: str = "",
    options: Sequence[str] = (),
    resend: bool = True,
    expected_errors: Sequence[str] = (),
) -> Iterator[Node]:
    """A daemon, with what ``config`` (TOML) says. ``resend`` False: it does as on a kernel before 6.9."""
    (folder / "ckptfsd.toml").write_text(config)
    prefix = [] if resend else [sys.executable, _WITHOUT_RESEND]
    with running(options=["--config", str(folder / "ckptfsd.toml"), *options], prefix=prefix) as daemon:
        daemon.expected_errors += expected_errors
        yield Node(daemon)


def checkpoint(serving: Node, folder: Path, name: str = "model") -> Path:
    """Create and attach one of every kind of file; the directory that it was made from."""
    source = folder / name
    write_tree(source, every_kind())
    serving.create(name, source)
    return source


class Readers:
    """The processes of job_readers.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self, *, seconds: float = 60) -> dict[str, Any]:
        """Stop them, and what they saw. Fails where one does not come back."""
        out, _ = self._process.communicate("", timeout=seconds)
        report: dict[str, Any] = json.loads(out)
        return report

    def end_well(self) -> dict[str, Any]:
        """As :meth:`end`, and nobody lost anything."""
        report = self.end()
        assert (report["failed"], report["wrong"], report["lost"]) == (0, 0, 0), report
        assert report["reads"] > 0
        return report


@contextlib.contextmanager
def readers(root: str, source: Path, count: int, *, pause: float = 0.05) -> Iterator[Readers]:
    words = (_READERS, root, str(source), str(count), str(pause))
    with talking("-S", *words, session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        yield Readers(process)


def not_longer(report: dict[str, Any], seconds: float = PAUSE_SECONDS) -> None:
    """The longest wait of a reader, less what a read of a plain file waited at the same time."""
    waited = report["worst_seconds"] - report["noise_seconds"]
    assert waited <= seconds, report


def say(what: str, **figures: Any) -> None:
    """A figure for people: pytest shows it with -s or -rP."""
    shown = ", ".join(f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
    print(f"\n{what}: {shown}", flush=True)
