"""First and second passes through mounts that are served, against the native file, in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness import median
from bench.read.cache import cached_bytes, forget, warm
from bench.read.servers import Server
from bench.read.ways import Way, one_pass

PASSES = ("first", "second")

#: What a pass may find in the mount's page cache and be called a first one: the pages of the last close.
COLD = 0.01


@dataclass
class Passes:
    """Of one way through one server: a figure for each round."""

    native: list[float] = field(default_factory=list)  # bytes per second
    speeds: dict[str, list[float]] = field(default_factory=lambda: {each: [] for each in PASSES})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {each: [] for each in PASSES})  # s per byte

    def figures(self) -> dict[str, Any]:
        return {"native": self.native} | {
            each: {
                "bytes_per_second": self.speeds[each],
                "of_native": median([s / n for s, n in zip(self.speeds[each], self.native, strict=True)]),
                "cpu_seconds_per_gigabyte": median(self.cpu[each]) * 1e9,
            }
            for each in PASSES
        }


def compare(
    files: Path, servers: Mapping[str, Server], ways: Mapping[str, tuple[str, Way]], rounds: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """server -> way -> figures. ``rounds``: of each way; of the first one more, which is not counted."""
    below = [*files.iterdir(), *(path for server in servers.values() for path in server.backing)]
    for path in below:  # so that all of it lies in memory alike, however it was written
        forget(path)
    for path in below:
        warm(path)
    measured = {name: {words: Passes() for words in ways} for name in servers}
    for place, (words, (file, way)) in enumerate(ways.items()):
        for number in range(0 if place == 0 else 1, rounds[words] + 1):
            warm(files / file)
            done, seconds = one_pass(way, files / file)
            for name in sorted(servers, reverse=bool(number % 2)):
                passes = measured[name][words]
                _both_passes(servers[name], file, way, passes, counted=number > 0)
                if number > 0:
                    passes.native.append(done / seconds)
    return {
        name: {words: passes.figures() for words, passes in by_way.items()}
        for name, by_way in measured.items()
    }


def _both_passes(server: Server, file: str, way: Way, passes: Passes, counted: bool) -> None:
    path = server.directory / file
    for each in server.backing:
        warm(each)
    forget(path)
    if (left := cached_bytes(path)) > COLD * path.stat().st_size:
        raise RuntimeError(f"{path}: {left} bytes are cached before a first pass")
    for which in PASSES:
        before = server.cpu_seconds()
        done, seconds = one_pass(way, path)
        if counted:
            passes.speeds[which].append(done / seconds)
            passes.cpu[which].append((server.cpu_seconds() - before) / done)
    forget(path)  # memory is not for mounts that nobody reads


def times_cached(files: Path, server: Server) -> float:
    """How many times the page cache has what was read through a mount, when it had nothing of it before."""
    paths = [server.directory / each.name for each in files.iterdir()]
    for path in (*paths, *server.backing):
        forget(path)
    for path in paths:
        warm(path)
    has = sum(map(cached_bytes, (*paths, *server.backing)))
    for path in paths:
        forget(path)
    return has / sum(path.stat().st_size for path in paths)
