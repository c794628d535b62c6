"""Jobs that read a checkpoint, each a process of its own: ``job_readers.py MOUNTED SOURCE READERS PAUSE``.

Until stdin ends, READERS processes read the files below the directory MOUNTED in every way that jobs do
and compare with the files of the same names below SOURCE, which is on no mount of ours. Between two reads
each sleeps up to twice PAUSE seconds. One more process does the same with SOURCE itself: what it waits is
the machine's own noise. At the end one line of JSON says what was seen.

Threads of one process would measure each other: they share an interpreter.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import sys
import time
from collections.abc import Callable
from typing import Any

_LENGTHS = (1, 4096, 300_000)
_ERRORS_KEPT = 5


def drop_pages(fd: int) -> None:
    """So that the next read is a request, and not an answer of the page cache."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def opened(path: str) -> int:
    fd = os.open(path, os.O_RDONLY)
    drop_pages(fd)
    return fd


def by_pread(path: str, offset: int, length: int) -> bytes:
    fd = opened(path)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def by_mapping(path: str, offset: int, length: int) -> bytes:
    fd = opened(path)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
            return mapping[offset : offset + length]
    finally:
        os.close(fd)


def by_sendfile(path: str, offset: int, length: int) -> bytes:
    fd = opened(path)
    into = os.memfd_create("into")
    try:
        while length and (sent := os.sendfile(into, fd, offset, length)):
            offset, length = offset + sent, length - sent
        return os.pread(into, 1 << 30, 0)
    finally:
        os.close(fd)
        os.close(into)


class Held:
    """A handle and a mapping of one file that stay open over many reads."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.mapping = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)

    def by_handle(self, offset: int, length: int) -> bytes:
        drop_pages(self.fd)
        return os.pread(self.fd, length, offset)

    def by_mapping(self, offset: int, length: int) -> bytes:
        self.mapping.madvise(mmap.MADV_DONTNEED)
        drop_pages(self.fd)
        return self.mapping[offset : offset + length]

    def close(self) -> None:
        self.mapping.close()
        os.close(self.fd)


class Job:
    """One process's reads, and what came of them."""

    def __init__(self, root: str, contents: dict[str, mmap.mmap], pause: float) -> None:
        self._root = root
        self._contents = contents
        self._names = sorted(contents)
        self._pause = pause
        self.reads = 0
        self.wrong = 0
        self.failed = 0
        self.errors: list[str] = []
        self.worst: dict[str, float] = {}

    def read_until(self, is_over: Callable[[], bool]) -> None:
        held_name, held = "", None
        while not is_over():
            name = random.choice(self._names)
            path = os.path.join(self._root, name)
            way = random.choice(("pread", "mmap", "sendfile", "held", "held mmap", "list"))
            try:
                if way.startswith("held"):
                    if held is None or random.random() < 0.1:
                        if held is not None:
                            held.close()
                        held, held_name = None, name
                        held = self._timed("open", lambda path=path: Held(path))
                    read = held.by_handle if way == "held" else held.by_mapping
                    self._compare(way, held_name, read)
                elif way == "list":
                    folder = os.path.dirname(path)
                    listed = self._timed(way, lambda folder=folder: os.listdir(folder))
                    self.wrong += os.path.basename(path) not in listed
                else:
                    ways = {"pread": by_pread, "mmap": by_mapping, "sendfile": by_sendfile}
                    read_path = ways[way]
                    self._compare(way, name, lambda o, n, p=path, r=read_path: r(p, o, n))
            except OSError as error:
                self.failed += 1
                if len(self.errors) < _ERRORS_KEPT:
                    self.errors.append(f"{way} of {name}: {error}")
            time.sleep(random.random() * 2 * self._pause)
        if held is not None:
            held.close()

    def _timed(self, way: str, action: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return action()
        finally:
            self.worst[way] = max(self.worst.get(way, 0.0), time.monotonic() - began)
            self.reads += 1

    def _compare(self, way: str, name: str, read: Callable[[int, int], bytes]) -> None:
        content = self._contents[name]
        offset = random.randrange(len(content))
        length = random.choice(_LENGTHS)
        found = self._timed(way, lambda: read(offset, length))
        self.wrong += found != content[offset : offset + length]


def contents_of(source: str) -> dict[str, mmap.mmap]:
    """Mapped before the fork: one copy for all readers."""
    found = {}
    for folder, _, files in os.walk(source):
        for file in files:
            path = os.path.join(folder, file)
            with open(path, "rb") as stream:
                found[os.path.relpath(path, source)] = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    return found


def start(root: str, contents: dict[str, mmap.mmap], pause: float, over: int) -> tuple[int, int]:
    """A process that reads below ``root`` until ``over`` is readable. Its number, and where it reports."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    status = 1
    try:
        random.seed()
        job = Job(root, contents, pause)
        job.read_until(lambda: bool(select.select([over], [], [], 0)[0]))
        report = {key: value for key, value in vars(job).items() if not key.startswith("_")}
        os.write(theirs, json.dumps(report).encode())
        status = 0
    finally:
        os._exit(status)


def main(mounted: str, source: str, readers: int, pause: float) -> None:
    contents = contents_of(source)
    over, end = os.pipe()
    noise = start(source, contents, pause, over)
    jobs = [start(mounted, contents, pause, over) for _ in range(readers)]
    print("reading", flush=True)
    sys.stdin.read()
    os.write(end, b"x")  # nobody reads it: it is readable for all
    total: dict[str, Any] = {"reads": 0, "wrong": 0, "failed": 0, "errors": [], "worst": {}, "lost": 0}
    for pid, reported in jobs:
        report = _report(pid, reported)
        if report is None:
            total["lost"] += 1
            continue
        for key in ("reads", "wrong", "failed", "errors"):
            total[key] += report[key]
        for way, seconds in report["worst"].items():
            total["worst"][way] = max(total["worst"].get(way, 0.0), seconds)
    alone = _report(*noise)
    total["noise_seconds"] = max(alone["worst"].values()) if alone else 0.0
    total["worst_seconds"] = max(total["worst"].values(), default=0.0)
    print(json.dumps(total), flush=True)


def _report(pid: int, reported: int) -> dict[str, Any] | None:
    with open(reported, "rb") as stream:
        said = stream.read()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    report: dict[str, Any] | None = json.loads(said) if said else None  # none: a signal ended it
    return report


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
