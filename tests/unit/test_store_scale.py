"""Many chunks, many files: what a start and a creation may cost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptfs.store import Store
from ckptfs.testing.audit import audit
from ckptfs.testing.bulk import fill
from ckptfs.testing.writing import Writing

_OPEN = """
import json, resource, sys, time
from ckptfs.store import Store
begun = time.monotonic()
store = Store.open(sys.argv[1])
seconds = time.monotonic() - begun
# not ru_maxrss: that of a process begins with its parent's
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
probe = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
chunks = store.chunk_count()
store.close()
print(json.dumps([seconds, peak, probe, chunks]))
"""


def start_of(path: str) -> tuple[float, int, int, int]:
    done = subprocess.run([sys.executable, "-c", _OPEN, path], capture_output=True, text=True, check=True)
    seconds, peak, probe, chunks = json.loads(done.stdout)
    return seconds, peak, probe, chunks


@pytest.mark.parametrize("chunks", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_start_does_not_read_the_index_through(tmp_path: Path, chunks: int) -> None:
    path = str(tmp_path / "s")
    fill(path, chunks)
    # the best of three: the machine's other work is not the store's
    starts = [start_of(path) for _ in range(3)]
    assert starts[0][3] == chunks
    assert min(start[0] for start in starts) < 1.0
    assert max(start[1] for start in starts) < 200_000_000
    assert max(start[2] for start in starts) < 200_000_000


def transactions(store: Store) -> int:
    return int(store._core.index._env.info()["last_txnid"])


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_small_files_take_few_transactions_and_files(tmp_path: Path, count: int) -> None:
    store = Store.open(str(tmp_path / "s"))
    base = random.Random(1).randbytes(4000)
    contents = {b"f%06d" % n: (n + 1).to_bytes(4, "big") + base[: n % 3000] for n in range(count)}
    before = transactions(store)
    begun = time.monotonic()
    writing = Writing(store, "many", contents)
    writing.put_some()
    made = writing.publish()
    created = time.monotonic() - begun
    assert transactions(store) - before <= 6 + count // 10_000
    begun = time.monotonic()
    found = store.usage(made.ordinal)
    assert found.unique_bytes == sum(len(content) for content in contents.values())
    if count < 10_000:
        assert audit(store) == []
    before = transactions(store)
    begun = time.monotonic()
    report = store.remove(made.ordinal)
    removed = time.monotonic() - begun
    assert transactions(store) - before <= 5 + count // 10_000
    assert report.chunks_freed == count
    assert (store.chunk_count(), store.physical_bytes()) == (0, 0)
    assert audit(store) == []
    # a hundred times what it takes on an idle machine is a loop that should not be there
    assert created < count * 0.002 + 5 and removed < count * 0.001 + 5
    store.close()
