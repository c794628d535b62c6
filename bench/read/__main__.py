"""The whole comparison, from the data to the result and the page."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import bench.read
from bench import page
from bench.data import equal_tensors, write_safetensors, write_torch
from bench.harness import RESULTS, command, median, parser, report, workplace
from bench.read import servers
from bench.read.cache import can_be_asked, forget
from bench.read.compare import compare, times_cached
from bench.read.hot import WAYS as HOT_WAYS
from bench.read.hot import hot
from bench.read.ways import SAFETENSORS, TORCH, all_ways

TENSORS = 300
TORCH_TENSORS = 50
TORCH_SHARE = 4  # a quarter of the safetensors file

HOT = "ckptfs, past the daemon"
SERVED = "ckptfs, by the daemon"
PLAIN = "plain pyfuse3"

Figures = dict[str, Any]

START = time.monotonic()


def main() -> None:
    arguments = parser(bench.read.__doc__.splitlines()[0])
    arguments.add_argument("--bytes", type=int, default=4 << 30, help="of the file (default: %(default)s)")
    arguments.add_argument("--peer-bytes", type=int, default=1 << 30, help="for squashfuse")
    arguments.add_argument("--slow-bytes", type=int, default=64 << 20, help="for casync and rclone")
    arguments.add_argument("--rounds", type=int, default=7, help="of what has a target")
    arguments.add_argument("--other-rounds", type=int, default=3)
    arguments.add_argument("--small-reads", type=int, default=20_000, help="of 4 KiB at random places")
    arguments.add_argument("--large-reads", type=int, default=512, help="of 1 MiB at random places")
    arguments.add_argument("--idle-seconds", type=float, default=3.0, help="to see an idle daemon's CPU")
    arguments.add_argument("--render", action="store_true", help="only make the page again from the results")
    options = arguments.parse_args()
    if options.render:
        page.render()
        return
    if not can_be_asked(Path(options.dir)):
        raise SystemExit("bench.read asks the page cache with cachestat(2): it needs Linux 6.5, and root")

    ways = all_ways(options.small_reads, options.large_reads)
    rounds = dict.fromkeys(ways, options.other_rounds)
    figures: Figures = {"servers": {}, "skipped": {}, "versions": {}}
    if "torch.load" not in ways:
        figures["skipped"]["torch.load"] = "torch is not installed"

    with workplace(options.dir) as place:
        files = make(place / "data", options.bytes)
        with servers.ckptfs(files, place) as server:
            figures["hot"] = pairs = hot(files, server, options.rounds, options.idle_seconds)
            others = {words: way for words, way in ways.items() if words not in HOT_WAYS}
            by_way = compare(files, {HOT: server}, others, rounds)[HOT] | as_passes(pairs)
            by_way = {words: by_way[words] for words in ways}
            add(figures, HOT, by_way, server, files, options.bytes)
        with servers.daemon_path(files, place) as ours, servers.plain_pyfuse3(files, place) as plain:
            both = {SERVED: ours, PLAIN: plain}
            for name, by_way in compare(files, both, ways, rounds | {"sequential": options.rounds}).items():
                add(figures, name, by_way, both[name], files, options.bytes)
        figures["plain_pyfuse3_read_requests"] = json.loads(plain.said)
        shutil.rmtree(place / "store")
        for name, (needed, start) in servers.PEERS.items():
            if not servers.installed(needed):
                figures["skipped"][name] = f"not installed: {', '.join(needed)}"
                print(f"skipped: {name} ({figures['skipped'][name]})", flush=True)
                continue
            figures["versions"][name] = servers.version(needed[0])
            size = options.peer_bytes if name == "squashfuse" else options.slow_bytes
            if total(files) > size * 2 or total(files) < size:
                shutil.rmtree(files)
                files = make(place / "data", size)
            fewer = all_ways(max(1, options.small_reads * size // options.bytes), options.large_reads)
            with start(files, place) as server:
                add(figures, name, compare(files, {name: server}, fewer, rounds)[name], server, files, size)
    report("read", options.results, options, targets(figures), figures)
    if Path(options.results) == RESULTS:
        page.render()


def make(place: Path, size_bytes: int) -> Path:
    """The directory of what is read: made, and copied by cp, since that is how a plain copy comes about."""
    original = place.with_name("original")
    original.mkdir()
    write_safetensors(str(original / SAFETENSORS), equal_tensors(TENSORS, size_bytes), dtype="F16")
    if TORCH in {file for file, _ in all_ways(1, 1).values()}:
        write_torch(str(original / TORCH), TORCH_TENSORS, size_bytes // TORCH_SHARE)
    command("cp", "-r", original, place)
    shutil.rmtree(original)
    os.sync()
    return place


def total(files: Path) -> int:
    return sum(path.stat().st_size for path in files.iterdir())


def as_passes(pairs: Figures) -> Figures:
    """A hot file has no first pass: the mount has no pages of its own, so all are alike."""
    found = {}
    for words, each in pairs["pairs"].items():
        one = {
            "of_native": each["of_native"],
            "bytes_per_second": each["mount"],
            "cpu_seconds_per_gigabyte": pairs["cpu_seconds_per_gigabyte"],
        }
        found[words] = {"native": each["native"], "first": one, "second": one}
    return found


def add(
    figures: Figures, name: str, by_way: Figures, server: servers.Server, files: Path, size_bytes: int
) -> None:
    times = times_cached(files, server)
    figures["servers"][name] = {"bytes": size_bytes, "times_cached": times, "ways": by_way}
    for path in server.backing:
        forget(path)
    print(
        f"{name}, first and second pass of native; cached {times:.2f} times; "
        f"over after {time.monotonic() - START:.0f} s:",
        flush=True,
    )
    for words, way in by_way.items():
        print(f"  {words}: {way['first']['of_native']:.2f}, {way['second']['of_native']:.2f}", flush=True)


def targets(figures: Figures) -> dict[str, tuple[float, str, float]]:
    hot_figures = figures["hot"]
    by_server = figures["servers"]
    found: dict[str, tuple[float, str, float]] = {
        f"hot {words}, of a plain copy": (hot_figures["pairs"][words]["of_native"], ">=", 0.97)
        for words in HOT_WAYS
    }
    ours, plain = (
        by_server[name]["ways"]["sequential"]["first"]["bytes_per_second"] for name in (SERVED, PLAIN)
    )
    found |= {
        "daemon's CPU seconds per GB read hot": (hot_figures["cpu_seconds_per_gigabyte"], "<=", 0.002),
        "times that the page cache has a hot file": (by_server[HOT]["times_cached"], "<=", 1.01),
        "daemon path, first sequential pass, of plain pyfuse3": (
            median([a / b for a, b in zip(ours, plain, strict=True)]),
            ">=",
            8.0,
        ),
    }
    return found


if __name__ == "__main__":
    main()
