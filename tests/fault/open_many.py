"""``open_many.py FOLDER FIRST COUNT``: a process that has many files open. For each word on stdin:

``open``: opens FOLDER/n/N for N from FIRST on, COUNT of them; ``read``: each begins with N + 1 (a file of
zeros would have no blob); ``close``: closes them; ``turn``: opens, reads and closes each before the next. It
answers a line of JSON: how many were as they should be, or the error.
"""

from __future__ import annotations

import json
import os
import sys


class Many:
    def __init__(self, folder: str, first: int, count: int) -> None:
        self._folder = folder
        self._numbers = range(first, first + count)
        self._open: dict[int, int] = {}

    def _one(self, number: int) -> int:
        return os.open(f"{self._folder}/{path_of(number)}", os.O_RDONLY)

    def _right(self, number: int, fd: int) -> bool:
        # Not from the page cache of the mount.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return int.from_bytes(os.pread(fd, 8, 0), "little") == number + 1

    def open(self) -> int:
        for number in self._numbers:
            self._open[number] = self._one(number)
        return len(self._open)

    def read(self) -> int:
        return sum(self._right(number, fd) for number, fd in self._open.items())

    def close(self) -> int:
        for fd in self._open.values():
            os.close(fd)
        closed = len(self._open)
        self._open.clear()
        return closed

    def turn(self) -> int:
        right = 0
        for number in self._numbers:
            fd = self._one(number)
            right += self._right(number, fd)
            os.close(fd)
        return right


def path_of(number: int) -> str:
    return f"{number // 1000:03d}/{number}"


if __name__ == "__main__":
    many = Many(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    for line in sys.stdin:
        try:
            print(json.dumps(getattr(many, line.strip())()), flush=True)
        except OSError as error:
            print(json.dumps(str(error)), flush=True)
