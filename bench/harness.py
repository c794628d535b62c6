"""What every benchmark needs: arguments, a place to work in, a daemon of its own, figures, results."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import process

RESULTS = Path(__file__).parent / "results"
BIN = Path(sys.executable).parent

#: A daemon that is not ready or not gone after this long has a fault.
START_SECONDS = 60
STOP_SECONDS = 60


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--dir", default=tempfile.gettempdir(), help="where store and data go (default: %(default)s)"
    )
    made.add_argument("--results", default=str(RESULTS), help="where the JSON goes (default: %(default)s)")
    return made


@contextlib.contextmanager
def workplace(directory: str) -> Iterator[Path]:
    """A temporary directory on the file system that is measured; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ckptfs-bench-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def timed(action: Callable[[], object]) -> float:
    """Seconds of wall time that the action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def command(*words: str | os.PathLike[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def settle(path: Path) -> None:
    """Let what the round before left behind reach the disk, so that the next one does not pay for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.sync()
    finally:
        os.close(descriptor)
    time.sleep(0.5)


class Daemon:
    """A ckptfsd of our own below ``place``, with the command line as its user has it.

    ``settings``: TOML of its configuration file. Its figures are those of all its processes together.
    """

    def __init__(self, place: Path, *, mount: bool = True, settings: str = "") -> None:
        self.store = place / "store"
        self.mount = place / "mount"
        # Not below place: a socket's path has at most 107 bytes.
        self._run = Path(tempfile.mkdtemp(prefix="ckptfs-bench-"))
        self.socket = self._run / "control.sock"
        self._log = place / "daemon.log"
        self._with_mount = mount
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.ready_seconds = 0.0
        self.mount.mkdir(exist_ok=True)

    def __enter__(self) -> Daemon:
        words = [str(BIN / "ckptfsd"), "--store", self.store, "--mount", self.mount, "--socket", self.socket]
        if not self._with_mount:
            words.append("--no-mount")
        if self._settings:
            config = self._run / "ckptfsd.toml"
            config.write_text(self._settings)
            words += ["--config", config]
        before = self._log.stat().st_size if self._log.exists() else 0
        start = time.perf_counter()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        while time.perf_counter() - start < START_SECONDS and self._process.poll() is None:
            if b"ckptfsd ready" in self._log.read_bytes()[before:]:
                self.ready_seconds = time.perf_counter() - start
                return self
            time.sleep(0.005)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._run)
        raise RuntimeError(f"ckptfsd did not start:\n{self._log.read_text()}")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            subprocess.run(["umount", "-l", self.mount], check=False)
            raise
        finally:
            shutil.rmtree(self._run)

    def cli(self, *words: str | os.PathLike[str]) -> str:
        """Run ``ckptfs``; returns what it printed, raises when it fails."""
        done = subprocess.run(
            [BIN / "ckptfs", "--socket", self.socket, *words], stdout=subprocess.PIPE, check=True
        )
        return done.stdout.decode()

    def json(self, *words: str | os.PathLike[str]) -> Any:
        return json.loads(self.cli(*words, "--json"))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def peak_resident_bytes(self) -> int:
        return process.memory_bytes(self.pid, "VmHWM")

    def resident_bytes(self) -> int:
        return process.memory_bytes(self.pid, "VmRSS")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return process.cpu_seconds(self.pid)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def report(
    name: str,
    directory: str,
    arguments: argparse.Namespace,
    targets: dict[str, tuple[float, str, float]],
    figures: dict[str, Any],
) -> None:
    """Print each ratio against its target, and write all figures as JSON.

    ``targets``: words → (reached, ">=" or "<=", wanted).
    """
    verdicts = {}
    for words, (reached, relation, wanted) in targets.items():
        met = reached >= wanted if relation == ">=" else reached <= wanted
        verdicts[words] = {"reached": reached, "wanted": f"{relation} {wanted:g}", "met": met}
        print(f"{'ok  ' if met else 'MISS'} {words}: {reached:.3g} (wanted {relation} {wanted:g})")
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {
            "benchmark": name,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {
                "kernel": platform.release(),
                "python": platform.python_version(),
                "cores": os.cpu_count(),
                "file_system": file_system(arguments.dir),
            },
            "arguments": {k: v for k, v in vars(arguments).items() if k not in ("dir", "results")},
            "targets": verdicts,
            "figures": figures,
        },
        indent=2,
    )
    (place / f"{name}.json").write_text(text + "\n")


def file_system(path: str) -> str:
    """The type of the file system that holds ``path``."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout.strip()
