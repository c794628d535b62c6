"""SIGKILL at every system call that makes something last, injected where it happens (strace).

For each kind of change and each N, a child makes the change to a fresh copy of a prepared store and is
killed as it enters its N-th fsync, fdatasync, rename, … The next to open the store must find every name
complete or absent, all accounts exact (the audit reads every row and byte), and be able to go on.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import store_child
from store_child import BASE, CHUNK_BYTES, KEPT, NEW

from ckptfs.model.digest import digest
from ckptfs.store import Store
from ckptfs.testing.audit import audit
from ckptfs.testing.reference import chunks_of
from ckptfs.testing.writing import Writing, read_back

#: pwrite64 is how LMDB writes its pages and, last, the meta page that commits.
LASTING = ("fsync", "fdatasync", "rename", "ftruncate", "unlink", "fallocate", "pwrite64")
CHANGES = ("create", "remove", "rename", "fail")
ALL_CHUNKS = set().union(*(chunks_of(tree, CHUNK_BYTES) for tree in (KEPT, BASE, NEW)))
KEPT_CHUNKS = chunks_of(KEPT, CHUNK_BYTES)
CHILD = str(Path(store_child.__file__))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("kill") / "prepared")
    store = Store.open(path)
    store_child.prepare(store)
    assert audit(store) == []
    store.close()
    return path


def run(store: str, what: str, *options: str) -> subprocess.CompletedProcess[str]:
    # Without -f: the process that probes the index is not counted. With --seccomp-bpf no fault fires.
    command = ["strace", "-e", f"trace={','.join(LASTING)}", *options, sys.executable, CHILD, store, what]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def copy(prepared: str, to: Path) -> str:
    subprocess.run(["cp", "-a", "--sparse=always", prepared, str(to)], check=True)
    return str(to)


def moments(prepared: str, what: str, tmp_path: Path) -> dict[str, int]:
    """How often the change makes each lasting call, from an undisturbed run."""
    log = tmp_path / "calls"
    whole = run(copy(prepared, tmp_path / "counted"), what, "-o", str(log))
    assert whole.returncode == 0 and whole.stdout == "begun\ndone\n", whole.stderr
    shutil.rmtree(tmp_path / "counted")
    return Counter(re.findall(r"^(\w+)\(", log.read_text(), re.M))


def killed_at(
    prepared: str, what: str, tmp_path: Path, points: Iterator[tuple[str, int]], checked_as: str = ""
) -> int:
    """Kill at each point and check what the next start finds; how many there were."""
    fired = 0
    for call, number in points:
        path = copy(prepared, tmp_path / "store")
        dead = run(
            path, what, "-e", f"inject={call}:signal=SIGKILL:when={number}", "-o", str(tmp_path / "log")
        )
        assert dead.returncode == -signal.SIGKILL, (call, number, dead.stderr)
        assert "killed by SIGKILL" in (tmp_path / "log").read_text()
        assert "done" not in dead.stdout
        fired += 1
        try:
            check(path, checked_as or what)
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
        trees = {"kept": KEPT, "base": BASE, "renamed": BASE, "new": NEW}
        for name, checkpoint in names.items():
            assert read_back(store, checkpoint) == trees[name]
        assert "kept" in names
        if what == "create":
            assert names.keys() - {"new"} == {"kept", "base"}
        elif what == "remove":
            assert names.keys() <= {"kept", "base"}
        elif what == "rename":
            assert names.keys() in ({"kept", "base"}, {"kept", "renamed"})
        else:
            assert names.keys() == {"kept", "base"}
        _go_on(store, what)
    finally:
        store.close()


def _go_on(store: Store, what: str) -> None:
    """What was cut short can be done, and then all is as if nothing had happened."""
    if what in ("create", "fail"):
        if store.by_name("new") is None:
            wanted = [chunk for chunk in chunks_of(NEW, CHUNK_BYTES) if any(chunk)]
            missing = [chunk for chunk in wanted if store.chunk(digest(chunk)) is None]
            writing = Writing(store, "new", NEW, chunk_bytes=CHUNK_BYTES)
            writing.finish()
            assert writing.written == len(missing)
        assert store.drafts() == []
        stored = sum(len(chunk) for chunk in ALL_CHUNKS if any(chunk))
        assert (store.chunk_count(), store.stored_bytes()) == (len(ALL_CHUNKS), stored)
    elif what == "remove":
        base = store.by_name("base")
        if base is not None:
            store.remove(base.ordinal)
        assert (store.chunk_count(), store.stored_bytes()) == (len(KEPT_CHUNKS), sum(map(len, KEPT_CHUNKS)))
    assert audit(store) == []


@pytest.mark.parametrize("what", CHANGES)
def test_a_kill_at_a_few_moments(prepared: str, tmp_path: Path, what: str) -> None:
    counted = moments(prepared, what, tmp_path)
    # the last of each kind: where a publish, a rename, a punch and a commit are nearly over
    points = [(call, counted[call]) for call in ("fsync", "fdatasync", "rename", "unlink") if counted[call]]
    assert killed_at(prepared, what, tmp_path, iter(points)) == len(points) > 0


def test_nothing_is_claimed_before_it_is_synced(prepared: str, tmp_path: Path) -> None:
    """A kill leaves the page cache; a power cut does not. So the order of calls is checked: when the index
    commits, every blob that was written, every folder that got a file and every renamed file is synced."""
    log = tmp_path / "calls"
    store = copy(prepared, tmp_path / "store")
    traced = "trace=openat,pwrite64,write,fsync,fdatasync,rename"
    command = ["strace", "-y", "-e", traced, "-o", str(log), sys.executable, CHILD, store, "create"]
    subprocess.run(command, check=True, capture_output=True)
    unsynced: set[str] = set()
    commits = renames = 0
    for line in log.read_text().splitlines():
        call = re.match(r"(\w+)\((.*)\) += (.*)", line)
        if call is None or store not in line:
            continue
        name, arguments, result = call.groups()
        first = re.search(rf"<({re.escape(store)}[^>]*)>", line)
        path = first.group(1) if first else ""
        if name == "openat" and "O_CREAT" in arguments:
            opened = re.search(r"<([^>]*)>$", result)
            assert opened is not None
            unsynced.add(str(Path(opened.group(1)).parent))
        elif name in ("pwrite64", "write") and not path.startswith(f"{store}/index"):
            unsynced.add(path)
        elif name == "rename":
            old, new = re.findall(r'"([^"]*)"', arguments)
            assert old not in unsynced, line
            unsynced.add(str(Path(new).parent))
            renames += 1
        elif name in ("fsync", "fdatasync"):
            if path == f"{store}/index/data.mdb":
                claimed = {
                    what for what in unsynced if not what.endswith("/index") and what != f"{store}/lock"
                }
                claimed -= {store}  # the lock file was opened there
                assert not claimed, f"{line}\nclaims what is not synced: {claimed}"
                commits += 1
            else:
                unsynced.discard(path)
    assert commits > 5 and renames == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", CHANGES)
def test_a_kill_at_every_moment(prepared: str, tmp_path: Path, what: str) -> None:
    counted = moments(prepared, what, tmp_path)
    assert counted["fdatasync"] >= 2 and counted["pwrite64"] >= 4
    points = [(call, n) for call in LASTING for n in range(1, counted[call] + 1)]
    assert killed_at(prepared, what, tmp_path, iter(points)) == len(points)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("what", "call", "number"), [("create", "fdatasync", 9), ("remove", "fallocate", 1)])
def test_a_kill_at_every_moment_of_the_recovery(
    prepared: str, tmp_path: Path, what: str, call: str, number: int
) -> None:
    """The start that puts a crash right can crash too."""
    hurt = copy(prepared, tmp_path / "hurt")
    dead = run(hurt, what, "-e", f"inject={call}:signal=SIGKILL:when={number}", "-o", str(tmp_path / "log"))
    assert dead.returncode == -signal.SIGKILL
    counted = moments(hurt, "reopen", tmp_path)
    points = [(call, n) for call in LASTING for n in range(1, counted[call] + 1)]
    assert len(points) > 5
    assert killed_at(hurt, "reopen", tmp_path, iter(points), checked_as=what) == len(points)
