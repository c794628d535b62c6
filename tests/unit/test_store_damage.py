"""What opening a store makes of a damaged index, a foreign directory, a second daemon."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from ckptfs.errors import StoreDamaged, StoreError, StoreLocked
from ckptfs.model.digest import digest
from ckptfs.store import Store, rows
from ckptfs.store.index import Table
from ckptfs.testing.audit import audit
from ckptfs.testing.writing import write

PAGE = 4096


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("sound") / "store")
    store = Store.open(path)
    noise = random.Random(1)
    write(store, "a", {b"f": noise.randbytes(300_000), b"s": b"small"}, chunk_bytes=2_000)
    write(store, "b", {b"g": noise.randbytes(100_000)}, chunk_bytes=2_000)
    store.close()
    return path


@pytest.fixture
def path(sound: str, tmp_path: Path) -> str:
    subprocess.run(["cp", "-a", "--sparse=always", sound, str(tmp_path / "s")], check=True)
    return str(tmp_path / "s")


def assert_damaged(path: str, words: str) -> None:
    with pytest.raises(StoreDamaged, match=words) as raised:
        Store.open(path)
    assert f"ckptfsd rebuild --store {path}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_index_is_told(path: str, keep: float) -> None:
    data = f"{path}/index/data.mdb"
    os.truncate(data, int(os.path.getsize(data) * keep))
    assert_damaged(path, "is damaged")


def test_one_flipped_bit_is_sigbus_and_ends_the_child_only(path: str) -> None:
    """The bit is in the length of a large row: reading the row then leaves the end of the file."""
    key = b"Z the row that is hit"
    store = Store.open(path)
    with store._core.index.write() as writer:
        writer.put(Table.PENDING, key, bytes(100_000))
    store.close()
    data = Path(f"{path}/index/data.mdb")
    content = bytearray(data.read_bytes())
    at = content.find(key)
    while at >= 0:  # MDB_node before its key: length (low, high 16 bits), flags, key length
        content[at - 8 + 3] ^= 0x20
        at = content.find(key, at + 1)
    data.write_bytes(content)
    child = [sys.executable, "-I", str(Path(rows.__file__).with_name("probe_child.py")), f"{path}/index"]
    assert subprocess.run(child, capture_output=True, check=False).returncode == -signal.SIGBUS
    assert_damaged(path, "reading it ended in SIGBUS")


def test_meta_pages_that_claim_less_than_the_trees_use(path: str) -> None:
    data = f"{path}/index/data.mdb"
    with open(data, "r+b") as file:
        for page in (0, 1):  # MDB_meta: magic, version, address, map size, two MDB_db, last page, transaction
            file.seek(page * PAGE + 16 + 120)
            file.write(struct.pack("=Q", 3))
    os.truncate(data, 4 * PAGE)
    assert_damaged(path, "is damaged")


def test_a_missing_index_is_told(path: str) -> None:
    os.unlink(f"{path}/index/data.mdb")
    assert_damaged(path, "data.mdb is missing")
    shutil.rmtree(f"{path}/index")
    assert_damaged(path, "is damaged")


def test_an_index_of_noise_is_told(path: str) -> None:
    Path(f"{path}/index/data.mdb").write_bytes(random.Random(1).randbytes(1 << 20))
    assert_damaged(path, "is damaged")


_OPEN_AND_AUDIT = """
import sys
from ckptfs.errors import StoreDamaged
from ckptfs.store import Store
from ckptfs.testing.audit import audit
try:
    store = Store.open(sys.argv[1])
    wrong = audit(store)
    names = [checkpoint.name for checkpoint in store.checkpoints()]
except StoreDamaged as error:
    print("told")
    sys.exit(0)
