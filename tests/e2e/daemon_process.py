"""A real daemon in a process of its own: own store, mount and socket, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bare_daemon import children, kill_and_wait

from ckptfs.client.sync import SyncClient

_START_SECONDS = 30
_STOP_SECONDS = 20
CKPTFS = [sys.executable, "-m", "ckptfs"]
CKPTFSD = [sys.executable, "-m", "ckptfsd"]


@dataclass
class Daemon:
    """A running ckptfsd. ``expected_errors``: patterns of ERROR lines that a test provokes."""

    root: Path
    options: Sequence[str] = ()
    prefix: Sequence[str] = ()  # a command that runs it as somebody else
    expected_errors: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return str(self.root / "s")

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def mount(self) -> Path:
        return self.root / "mnt"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def client(self) -> SyncClient:
        return SyncClient(self.socket)

    # --- The process ------------------------------------------------------------------------------

    def start(self) -> None:
        arguments = ["--store", str(self.store), "--mount", str(self.mount), "--socket", self.socket]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *CKPTFSD, *arguments, "--log-format", "json", *self.options],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        said = b""
        deadline = time.monotonic() + _START_SECONDS
        while not said.startswith(b"ckptfsd ready:"):
            said += self.process.stdout.read() or b""
            assert self.process.poll() is None, f"ckptfsd did not start: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"ckptfsd is not ready: {self.log.read_text()[-3000:]}"
            time.sleep(0.01)

    def stop(self) -> None:
        """A clean stop, and a look at what it left."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(_STOP_SECONDS)
        finally:
            self._end()
        assert code == 0, f"ckptfsd ended with {code}: {self.log.read_text()[-3000:]}"

    def kill(self) -> None:
        """All of it: the holder first, so that it starts no other worker."""
        self._end()

    def _end(self) -> None:
        assert self.process is not None
        workers = children(self.process.pid)
        self.process.kill()
        self.process.wait()
        for worker in workers:
            kill_and_wait(worker)
        if self.process.stdout:
            self.process.stdout.close()
        self.process = None

    # --- What it said -----------------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        records = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                records.append({"level": "error", "event": line})
        return records

    def check_log(self) -> None:
        bad = [r for r in self.records() if r.get("level") in ("error", "critical", "exception")]
        unexpected = [r for r in bad if not any(re.search(p, json.dumps(r)) for p in self.expected_errors)]
        assert not unexpected, f"ERROR lines that no test expects: {unexpected}"

    # --- The command line -------------------------------------------------------------------------

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The caller's own, without its AWS settings; CKPTFS_SOCKET names this daemon."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return {**inherited, "CKPTFS_SOCKET": self.socket, "HOME": str(self.root), **(more or {})}

    def run(
        self, *arguments: str | bytes, code: int | None = 0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `ckptfs` and see that it ends with ``code``."""
        options.setdefault("timeout", 60)
        environment = self.environment(options.pop("env", None))
        done = subprocess.run(
            [*options.pop("prefix", []), *CKPTFS, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            **options,
        )
        if code is not None:
            assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *arguments: str | bytes, code: int = 0, **options: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code, **options).stdout)


def mounts_below(root: Path) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split()[4] for line in file]
    return [point for point in points if point.startswith(str(root))]


@contextmanager
def running(
    *, options: Sequence[str] = (), prefix: Sequence[str] = (), owner: int | None = None
) -> Iterator[Daemon]:
    """A daemon until the end of the block, and proof that it left nothing but its store."""
    root = Path(tempfile.mkdtemp(prefix="ckptfs-e2e-"))  # short: a socket's path has 107 bytes
    root.chmod(0o755)
    daemon = Daemon(root, options, prefix)
    daemon.mount.mkdir()
    if owner is not None:
        for path in (root, daemon.mount):
            os.chown(path, owner, owner)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
        assert not mounts_below(root), "something is left mounted"
        assert not os.path.exists(daemon.socket), "the socket is left behind"
        daemon.check_log()
    finally:
        if daemon.process is not None:
            daemon.kill()
        for point in mounts_below(root):
            subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(root)


SAMPLES: dict[str, dict[str, bytes]] = {
    "model": {
        "config.json": b'{"layers": 2}\n',
        "weights/part-1.bin": bytes(range(256)) * 40_000,
        "weights/part-2.bin": os.urandom(3_000_000),
        "empty": b"",
    },
    "adapter": {"adapter.bin": os.urandom(500_000)},
}


def write_tree(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def until(true: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait for something that happens elsewhere."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.02)
