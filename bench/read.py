"""Sequential read of a resident file through the mount, against pyfuse3 with its defaults, and no FUSE.

What all of them read is in the page cache below. Before a first read the mount's own pages of the file are
dropped (with passthrough it has none); a second one finds all of it cached, and no server has anything to do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.data import equal_tensors, write_safetensors
from bench.harness import START_SECONDS, Daemon, median, parser, report, workplace

NAME = "bench"
REQUEST_BYTES = 1 << 20


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--bytes", type=int, default=4 << 30)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()

    speeds: dict[str, list[float]] = {
        f"{who}_{which}": [] for who in ("native", "plain", "ckptfs") for which in ("first", "second")
    }
    busy_seconds = 0.0
    with workplace(options.dir) as place:
        source = place / "source" / "model.safetensors"
        source.parent.mkdir()
        write_safetensors(str(source), equal_tensors(300, options.bytes))
        with Daemon(place) as daemon, plain_pyfuse3(source, place / "plain") as peer:
            daemon.cli("create", NAME, source.parent)
            job = daemon.json("attach", NAME, "--job", "bench")
            ours = Path(job["checkpoints"][0]["source"]) / source.name
            # One round more, not counted: a machine's memory costs more than all else when first touched.
            for _ in range(options.rounds + 1):
                speeds["native_first"].append(sequential(source))
                speeds["native_second"].append(sequential(source))
                forget(peer)
                speeds["plain_first"].append(sequential(peer))
                speeds["plain_second"].append(sequential(peer))
                for blob in blobs(daemon.store):
                    sequential(blob)
                forget(ours)
                speeds["ckptfs_first"].append(sequential(ours))
                before = daemon.cpu_seconds()
                speeds["ckptfs_second"].append(sequential(ours))
                busy_seconds += daemon.cpu_seconds() - before
            daemon.cli("detach", "--job", "bench")

    at = {key: median(values[1:]) for key, values in speeds.items()}
    for key, value in at.items():
        print(f"{key.replace('_', ', ')} read: {value / 1e9:.2f} GB/s")
    targets = {
        "first read, of plain pyfuse3": (at["ckptfs_first"] / at["plain_first"], ">=", 6.0),
        "second read, of plain pyfuse3's from the page cache": (
            at["ckptfs_second"] / at["plain_second"],
            ">=",
            0.8,
        ),
    }
    figures = {
        "bytes_per_second": speeds,
        "first_of_native": at["ckptfs_first"] / at["native_first"],
        "second_of_native": at["ckptfs_second"] / at["native_second"],
        "daemon_cpu_seconds_in_second_reads": busy_seconds,
    }
    report("read", options.results, options, targets, figures)


def sequential(path: Path) -> float:
    """Read a file from its start to its end; returns bytes per second."""
    buffer = bytearray(REQUEST_BYTES)
    done = 0
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
    return done / (time.perf_counter() - start)


def forget(path: Path) -> None:
    """Drop what the page cache has of this file, as seen through this path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def blobs(store: Path) -> list[Path]:
    return [path for path in (store / "blobs").rglob("*") if path.is_file()]


@contextlib.contextmanager
def plain_pyfuse3(source: Path, mountpoint: Path) -> Iterator[Path]:
    """The peer's mount; yields the path at which it shows the source."""
    mountpoint.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "bench.plain_pyfuse3", source, mountpoint])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("plain_pyfuse3 did not mount")
            time.sleep(0.01)
        yield mountpoint / "file"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


if __name__ == "__main__":
    main()
