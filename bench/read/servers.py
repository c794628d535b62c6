"""What shows files below a path: ckptfs, plain pyfuse3, or one of the peers. Each is a context manager that
gives a :class:`Server` and leaves nothing mounted."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import process
from bench.harness import BIN, START_SECONDS, STOP_SECONDS, Daemon, command

NAME = "bench"

NO_PASSTHROUGH = "[mount]\npassthrough = false\n"

#: No block is packed: a checkpoint's bytes do not get smaller, they would only be read more slowly.
UNCOMPRESSED = ("-noI", "-noD", "-noF", "-noX")


@dataclass
class Server:
    """``directory``: where files are; ``backing``: what it reads them from; ``pid``: its first process."""

    directory: Path
    backing: Sequence[Path]
    pid: int
    said: str = ""  # what it printed; known when it has ended

    def cpu_seconds(self) -> float:
        return process.cpu_seconds(self.pid)


Words = list[str | os.PathLike[str]]
Start = Callable[[Path, Path], contextlib.AbstractContextManager[Server]]


@contextlib.contextmanager
def ckptfs(files: Path, place: Path, settings: str = "") -> Iterator[Server]:
    """Over the store below ``place``; the checkpoint is created if it is not there yet."""
    with Daemon(place, settings=settings) as daemon:
        if not daemon.json("list")["checkpoints"]:
            daemon.cli("create", NAME, files)
        job = daemon.json("attach", NAME, "--job", "bench")
        blobs = [path for path in (daemon.store / "blobs").rglob("*") if path.is_file()]
        yield Server(Path(job["checkpoints"][0]["source"]), blobs, daemon.pid)
        daemon.cli("detach", "--job", "bench")


@contextlib.contextmanager
def daemon_path(files: Path, place: Path) -> Iterator[Server]:
    with ckptfs(files, place, NO_PASSTHROUGH) as server:
        yield server


@contextlib.contextmanager
def plain_pyfuse3(files: Path, place: Path) -> Iterator[Server]:
    paths = sorted(files.iterdir())
    words: Words = [sys.executable, "-m", "bench.plain_pyfuse3", place / "plain", *paths]
    with mounted(words, place / "plain", paths) as server:
        yield server


@contextlib.contextmanager
def squashfuse(files: Path, place: Path) -> Iterator[Server]:
    image = place / "squashfs"
    command("mksquashfs", files, image, *UNCOMPRESSED, "-quiet", "-no-progress")
    with mounted(["squashfuse_ll", "-f", image, place / "squash"], place / "squash", [image]) as server:
        yield server
    image.unlink()


@contextlib.contextmanager
def casync(files: Path, place: Path) -> Iterator[Server]:
    store, index = place / "casync", place / "index.caidx"
    command("casync", "make", f"--store={store}", index, files)
    chunks = [path for path in store.rglob("*") if path.is_file()]
    words: Words = ["casync", "mount", f"--store={store}", index, place / "casync-mount"]
    with mounted(words, place / "casync-mount", chunks) as server:
        yield server
    shutil.rmtree(store)


@contextlib.contextmanager
def rclone(files: Path, place: Path) -> Iterator[Server]:
    words: Words = [_program("rclone"), "mount", "--config", "", "--read-only", files, place / "rclone"]
    with mounted(words, place / "rclone", sorted(files.iterdir())) as server:
        yield server


#: name -> (what must be installed, how it is started)
PEERS: dict[str, tuple[tuple[str, ...], Start]] = {
    "squashfuse": (("squashfuse_ll", "mksquashfs"), squashfuse),
    "casync mount": (("casync",), casync),
    "rclone mount": (("rclone", "fusermount3"), rclone),
}


def installed(programs: Sequence[str]) -> bool:
    return all(shutil.which(_program(name)) for name in programs)


def version(program: str) -> str:
    """What it says of itself, on whichever stream, and maybe among its help."""
    done = subprocess.run([_program(program), "--version"], capture_output=True, text=True)
    name = program.partition("_")[0]
    found = re.search(rf"^{name} v?[\d.]+", done.stderr + done.stdout, re.MULTILINE)
    return found[0] if found else name


@contextlib.contextmanager
def mounted(words: Words, mountpoint: Path, backing: Sequence[Path]) -> Iterator[Server]:
    """Run a server that mounts at ``mountpoint`` in the foreground, and stop it at the end."""
    mountpoint.mkdir()
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        server = Server(mountpoint, backing, running.pid)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not os.path.ismount(mountpoint):
                if running.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"{Path(words[0]).name} did not mount:\n{said.read()}")
                time.sleep(0.01)
            yield server
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(STOP_SECONDS)
            finally:
                if running.poll() is None:
                    running.kill()
                    running.wait()
                if os.path.ismount(mountpoint):
                    command("umount", "-l", mountpoint)
        mountpoint.rmdir()
        said.seek(0)
        server.said = said.read()


def _program(name: str) -> str:
    """A program of the virtual environment that runs the benchmark, or else of the system."""
    own = BIN / name
    return str(own) if own.exists() else name
