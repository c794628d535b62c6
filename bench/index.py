"""A store of 1,000,000 chunks: how soon a daemon over it is ready, and what it takes in memory.

The chunks are tiny, so that the store is quickly made; the index does not know. Compared with a daemon over
an empty store in the same run: the difference is what the chunks cost.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.harness import Daemon, median, parser, report, workplace
from ckptfs.model import manifest
from ckptfs.model.digest import digest, fingerprint
from ckptfs.store import Store

CHUNK_BYTES = 64


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--chunks", type=int, default=1_000_000)
    arguments.add_argument("--files", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()

    ready: dict[str, list[float]] = {"empty": [], "full": []}
    memory: dict[str, list[int]] = {"empty": [], "full": []}
    with workplace(options.dir) as place:
        for who in ("empty", "full"):
            (place / who).mkdir()
        start = time.perf_counter()
        fill(place / "full" / "store", options.chunks, options.files)
        fill_seconds = time.perf_counter() - start
        for _ in range(options.rounds):
            for who in ("empty", "full"):
                with Daemon(place / who) as daemon:
                    ready[who].append(daemon.ready_seconds)
                    chunks = daemon.json("status")["store"]["chunks"]
                    expected = options.chunks if who == "full" else 0
                    if chunks != expected:
                        raise RuntimeError(f"the store has {chunks} chunks, not {expected}")
                    memory[who].append(daemon.peak_resident_bytes())

    print(
        f"ready over an empty store: {median(ready['empty']):.2f} s, {median(memory['empty']) / 1e6:.0f} MB"
    )
    targets = {
        "seconds until ready": (median(ready["full"]), "<=", 1.0),
        "peak resident MB": (median(memory["full"]) / 1e6, "<=", 200.0),
    }
    figures = {
        "ready_seconds": ready,
        "peak_resident_bytes": memory,
        "fill_seconds": fill_seconds,
    }
    report("index", options.results, options, targets, figures)


def fill(path: Path, chunks: int, files: int) -> None:
    """Make a store with one checkpoint of ``files`` files that together have ``chunks`` chunks."""
    store = Store.open(path)
    draft = store.begin(
        name="bench",
        creation="c-" + "0" * 20,
        source_key="bench",
        source_type="local",
        source_uri="bench",
    )
    owners = {}
    entries: list[manifest.Entry] = []
    for number in range(files):
        count = chunks // files + (number < chunks % files)
        file = draft.file(number.to_bytes(16, "big"), count * CHUNK_BYTES)
        file.set_lengths([CHUNK_BYTES] * count, count * CHUNK_BYTES)
        for index in range(count):
            data = (number << 32 | index).to_bytes(8, "big") * (CHUNK_BYTES // 8)
            file.put(index, index * CHUNK_BYTES, memoryview(data), digest(data), fingerprint(data))
        draft.commit()
        owners[number] = file
        entries.append(
            manifest.File(b"%08d" % number, False, count * CHUNK_BYTES, [CHUNK_BYTES] * count, file.digests())
        )
    draft.publish(
        manifest.encode(manifest.of(entries)),
        owners,
        files=files,
        directories=0,
        size_bytes=chunks * CHUNK_BYTES,
    )
    store.close()


if __name__ == "__main__":
    main()
