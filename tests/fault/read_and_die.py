"""``read_and_die.py FOLDER FILE OTHER KILLS``: processes that read FILE are killed in mid-read, so many
times, while another one opens OTHER and asks for the file system's statistics all the time.

Prints one line of JSON: the longest that the other one waited, and how long a sleep of a millisecond took
at most meanwhile (the machine's own noise).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

_AT_ONCE = 8


def read_for_ever(path: str, in_a_read: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    os.write(in_a_read, b"x")
    while True:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, size, 128 << 10):
            os.pread(fd, 128 << 10, offset)


def watch(folder: str, other: str, report: int) -> None:
    """Until SIGTERM."""
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    worst = noise = 0.0
    asked = 0
    while not over:
        began = time.monotonic()
        os.statvfs(folder)
        os.close(os.open(os.path.join(folder, other), os.O_RDONLY))
        waited = time.monotonic()
        time.sleep(0.001)
        worst = max(worst, waited - began)
        noise = max(noise, time.monotonic() - waited)
        asked += 1
    facts = {"worst_gap_seconds": worst, "noise_seconds": noise, "asked": asked}
    os.write(report, json.dumps(facts).encode())
    os._exit(0)


def main(folder: str, file: str, other: str, kills: int) -> None:
    ours, theirs = os.pipe()
    watcher = os.fork()
    if watcher == 0:
        watch(folder, other, theirs)
    in_a_read, says_so = os.pipe()
    living: list[int] = []
    killed = started = 0
    while killed < kills:
        while len(living) < _AT_ONCE and started < kills:
            pid = os.fork()
            if pid == 0:
                try:
                    read_for_ever(os.path.join(folder, file), says_so)
                finally:
                    os._exit(1)
            os.read(in_a_read, 1)
            living.append(pid)
            started += 1
        time.sleep(random.uniform(0, 0.01))
        pid = living.pop(random.randrange(len(living)))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    os.kill(watcher, signal.SIGTERM)
    facts = json.loads(os.read(ours, 65536))
    os.waitpid(watcher, 0)
    print(json.dumps({"killed_in_a_read": killed, **facts}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
