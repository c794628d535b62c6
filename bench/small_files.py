"""A checkpoint of 100,000 small files: created, listed with ``find``, removed.

``find`` through the mount is compared with ``find`` in the source directory. Before each first pass the
kernel's directory and inode caches are dropped (that takes root; otherwise there is one first pass only);
the native file system's blocks stay in the page cache.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.data import small_files
from bench.harness import Daemon, median, parser, report, settle, timed, workplace

NAME = "bench"


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
            rounds = options.rounds if os.geteuid() == 0 else 1
            for _ in range(rounds):
                for who, path in (("native", source), ("mount", mounted)):
                    forget()
                    for which in ("first", "second"):
                        seconds.setdefault(f"{who}_{which}", []).append(find(path, options.files))
                for who, path in (("native", source), ("mount", mounted)):
                    forget()
                    seconds.setdefault(f"{who}_stat", []).append(find(path, options.files, "-size", "+0"))
            peak_bytes = daemon.peak_resident_bytes()
            daemon.cli("detach", "--job", "bench")
            seconds["remove"] = [timed(lambda: daemon.cli("remove", NAME))]

    at = {key: median(values) for key, values in seconds.items()}
    for key, value in at.items():
        print(f"{key.replace('_', ', ')}: {value:.3f} s")
    targets = {
        "find on the first pass, of the native time": (at["mount_first"] / at["native_first"], "<=", 3.0),
        "find with sizes on the first pass, of the native time": (
            at["mount_stat"] / at["native_stat"],
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


def forget() -> None:
    """Drop the kernel's caches of directories and inodes, where we may."""
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2\n")


if __name__ == "__main__":
    main()
