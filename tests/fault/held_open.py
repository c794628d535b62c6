"""A process that has one file open and reads it when it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from talking import talking

_READER = str(Path(__file__).parent.parent / "fuse" / "reader.py")


class HeldOpen:
    """A process that has a file open, and reads it when it is asked to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answer(self) -> str | int:
        """The digest of the whole file, or the errno."""
        assert self._process.stdout
        found: str | int = json.loads(self._process.stdout.readline())
        return found

    def read(self) -> str | int:
        self.ask()
        return self.answer()

    def kill(self) -> float:
        """Seconds until it was gone."""
        began = time.monotonic()
        self._process.kill()
        self._process.wait(10)
        return time.monotonic() - began


@contextlib.contextmanager
def held_open(path: str) -> Iterator[HeldOpen]:
    with talking(_READER, "hold", path) as process:
        held = HeldOpen(process)
        assert held.answer() == "open"
        yield held


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest(source: Path, name: str) -> str:
    return sha256((source / name).read_bytes())
