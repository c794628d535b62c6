"""A benchmark's result as the tables of docs/performance.md: Markdown from the JSON, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

Result = dict[str, Any]


def of(result: Result) -> str:
    """All that the page says of one result."""
    parts = [_targets(result)]
    if result["benchmark"] == "read":
        parts.append(_servers(result["figures"]))
        parts.append(_just_created(result["figures"]))
        parts.append(_who(result["figures"]))
    parts.append(_made(result))
    return "\n".join(part for part in parts if part) + "\n"


def _targets(result: Result) -> str:
    rows = [
        [words, _figure(target["reached"]), target["wanted"], "yes" if target["met"] else "**no**"]
        for words, target in result["targets"].items()
    ]
    return _table(["what", "reached", "wanted", "met"], rows)


def _servers(figures: Result) -> str:
    """Of each way the first and the second pass, as parts of the native speed."""
    servers = figures["servers"]
    ways = list(dict.fromkeys(way for server in servers.values() for way in server["ways"]))
    sizes = {server["bytes"] for server in servers.values()}
    rows = []
    for size in sorted(sizes, reverse=True):
        same = next(server for server in servers.values() if server["bytes"] == size)
        speeds = [median(same["ways"][way]["native"]) / 1e9 if way in same["ways"] else None for way in ways]
        words = [_cell(speed and f"{speed:.2f} GB/s") for speed in speeds]
        rows.append([f"a plain copy of {_size(size)}", *words, "", "1.00"])
    for name, server in servers.items():
        cells = [
            f"{passes['first']['of_native']:.2f} / {passes['second']['of_native']:.2f}" if passes else "–"
            for passes in (server["ways"].get(way) for way in ways)
        ]
        busy = server["ways"]["sequential"]["first"]["cpu_seconds_per_gigabyte"]
        rows.append(
            [f"{name} ({_size(server['bytes'])})", *cells, f"{busy:.2f} s", f"{server['times_cached']:.2f}"]
        )
    return _table(["", *ways, "server's CPU per GB, sequential, first pass", "times cached"], rows)


def _just_created(figures: Result) -> str:
    by_way = figures["hot"]["just_created"]
    words = ", ".join(f"{way} {each['of_native']:.2f}" for way, each in by_way.items())
    return f"Past the daemon, of a file just created and a copy just made by `cp`, not read back: {words}.\n"


def _who(figures: Result) -> str:
    peers = ", ".join(figures["versions"].values())
    return f"Peers: {peers}.\n" + "".join(
        f"Not measured: {name}, {why}.\n" for name, why in figures["skipped"].items()
    )


def _made(result: Result) -> str:
    machine = result["machine"]
    arguments = " ".join(
        f"{name} {value}" for name, value in result["arguments"].items() if value is not False
    )
    return (
        f"{result['when'][:10]}, Linux {machine['kernel'].split('-')[0]}, Python {machine['python']}, "
        f"{machine['cores']} cores, {machine['file_system']}; {arguments}.\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cell(words: str | None) -> str:
    return words or "–"


def _size(size_bytes: int) -> str:
    return (
        f"{size_bytes / (1 << 30):.3g} GiB" if size_bytes >= 1 << 30 else f"{size_bytes / (1 << 20):.3g} MiB"
    )
