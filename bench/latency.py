"""How long small reads and `stat` take while a checkpoint is being created, against an idle daemon.

One prober takes turns, some hundred times a second: a 4 KiB read of a file that the daemon serves (its
bytes in the page cache below, but not in the mount's), `stat` of a name that the kernel has not seen, a 4 KiB
read of a native file of the mount, and beside them what knows nothing of ckptfs: a 4 KiB read and `stat` on
the file system below, and a byte sent to another process and back (``echo``: the least that any daemon's
answer takes). Rounds alternate: idle, while ``ckptfs create`` runs, idle, while ``cp`` and ``sync`` of the
same file run. A round's figure is its 99th percentile; ratios are the median of the rounds.

The targets are about the daemon. What the mere load of the machine does to everybody is printed beside them:
a hot read must suffer no more than a native one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.data import equal_tensors, write_safetensors
from bench.harness import BIN, Daemon, median, parser, report, settle, workplace

READ_BYTES = 4096
SERVED_BYTES = 64 << 20
PAUSE_SECONDS = 0.002

#: Samples of one probe: seconds that each took.
Samples = dict[str, list[float]]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--bytes", type=int, default=4 << 30)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--idle-seconds", type=float, default=4.0)
    arguments.add_argument("--names", type=int, default=40_000, help="files to be looked at, each once")
    options = arguments.parse_args()

    with workplace(options.dir) as place:
        source = place / "source" / "model.safetensors"
        source.parent.mkdir()
        write_safetensors(str(source), equal_tensors(300, options.bytes))
        small = make_readable(place / "readable", options.names)
        with Daemon(place) as daemon, echo() as ask:
            prober = Prober(daemon, place / "readable", small, ask)
            rounds = [measure(daemon, prober, source, options.idle_seconds) for _ in range(options.rounds)]
            prober.close()
            daemon.cli("detach", "--job", "bench")

    targets, figures = judge(rounds)
    report("latency", options.results, options, targets, figures)


def make_readable(directory: Path, names: int) -> list[str]:
    """Three directories for three checkpoints: "base" with one large file, "served" with one that has the
    same tensors in another order, "names" with many small ones."""
    tensors = equal_tensors(8, SERVED_BYTES)
    for name, order in (("base", tensors), ("served", tensors[::-1])):
        (directory / name).mkdir(parents=True)
        write_safetensors(str(directory / name / "f.safetensors"), order)
    small = [f"d{i // 1000:03}/f{i:06}" for i in range(names)]
    for path in small:
        target = directory / "names" / path
        if path.endswith("000"):
            target.parent.mkdir(parents=True)
        target.write_bytes(path.encode())
    return small


class Prober:
    """Takes samples. ``names`` are used up: what was looked at once, the kernel knows for ever."""

    def __init__(self, daemon: Daemon, readable: Path, names: list[str], ask: Callable[[], None]) -> None:
        for name in ("base", "served", "names"):
            daemon.cli("create", name, readable / name)
        job = daemon.json("attach", "base", "served", "names", "--job", "bench")
        at = {checkpoint["name"]: Path(checkpoint["source"]) for checkpoint in job["checkpoints"]}
        self._daemon = daemon
        self._served = os.open(at["served"] / "f.safetensors", os.O_RDONLY)
        self._hot = os.open(at["base"] / "f.safetensors", os.O_RDONLY)
        self._native = os.open(readable / "base" / "f.safetensors", os.O_RDONLY)
        for fd in (self._served, self._hot, self._native):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, SERVED_BYTES, 1 << 20):
                os.pread(fd, 1 << 20, offset)
        os.posix_fadvise(self._served, 0, 0, os.POSIX_FADV_DONTNEED)
        random.Random(1).shuffle(names)
        self._names = names
        self._mount_names, self._native_names = at["names"], readable / "names"
        self._ask = ask
        self._random = random.Random(2)
        self.counters = self._count()
        if not self.counters["files_open_native"]:
            raise RuntimeError("no file is read past the daemon here: the benchmark needs passthrough")

    def _count(self) -> dict[str, int]:
        counters: dict[str, int] = self._daemon.json("status")["counters"]
        counters["reads"] = sum(counters[f"reads_{way}"] for way in ("spliced", "inline", "in_thread"))
        return counters

    def sample(self, until: Callable[[], bool]) -> Samples:
        samples: Samples = {name: [] for name in PROBES}
        before = self._count()
        gc.disable()
        while not (until() and samples["stat"]):
            offset = self._random.randrange(SERVED_BYTES // READ_BYTES) * READ_BYTES
            os.posix_fadvise(self._served, offset, READ_BYTES, os.POSIX_FADV_DONTNEED)
            name = self._names.pop()
            for probe, action in (
                ("served read", partial(os.pread, self._served, READ_BYTES, offset)),
                ("stat", partial(os.stat, f"{self._mount_names}/{name}")),
                ("hot read", partial(os.pread, self._hot, READ_BYTES, offset)),
                ("native read", partial(os.pread, self._native, READ_BYTES, offset)),
                ("native stat", partial(os.stat, f"{self._native_names}/{name}")),
                ("echo", self._ask),
            ):
                start = time.perf_counter()
                action()
                samples[probe].append(time.perf_counter() - start)
            time.sleep(PAUSE_SECONDS)
        gc.enable()
        after, count = self._count(), len(samples["stat"])
        # Each of these was really answered by the daemon, and no other.
        if not 0.9 * count <= after["reads"] - before["reads"] <= 1.1 * count + 10:
            raise RuntimeError(f"{count} reads, {after['reads'] - before['reads']} of the daemon's")
        if after["lookups"] - before["lookups"] < count:
            raise RuntimeError(f"{count} names, {after['lookups'] - before['lookups']} looked up")
        return samples

    def close(self) -> None:
        for fd in (self._served, self._hot, self._native):
            os.close(fd)


PROBES = ("served read", "stat", "hot read", "native read", "native stat", "echo")


def measure(daemon: Daemon, prober: Prober, source: Path, idle_seconds: float) -> dict[str, Samples]:
    """One round: idle, create, idle, cp."""
    copy = source.parent.parent / "copy"
    found: dict[str, Samples] = {}
    create: list[str | Path] = [BIN / "ckptfs", "--socket", daemon.socket, "create", "busy", source.parent]
    for phase, words in (("create", create), ("cp", ["sh", "-c", f"cp {source} {copy} && sync {copy}"])):
        settle(source)
        found[f"idle before {phase}"] = prober.sample(after(idle_seconds))
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as busy:
            found[phase] = prober.sample(lambda process=busy: process.poll() is not None)  # type: ignore[misc]
        if busy.returncode:
            raise RuntimeError(f"{phase} failed")
    copy.unlink()
    daemon.cli("remove", "busy")
    for phase, samples in found.items():
        print(f"{phase} ({len(samples['stat'])} samples), 99th percentile in ms:", end=" ")
        print(
            ", ".join(f"{name} {at(values, 0.99) * 1e3:.3f}" for name, values in samples.items()), flush=True
        )
    return found


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def judge(rounds: list[dict[str, Samples]]) -> tuple[dict[str, tuple[float, str, float]], dict[str, Any]]:
    ratios: dict[str, dict[str, float]] = {}
    for phase in ("create", "cp"):
        ratios[phase] = {
            probe: median(
                [at(r[phase][probe], 0.99) / at(r[f"idle before {phase}"][probe], 0.99) for r in rounds]
            )
            for probe in PROBES
        }
        print(f"beside {phase}, of idle:", ", ".join(f"{p} {v:.2f}" for p, v in ratios[phase].items()))
    hot = ratios["create"]["hot read"] / ratios["create"]["native read"]
    targets = {
        "99th percentile of a served 4 KiB read while creating, of idle": (
            ratios["create"]["served read"],
            "<=",
            3.0,
        ),
        "99th percentile of stat while creating, of idle": (ratios["create"]["stat"], "<=", 3.0),
        "the same ratio of a hot read, of a native file's": (hot, "<=", 1.25),
    }
    figures = {
        "ratios": ratios,
        "seconds": {
            phase: {
                probe: {
                    "median": median([at(r[phase][probe], 0.5) for r in rounds]),
                    "p99": median([at(r[phase][probe], 0.99) for r in rounds]),
                    "max": max(max(r[phase][probe]) for r in rounds),
                    "samples": sum(len(r[phase][probe]) for r in rounds),
                }
                for probe in PROBES
            }
            for phase in rounds[0]
        },
    }
    return targets, figures


_ECHO = "import os\nwhile os.read(0, 1):\n    os.write(1, b'x')"


@contextlib.contextmanager
def echo() -> Iterator[Callable[[], None]]:
    """Another process that answers a byte with a byte."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    there, back = process.stdin.fileno(), process.stdout.fileno()

    def ask() -> None:
        os.write(there, b"x")
        os.read(back, 1)

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()
