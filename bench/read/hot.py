"""Pairs of a plain copy and the same file through passthrough, each in the same state of the page cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import median
from bench.read.cache import forget, warm
from bench.read.servers import Server
from bench.read.ways import SAFETENSORS, Way, in_turns, mapped, safetensors, sequential

WAYS: dict[str, Way] = {"sequential": sequential, "mmap": mapped, "safetensors": safetensors}

#: After the files were read back, of which the last is counted.
PASSES = 2


def hot(files: Path, server: Server, count: int, idle_seconds: float) -> dict[str, Any]:
    """``count`` pairs of each way, before all is dropped and after. To be called right after a creation."""
    pair = [files / SAFETENSORS, server.directory / SAFETENSORS]
    before = server.cpu_seconds()
    time.sleep(idle_seconds)
    idle = (server.cpu_seconds() - before) / idle_seconds

    fresh = pairs(pair, count)
    busy = read = taken = 0.0
    dropped: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(count):
        for path in (pair[0], *server.backing, pair[1]):
            forget(path)
        for path in pair if number % 2 else reversed(pair):
            warm(path)
        start, before = time.perf_counter(), server.cpu_seconds()
        for way, speeds in pairs(pair, PASSES - 1, number).items():
            dropped[way] += speeds
        busy += server.cpu_seconds() - before
        taken += time.perf_counter() - start
        read += len(WAYS) * PASSES * pair[1].stat().st_size
    return {
        "pairs": {way: _figures(speeds) for way, speeds in dropped.items()},
        "just_created": {way: _figures(speeds) for way, speeds in fresh.items()},
        # Above what the daemon takes while nobody does anything.
        "cpu_seconds_per_gigabyte": max(0.0, busy - idle * taken) / read * 1e9,
        "idle_cpu": idle,
    }


def pairs(paths: Sequence[Path], count: int, first: int = 0) -> dict[str, list[list[float]]]:
    """For each way the speeds of native and mount, ``count`` times after one that is not counted."""
    speeds: dict[str, list[list[float]]] = {}
    for words, way in WAYS.items():
        speeds[words] = [in_turns(way, paths, (first + i) % 2) for i in range(count + 1)][1:]
    return speeds


def _figures(speeds: list[list[float]]) -> dict[str, Any]:
    return {
        "native": [pair[0] for pair in speeds],
        "mount": [pair[1] for pair in speeds],
        "of_native": median([pair[1] / pair[0] for pair in speeds]),
    }
