"""SIGKILL at every lasting step of making and dropping derived copies, with shared blocks and without.

As test_store_kill.py does it. The audit reads every row, every file and every byte: a row without its
file, a file without its row and a copy with other bytes are all errors after the next start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import store_child
import test_store_kill as kills
from store_child import BASE, KEPT, SHARED

from ckptfs.model.digest import digest
from ckptfs.store import DerivedCopy, Store, rows
from ckptfs.store.index import Table
from ckptfs.testing.audit import audit
from ckptfs.testing.disks import MakeDisk
from ckptfs.testing.writing import read_back

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a loop file system needs root")

#: How often each undisturbed change calls what is counted differs by kind; none has fewer.
FEWEST = {"assemble": 10, "drop": 4, "remove": 10, "quarantine": 4}


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def place(request: pytest.FixtureRequest, disk: MakeDisk) -> Path:
    return Path(disk(150 << 20, request.param))


def prepare(place: Path, what: str) -> str:
    path = str(place / "prepared")
    store = Store.open(path)
    store_child.prepare(store)
    if what != "assemble":
        assert store_child.assemble(store) == 1
    store.close()
    return path


def killed_at(prepared: str, what: str, place: Path, points: Iterator[tuple[str, int]]) -> int:
    fired = 0
    for call, number in points:
        path = kills.copy(prepared, place / "store")
        log = place / "log"
        inject = f"inject={call}:signal=SIGKILL:when={number}"
        dead = kills.run(path, what, "-e", inject, "-o", str(log))
        assert dead.returncode == -signal.SIGKILL, (call, number, dead.stderr)
        assert "killed by SIGKILL" in log.read_text()
        assert "done" not in dead.stdout
        fired += 1
        try:
            check(path, what)
        except BaseException as error:
            error.add_note(f"after SIGKILL at {call} number {number} of {what}")
            raise
        shutil.rmtree(path)
    return fired


def check(path: str, what: str) -> None:
    store = Store.open(path, create=False)
    try:
        assert audit(store) == []
        names = {checkpoint.name: checkpoint for checkpoint in store.checkpoints()}
        assert read_back(store, names["kept"]) == KEPT
        if what == "remove" and "base" not in names:
            assert store.copy_totals().copies == 0
            return
        assert read_back(store, names["base"]) == BASE
        before = store.copy_totals().copies
        if store.quarantined():
            assert [copy for copy in store.copies() if shares(store, copy)] == []
            return
        assert before + store_child.assemble(store) == 1
        assert audit(store) == []
        (copy,) = store.copies()
        fd = store.open_copy(copy.ordinal, copy.entry)
        with open(fd, "rb") as file:
            assert file.read() == BASE[b"weights"]
    finally:
        store.close()


def shares(store: Store, copy: DerivedCopy) -> bool:
    """Whether it shares blocks with the chunk that was found damaged."""
    chunk = store.chunk(digest(SHARED))
    assert chunk is not None
    body = store._core.index.lookup(Table.DERIVED, rows.derived_key(copy.ordinal, copy.entry))
    return body is not None and chunk.blob in rows.decode_derived(body).blobs


def test_the_change_shares_blocks_where_it_can(place: Path) -> None:
    """Otherwise the kills below are all of the same kind."""
    prepared = prepare(place, "assemble")
    log = place / "ioctls"
    command = [
        "strace",
        "-e",
        "trace=ioctl",
        "-o",
        str(log),
        sys.executable,
        kills.CHILD,
        prepared,
        "assemble",
    ]
    subprocess.run(command, check=True, capture_output=True)
    clones = [line for line in log.read_text().splitlines() if "FICLONERANGE" in line]
    refused = [line for line in clones if "= 0" not in line]
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(place)], check=True, capture_output=True, text=True)
    if kind.stdout.strip() == "ext2/ext3":
        assert len(refused) == len(clones) == 1, "it was tried out, once"
    else:
        assert len(clones) > 1
        assert refused == []


@pytest.mark.parametrize("what", list(FEWEST))
def test_a_kill_at_a_few_moments(place: Path, what: str) -> None:
    prepared = prepare(place, what)
    counted = kills.moments(prepared, what, place)
    assert sum(counted.values()) >= FEWEST[what]
    points = [(call, counted[call]) for call in ("fsync", "fdatasync", "rename", "unlink") if counted[call]]
    assert killed_at(prepared, what, place, iter(points)) == len(points) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", list(FEWEST))
def test_a_kill_at_every_moment(place: Path, what: str) -> None:
    prepared = prepare(place, what)
    counted = kills.moments(prepared, what, place)
    points = [(call, n) for call in kills.LASTING for n in range(1, counted[call] + 1)]
    assert killed_at(prepared, what, place, iter(points)) == len(points) >= FEWEST[what]
