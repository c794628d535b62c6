"""Create from a local safetensors file, against ``cp`` + ``sync`` of the copy and ``casync make``.

All three read a source that is in the page cache and write to the same file system. ``cp`` and ``ckptfs
create`` take turns in pairs, each pair the other way round than the one before; the ratio is the median of
the pairs. A creation ends when its bytes and its index are on the disk, as ``sync`` does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.data import equal_tensors, write_safetensors
from bench.harness import Daemon, command, median, parser, report, settle, timed, workplace

NAME = "bench"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--bytes", type=int, default=4 << 30)
    arguments.add_argument("--tensors", type=int, default=300)
    arguments.add_argument("--pairs", type=int, default=3)
    arguments.add_argument("--casync-runs", type=int, default=1)
    options = arguments.parse_args()

    copies: list[float] = []
    creations: list[float] = []
    casyncs: list[float] = []
    with workplace(options.dir) as place:
        source = place / "source" / "model.safetensors"
        source.parent.mkdir()
        write_safetensors(str(source), equal_tensors(options.tensors, options.bytes))
        size_bytes = source.stat().st_size

        def copy() -> None:
            target = place / "copy"
            settle(place)
            read(source)
            copies.append(timed(lambda: (command("cp", source, target), command("sync", target))))
            target.unlink()

        def create(daemon: Daemon) -> None:
            settle(place)
            read(source)
            creations.append(timed(lambda: daemon.cli("create", NAME, source.parent)))
            daemon.cli("remove", NAME)

        with Daemon(place) as daemon:
            start_bytes = daemon.resident_bytes()
            for pair in range(options.pairs):
                if pair % 2:
                    create(daemon)
                    copy()
                else:
                    copy()
                    create(daemon)
                print(f"cp + sync {copies[-1]:.2f} s, create {creations[-1]:.2f} s", flush=True)
            peak_bytes = daemon.peak_resident_bytes()
            cpu_seconds = daemon.cpu_seconds() / options.pairs
        if shutil.which("casync"):
            for _ in range(options.casync_runs):
                casyncs.append(casync(place, source))
                print(f"casync make {casyncs[-1]:.2f} s", flush=True)

    create_seconds = median(creations)
    targets = {
        "throughput of create, of cp + sync": (
            median([c / k for c, k in zip(copies, creations, strict=True)]),
            ">=",
            0.6,
        ),
        "daemon's peak resident MB": (peak_bytes / 1e6, "<=", 300.0),
    }
    if casyncs:
        targets["throughput of create, of casync make"] = (median(casyncs) / create_seconds, ">=", 4.0)
    figures = {
        "size_bytes": size_bytes,
        "create_seconds": creations,
        "copy_seconds": copies,
        "casync_seconds": casyncs,
        "create_bytes_per_second": size_bytes / create_seconds,
        "daemon_start_resident_bytes": start_bytes,
        "daemon_peak_resident_bytes": peak_bytes,
        "daemon_cpu_seconds_per_gigabyte": cpu_seconds / size_bytes * 1e9,
    }
    report("create", options.results, options, targets, figures)


def read(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def casync(place: Path, source: Path) -> float:
    store = place / "casync"
    settle(place)
    read(source)
    # Its chunks are many small files: synced as a whole, as the others sync theirs.
    seconds = timed(
        lambda: (
            command("casync", "make", f"--store={store}", place / "index.caibx", source),
            command("sync", "-f", store),
        )
    )
    shutil.rmtree(store)
    return seconds


if __name__ == "__main__":
    main()
