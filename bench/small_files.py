"""A checkpoint of 100,000 small files: created, listed with ``find``, removed.

``find`` through the mount is compared with ``find`` in the source directory. A first pass is one for which
nothing is cached: before each, the kernel's caches are dropped (that takes root; otherwise there is one first
pass of the mount, and none of the native file system that deserves the name).

Also: ``find`` with sizes, which needs every inode; second passes; and first passes with the native file
system's directory blocks still in the page cache ("warm"), where it has nothing to wait for.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.data import small_files
from bench.harness import Daemon, median, parser, report, settle, timed, workplace

NAME = "bench"

#: What /proc/sys/vm/drop_caches takes.
NOTHING_STAYS = "3"
BLOCKS_STAY = "2"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--files", type=int, default=100_000)
    arguments.add_argument("--per-directory", type=int, default=1000)
    arguments.add_argument("--bytes", type=int, default=2048, help="of each file")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()

    seconds: dict[str, list[float]] = {}
    with workplace(options.dir) as place:
        source = place / "source"
        source.mkdir()
        small_files(str(source), options.files, options.per_directory, options.bytes)
        with Daemon(place) as daemon:
            settle(place)
            seconds["create"] = [timed(lambda: daemon.cli("create", NAME, source))]
            mounted = Path(daemon.json("attach", NAME, "--job", "bench")["checkpoints"][0]["source"])
            for _ in range(options.rounds if os.geteuid() == 0 else 1):
                for who, path in (("native", source), ("mount", mounted)):
                    forget(NOTHING_STAYS)
                    for which in ("first", "second"):
                        seconds.setdefault(f"{who}_{which}", []).append(find(path, options.files))
                    forget(NOTHING_STAYS)
                    seconds.setdefault(f"{who}_sizes", []).append(find(path, options.files, "-size", "+0"))
                    forget(BLOCKS_STAY)
                    seconds.setdefault(f"{who}_warm", []).append(find(path, options.files))
            peak_bytes = daemon.peak_resident_bytes()
            daemon.cli("detach", "--job", "bench")
            seconds["remove"] = [timed(lambda: daemon.cli("remove", NAME))]

    at = {key: median(values) for key, values in seconds.items()}
    for key, value in at.items():
        print(f"{key.replace('_', ', ')}: {value:.3f} s")
    targets = {
        "find on the first pass, of the native time": (at["mount_first"] / at["native_first"], "<=", 3.0),
        "the same, with the directories' blocks cached": (at["mount_warm"] / at["native_warm"], "<=", 3.0),
        "find with sizes on the first pass, of the native time": (
            at["mount_sizes"] / at["native_sizes"],
            "<=",
            3.0,
        ),
    }
    figures = {
        "seconds": seconds,
        "files_created_per_second": options.files / at["create"],
        "daemon_peak_resident_bytes": peak_bytes,
    }
    report("small_files", options.results, options, targets, figures)


def find(path: Path, files: int, *tests: str) -> float:
    """Seconds that ``find`` takes to list the files below ``path``; all of them must be there."""
    listed = b""

    def run() -> None:
        nonlocal listed
        listed = subprocess.run(
            ["find", path, "-type", "f", *tests], stdout=subprocess.PIPE, check=True
        ).stdout

    seconds = timed(run)
    found = listed.count(b"\n")
    if found != files:
        raise RuntimeError(f"find shows {found} files below {path}, not {files}")
    return seconds


def forget(what: str) -> None:
    """Drop the kernel's caches, where we may."""
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text(what)


if __name__ == "__main__":
    main()
