"""Readers of a mount, in their own process: a mapping of a mount that goes away kills whoever touches it.

``reader.py THREADS MOUNT DIRECTORY``: until stdin ends, THREADS threads open, read, map, send and close
the files of MOUNT whose names are in DIRECTORY too, and compare. ``reader.py hold PATH``: open PATH, say
"open", and read it whole for each line on stdin; answers its digest or errno. ``reader.py map PATH``: the
same with a mapping, whose descriptor is closed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class Report:
    def __init__(self) -> None:
        self.reads = 0
        self.errors: list[str] = []
        self.wrong = 0
        self.worst_seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float, right: bool) -> None:
        with self._lock:
            self.reads += 1
            self.wrong += not right
            self.worst_seconds = max(self.worst_seconds, seconds)

    def failed(self, error: str) -> None:
        with self._lock:
            self.errors.append(error)


def by_read(path: str, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def by_mapping(path: str, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
            return mapping[offset : offset + length]
    finally:
        os.close(fd)


def by_sendfile(path: str, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    into = os.memfd_create("into")
    try:
        while length and (sent := os.sendfile(into, fd, offset, length)):
            offset, length = offset + sent, length - sent
        return os.pread(into, 1 << 30, 0)
    finally:
        os.close(fd)
        os.close(into)


def read_until(stop: threading.Event, root: str, contents: dict[str, bytes], report: Report) -> None:
    ways = (by_read, by_mapping, by_sendfile)
    while not stop.is_set():
        name = random.choice(list(contents))
        content = contents[name]
        offset = random.randrange(len(content))
        length = random.choice((1, 4096, 300_000))
        began = time.monotonic()
        try:
            found = random.choice(ways)(os.path.join(root, name), offset, length)
        except OSError as error:
            report.failed(f"{name}: {error}")
        else:
            report.add(time.monotonic() - began, found == content[offset : offset + length])


def many(threads: int, root: str, directory: str) -> None:
    contents = {}
    for name in sorted(os.listdir(directory)):
        if not name.startswith((".", "poison", "worse")):
            with open(os.path.join(directory, name), "rb") as file:
                contents[name] = file.read()
    report, stop = Report(), threading.Event()
    readers = [
        threading.Thread(target=read_until, args=(stop, root, contents, report), daemon=True)
        for _ in range(threads)
    ]
    for thread in readers:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in readers:
        thread.join(20)
    say({**vars(report), "_lock": None, "stuck": sum(thread.is_alive() for thread in readers)})
    os._exit(0)


def map_whole(fd: int) -> Callable[[], bytes]:
    """Python's own mmap keeps a duplicate of the descriptor open; this one does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size = os.fstat(fd).st_size
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return lambda: ctypes.string_at(address, size)


def hold(path: str, *, mapped: bool) -> None:
    fd = os.open(path, os.O_RDONLY)
    mapping: Callable[[], bytes] | None = None
    if mapped:
        mapping = map_whole(fd)
        os.close(fd)
    say("open")
    for _ in sys.stdin:
        try:
            content = mapping() if mapping else os.pread(fd, 1 << 30, 0)
            say(hashlib.sha256(content).hexdigest())
        except OSError as error:
            say(error.errno)


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    if sys.argv[1] in ("hold", "map"):
        hold(sys.argv[2], mapped=sys.argv[1] == "map")
    else:
        many(int(sys.argv[1]), sys.argv[2], sys.argv[3])