assert wrong == [] and names == ["a", "b"], (wrong, names)
print("sound")
"""


def test_flipped_bits_are_told_or_harmless(path: str) -> None:
    """In a child: what LMDB makes of a bad page is its own affair, but it must never be wrong answers."""
    data = Path(f"{path}/index/data.mdb")
    whole = data.read_bytes()
    chosen = random.Random(7)
    told = 0
    for _ in range(12):
        hurt = bytearray(whole)
        for _ in range(3):
            hurt[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        data.write_bytes(hurt)
        done = subprocess.run(
            [sys.executable, "-c", _OPEN_AND_AUDIT, path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told += done.stdout.strip() == "told"
    assert told > 0


def test_a_row_that_changed_is_told_when_it_is_read(path: str) -> None:
    store = Store.open(path)
    with store._core.index._env.begin(write=True) as txn:
        handle = store._core.index._handles[Table.CHUNKS]
        key, value = next(iter(txn.cursor(handle)))
        txn.put(key, value[:3] + b"\xff" + value[4:], db=handle)
    with pytest.raises(StoreDamaged, match="checksum"):
        store.chunk(key)
    store.close()
    assert_damaged(path, "checksum")


def test_a_count_that_is_off_is_told(path: str) -> None:
    store = Store.open(path)
    with store._core.index.write() as writer:
        writer.put(Table.CHUNKS, digest(b"?"), rows.pack_chunk(1, 0, 0, 0, 1))
    store.close()
    assert_damaged(path, "chunks and says")


def test_a_damaged_manifest_is_told(path: str) -> None:
    store = Store.open(path)
    made = store.by_name("a")
    assert made is not None
    file = Path(store._core.layout.manifest(made.digest))
    hurt = bytearray(file.read_bytes())
    hurt[100] ^= 1
    file.write_bytes(hurt)
    with pytest.raises(StoreDamaged, match=made.digest.hex()):
        store.manifest(made.digest)
    with pytest.raises(StoreDamaged):
        store.remove(made.ordinal)
    assert store.by_name("a") == made
    store.close()


# --- What is not a store, or not ours -----------------------------------------------------------------


def test_a_second_daemon_is_refused_and_the_first_goes_on(path: str) -> None:
    store = Store.open(path)
    code = "import sys\nfrom ckptfs.store import Store\nStore.open(sys.argv[1])"
    second = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"StoreLocked: {path} is in use by another process (pid {os.getpid()})" in second.stderr
    with pytest.raises(StoreLocked):
        Store.open(path)
    assert audit(store) == []
    store.close()
    Store.open(path).close()


def test_a_lock_ends_with_its_process_however_it_ends(path: str) -> None:
    code = "import os, sys\nfrom ckptfs.store import Store\nStore.open(sys.argv[1])\nos.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL
    Store.open(path).close()


def test_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"not a ckptfs store and not empty \(it holds 'holiday.jpg'\)"):
        Store.open(str(tmp_path))
    assert os.listdir(tmp_path) == ["holiday.jpg"]


def test_a_half_made_store_is_made(tmp_path: Path) -> None:
    for name in ("blobs/00", "index", "lost+found"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".tmp-FORMAT").write_bytes(b"ckpt")
    store = Store.open(str(tmp_path))
    assert audit(store) == []
    store.close()
    assert not (tmp_path / ".tmp-FORMAT").exists()


def test_formats_and_places_that_are_not_there(path: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(str(tmp_path / "none"), create=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="not a ckptfs store"):
        Store.open(str(tmp_path / "empty"), create=False)
    Path(path, "FORMAT").write_text("ckptfs-store 7\n")
    with pytest.raises(StoreError, match="format 7"):
        Store.open(path)
    Path(path, "FORMAT").write_text("something else\n")
    with pytest.raises(StoreError, match="does not say"):
        Store.open(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_of_another_user_is_refused_in_one_line(path: str) -> None:
    """In a child that gives up root: permissions do not bind root."""
    code = (
        "import os, sys\nfrom ckptfs.store import Store\nfrom ckptfs.errors import PermissionDenied\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    Store.open(sys.argv[1])\nexcept PermissionDenied as error:\n    print(error)"
    )
    os.chmod(os.path.dirname(path), 0o755)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert "the store cannot be used" in done.stdout, done.stderr


def test_litter_is_swept(path: str) -> None:
    for name in (
        "manifests/.tmp-ab",
        "manifests/" + "0" * 64,
        "checkpoints/99",
        "placements/99",
        ".tmp-FORMAT",
    ):
        Path(path, name).write_bytes(b"x")
    Path(path, "spool/99").mkdir()
    Path(path, ".tmp-index").mkdir()
    store = Store.open(path)
    assert store.recovery.files_swept == 7
    assert audit(store) == []
    store.close()


def test_a_check_that_lacks_a_package_does_not_blame_the_index(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(StoreError, match="could not be checked: No module named 'lmdb'") as caught:
        Store.open(path)
    assert not isinstance(caught.value, StoreDamaged)


def test_the_check_finds_packages_where_this_process_may_have_them(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.setenv("PYTHONPATH", str(Path(lmdb.__file__).parents[1]))
    Store.open(path).close()
