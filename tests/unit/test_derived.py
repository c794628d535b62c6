"""Derived copies in a store: what is recorded of them, and how they go."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from ckptfs.engine.derive import ChunkDamaged, Deriver
from ckptfs.engine.forms import Form, forms_of
from ckptfs.errors import StoreDamaged, StoreError, StoreFull
from ckptfs.model import manifest as manifests
from ckptfs.store import Checkpoint, Natives, Store, Why, derived_file, derived_room, rebuild
from ckptfs.testing.audit import audit
from ckptfs.testing.checkpoints import make_checkpoint, noise

MIB = 1 << 20
A, B, C = (noise(seed, 4 * MIB) for seed in (1, 2, 3))
BASE = {b"one": A + B, b"small": b"in a pack", b"empty": b""}
#: Both are made of what is there already, in another order, and something new.
TUNE = {b"mixed": C + A, b"swapped": B + A, b"zeros": bytes(5 * MIB), b"small": b"in a pack"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "store"))
    yield store
    assert audit(store) == []
    store.close()


@pytest.fixture
def tune(store: Store) -> Checkpoint:
    make_checkpoint(store, "base", BASE)
    return make_checkpoint(store, "tune", TUNE)


def forms(store: Store, checkpoint: Checkpoint) -> dict[bytes, Form]:
    manifest = manifests.decode(store.manifest(checkpoint.digest))
    return {file.path: form for _, file, form in forms_of(store, checkpoint.ordinal, manifest)}


def entry_of(store: Store, checkpoint: Checkpoint, path: bytes) -> int:
    manifest = manifests.decode(store.manifest(checkpoint.digest))
    return next(index for index, file in manifest.files() if file.path == path)


def assemble(store: Store, checkpoint: Checkpoint, *, asked: bool = True, only: bytes = b"") -> int:
    """Make what is missing; how many copies."""
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(checkpoint.digest))
    survey = deriver.survey(checkpoint.ordinal, manifest, lambda: None)
    works = [work for work in survey.shared if only in (b"", work.file.path)]
    copies = [deriver.make(checkpoint.ordinal, w, asked=asked, step=lambda count: None) for w in works]
    return len(store.record_copies(copies))


def test_the_disk_is_waited_for_now_and_then(
    store: Store, tune: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at the end cannot be cut short, and of a large file takes minutes."""
    written: list[int] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        written.append(os.lseek(fd, 0, os.SEEK_HOLE))  # where its data ends
        fdatasync(fd)

    monkeypatch.setattr(derived_file, "_UNSYNCED_BYTES", 4 * MIB)
    monkeypatch.setattr(os, "fdatasync", noted)
    assert assemble(store, tune, only=b"swapped") == 1
    assert written == [4 * MIB, 8 * MIB, 8 * MIB], "after each part, and at the end"


def content(store: Store, checkpoint: Checkpoint, path: bytes) -> bytes:
    fd = store.open_copy(checkpoint.ordinal, entry_of(store, checkpoint, path), use=False)
    with open(fd, "rb") as file:
        return file.read()


def hurt(store: Store, data: bytes) -> bytes:
    """Change a byte of a stored chunk; its digest."""
    from ckptfs.model.digest import digest

    name = digest(data)
    chunk = store.chunk(name)
    assert chunk is not None
    with open(store._core.layout.blob(chunk.blob), "r+b") as file:
        file.seek(chunk.offset + 7)
        file.write(bytes([data[7] ^ 1]))
    return name


def test_files_have_their_forms(store: Store, tune: Checkpoint) -> None:
    base = store.by_name("base")
    assert base is not None
    assert forms(store, base) == {b"one": Form.WHOLE, b"small": Form.SMALL, b"empty": Form.SMALL}
    shared = dict.fromkeys((b"mixed", b"swapped", b"zeros"), Form.SHARED)
    assert forms(store, tune) == {**shared, b"small": Form.SMALL}
    assert assemble(store, tune) == 3
    assert forms(store, tune) == {**dict.fromkeys(shared, Form.DERIVED), b"small": Form.SMALL}
    assert assemble(store, tune) == 0


def test_a_copy_is_the_file_and_is_counted(store: Store, tune: Checkpoint) -> None:
    before = store.physical_bytes()
    assemble(store, tune)
    for path in (b"mixed", b"swapped", b"zeros"):
        assert content(store, tune, path) == TUNE[path]
    totals = store.copy_totals(tune.ordinal)
    assert totals == store.copy_totals()
    assert totals.copies == 3
    assert totals.physical_bytes == 16 * MIB  # the zeros take nothing
    assert store.physical_bytes() == before + 16 * MIB
    sizes = {copy.size_bytes: copy.why for copy in store.copies()}
    assert sizes == {8 * MIB: Why.ASKED, 5 * MIB: Why.FREE}
    assert store.copy_size(tune.ordinal, entry_of(store, tune, b"mixed")) == 8 * MIB
    assert store.copy_size(tune.ordinal, entry_of(store, tune, b"small")) is None


def test_copies_survive_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    store = Store.open(path)
    make_checkpoint(store, "base", BASE)
    tune = make_checkpoint(store, "tune", TUNE)
    assemble(store, tune, asked=False)
    store.put_natives(tune.ordinal, Natives(whole=0, small=1, wanted=True))
    before, copies = store.copy_totals(), store.copies()
    store.close()
    store = Store.open(path)
    assert not store.recovery
    assert store.copy_totals() == before
    assert before.limited_bytes == 16 * MIB
    assert [copy.why for copy in store.copies()] == [copy.why for copy in copies]
    assert store.natives() == {tune.ordinal: Natives(0, 1, True)}
    assert content(store, tune, b"mixed") == TUNE[b"mixed"]
    store.close()


def test_a_start_sweeps_files_without_rows_and_rows_without_files(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    store = Store.open(path)
    make_checkpoint(store, "base", BASE)
    tune = make_checkpoint(store, "tune", TUNE)
    assemble(store, tune)
    store.put_natives(tune.ordinal, Natives(0, 1, True))
    folder = Path(store._core.layout.derived_folder)
    gone = folder / f"{tune.ordinal:08x}-{entry_of(store, tune, b'mixed'):08x}"
    store.close()
    gone.unlink()
    (folder / "000000ff-00000000").write_bytes(b"of no checkpoint")
    (folder / ".tmp-00000001-00000000").write_bytes(b"half made")
    store = Store.open(path)
    assert store.recovery.files_swept == 2
    assert store.copy_totals(tune.ordinal).copies == 2
    assert store.natives() == {}, "what lost a copy is looked at again"
    assert audit(store) == []
    store.close()


def test_a_store_from_before_there_were_copies_opens(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    store = Store.open(path)
    make_checkpoint(store, "base", BASE)
    store.close()
    environment = lmdb.open(f"{path}/index", max_dbs=20)
    with environment.begin(write=True) as txn:
        for name in (b"derived", b"natives"):
            txn.drop(environment.open_db(name, txn=txn))
    environment.close()
    os.rmdir(f"{path}/derived")
    store = Store.open(path)
    tune = make_checkpoint(store, "tune", TUNE)
    assert assemble(store, tune) == 3
    assert audit(store) == []
    store.close()


def test_a_rebuild_removes_them(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    store = Store.open(path)
    make_checkpoint(store, "base", BASE)
    tune = make_checkpoint(store, "tune", TUNE)
    assemble(store, tune)
    store.close()
    assert rebuild(path).damaged == []
    assert os.listdir(f"{path}/derived") == []
    store = Store.open(path)
    assert store.copy_totals().copies == 0
    assert forms(store, tune)[b"mixed"] is Form.SHARED
    assert audit(store) == []
    store.close()


def test_copies_go_with_their_checkpoint(store: Store, tune: Checkpoint) -> None:
    assemble(store, tune)
    store.put_natives(tune.ordinal, Natives(0, 1, True))
    store.remove(tune.ordinal)
    assert os.listdir(store._core.layout.derived_folder) == []
    assert (store.copy_totals().copies, store.natives()) == (0, {})


def test_copies_outlive_the_checkpoint_that_they_share_with(store: Store, tune: Checkpoint) -> None:
    assemble(store, tune)
    base = store.by_name("base")
    assert base is not None
    store.remove(base.ordinal)
    assert content(store, tune, b"mixed") == TUNE[b"mixed"]


def test_a_copy_of_a_checkpoint_that_has_gone_is_given_up(store: Store, tune: Checkpoint) -> None:
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    work = deriver.survey(tune.ordinal, manifest, lambda: None).shared[0]
    copy = deriver.make(tune.ordinal, work, asked=True, step=lambda count: None)
    store.remove(tune.ordinal)
    assert store.record_copies([copy]) == []
    assert os.listdir(store._core.layout.derived_folder) == []


def test_whoever_has_a_copy_open_goes_on(store: Store, tune: Checkpoint) -> None:
    assemble(store, tune)
    entry = entry_of(store, tune, b"mixed")
    fd = store.open_copy(tune.ordinal, entry)
    assert store.drop_copies([(tune.ordinal, entry)]).copies == 1
    with pytest.raises(FileNotFoundError):
        store.open_copy(tune.ordinal, entry)
    with open(fd, "rb") as file:
        assert file.read() == TUNE[b"mixed"]


def test_a_copy_that_is_cut_short_leaves_nothing(store: Store, tune: Checkpoint) -> None:
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    work = deriver.survey(tune.ordinal, manifest, lambda: None).shared[0]

    def enough(count: int) -> None:
        assert os.listdir(store._core.layout.derived_folder) != []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deriver.make(tune.ordinal, work, asked=True, step=enough)
    assert os.listdir(store._core.layout.derived_folder) == []


def test_a_batch_is_cut_short_between_its_syncs(store: Store, tune: Checkpoint) -> None:
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    works = deriver.survey(tune.ordinal, manifest, lambda: None).shared
    copies = [deriver.make(tune.ordinal, w, asked=True, step=lambda count: None) for w in works]
    calls = 0

    def second_time() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.record_copies(copies, check=second_time)
    assert os.listdir(store._core.layout.derived_folder) == []
    assert store.copy_totals().copies == 0


# --- Damage -------------------------------------------------------------------------------------------


def test_damage_is_found_while_it_is_copied(store: Store, tune: Checkpoint) -> None:
    name = hurt(store, C)
    with pytest.raises(ChunkDamaged, match="the chunk at offset 0 of mixed") as raised:
        assemble(store, tune, only=b"mixed")
    assert (raised.value.digest, raised.value.offset, raised.value.length) == (name, 0, 4 * MIB)
    assert os.listdir(store._core.layout.derived_folder) == []
    assert assemble(store, tune, only=b"swapped") == 1
    store.quarantine([name])
    assert forms(store, tune)[b"mixed"] is Form.DAMAGED


def test_a_copy_begun_before_damage_was_found_is_given_up(store: Store, tune: Checkpoint) -> None:
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    works = deriver.survey(tune.ordinal, manifest, lambda: None).shared
    copy = deriver.make(tune.ordinal, works[1], asked=True, step=lambda count: None)
    store.quarantine([hurt(store, C)])
    assert store.record_copies([copy]) == []
    assert os.listdir(store._core.layout.derived_folder) == []


def test_no_copy_of_damaged_bytes_is_begun(store: Store, tune: Checkpoint) -> None:
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    works = {w.file.path: w for w in deriver.survey(tune.ordinal, manifest, lambda: None).shared}
    store.quarantine([hurt(store, C)])
    with pytest.raises(StoreDamaged):
        deriver.make(tune.ordinal, works[b"mixed"], asked=True, step=lambda count: None)
    assert os.listdir(store._core.layout.derived_folder) == []


def test_what_is_wrong_with_the_process_is_not_damage(store: Store, tune: Checkpoint) -> None:
    """No descriptor left: a sound chunk must not be taken for a bad one, which nobody could read then."""
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    work = deriver.survey(tune.ordinal, manifest, lambda: None).shared[0]
    with without_descriptors(leave=1), pytest.raises(StoreError, match="Too many open files") as raised:
        deriver.make(tune.ordinal, work, asked=True, step=lambda count: None)
    assert not isinstance(raised.value, StoreDamaged)
    assert os.listdir(store._core.layout.derived_folder) == []
    assert assemble(store, tune, only=b"mixed") == 1


@contextmanager
def without_descriptors(*, leave: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(leave):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


# --- Room ---------------------------------------------------------------------------------------------


def copied(store: Store) -> list[int]:
    return [copy.entry for copy in store.copies()]


def test_the_longest_unused_goes_first(store: Store, tune: Checkpoint) -> None:
    assemble(store, tune, only=b"mixed")
    time.sleep(0.02)
    assemble(store, tune, only=b"swapped")
    mixed, swapped = (entry_of(store, tune, path) for path in (b"mixed", b"swapped"))
    assert copied(store) == [mixed, swapped]
    time.sleep(0.02)
    os.close(store.open_copy(tune.ordinal, mixed))
    assert copied(store) == [swapped, mixed]
    assert store.make_room(1) == 8 * MIB
    assert copied(store) == [mixed]


def test_use_is_remembered_over_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    store = Store.open(path)
    make_checkpoint(store, "base", BASE)
    tune = make_checkpoint(store, "tune", TUNE)
    assemble(store, tune)
    mixed = entry_of(store, tune, b"mixed")
    time.sleep(0.02)
    os.close(store.open_copy(tune.ordinal, mixed))
    store.close()
    store = Store.open(path)
    assert copied(store)[-1] == mixed
    store.close()


def test_room_is_made_of_what_takes_room_and_is_not_open(store: Store, tune: Checkpoint) -> None:
    assemble(store, tune)
    mixed, swapped, zeros = (entry_of(store, tune, path) for path in (b"mixed", b"swapped", b"zeros"))
    fd = store.open_copy(tune.ordinal, mixed)
    assert store.make_room(1 << 40) == 8 * MIB
    assert set(copied(store)) == {mixed, zeros}
    assert store.make_room(1 << 40) == 0
    os.close(fd)
    assert store.make_room(1 << 40, may_go=lambda copy: copy.entry == swapped) == 0
    assert store.make_room(1 << 40) == 8 * MIB
    assert copied(store) == [zeros]


def test_a_copy_in_the_making_gives_way(store: Store, tune: Checkpoint) -> None:
    """After those that are there; its maker is told at its next step."""
    assemble(store, tune, only=b"mixed")
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    (work,) = (w for w in deriver.survey(tune.ordinal, manifest, lambda: None).shared if w.cost_bytes)
    begun, go_on = threading.Event(), threading.Event()
    said: list[str] = []

    def step(count: int) -> None:
        begun.set()
        assert go_on.wait(10)

    def work_at_it() -> None:
        try:
            deriver.make(tune.ordinal, work, asked=True, step=step)
        except StoreFull as error:
            said.append(str(error))

    maker = threading.Thread(target=work_at_it)
    maker.start()
    assert begun.wait(10)
    assert store.unfinished_bytes() == 4 * MIB
    assert store.make_room(8 * MIB) == 8 * MIB  # the one that is there does
    assert (store.copy_totals().physical_bytes, store.unfinished_bytes()) == (0, 4 * MIB)
    assert store.make_room(1, may_go=lambda copy: copy.entry != work.entry) == 0
    threading.Timer(0.2, go_on.set).start()
    assert store.make_room(1) == 4 * MIB
    maker.join()
    assert "gave way to what" in said[0]
    assert store.unfinished_bytes() == 0
    assert os.listdir(store._core.layout.derived_folder) == []
    assert store.make_room(1) == 0


def test_a_copy_that_gave_way_at_the_last_moment_is_not_recorded(store: Store, tune: Checkpoint) -> None:
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(tune.digest))
    works = deriver.survey(tune.ordinal, manifest, lambda: None).shared
    copies = [deriver.make(tune.ordinal, w, asked=True, step=lambda count: None) for w in works]
    store._core.closing.set()  # nobody waits for the maker, which is this thread
    calls = 0

    def synced() -> None:
        nonlocal calls
        calls += 1
        if calls > len(copies):
            assert store.make_room(1) == 0, "nothing has come back yet"

    with pytest.raises(StoreFull, match="gave way"):
        store.record_copies(copies, check=synced)
    assert os.listdir(store._core.layout.derived_folder) == []
    assert (store.copy_totals().copies, store.unfinished_bytes()) == (0, 0)


def test_one_who_waited_takes_the_room_that_another_made(
    store: Store, tune: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble(store, tune)
    free = iter([1000, 1000 + 8 * MIB])  # before the lock, and with it
    monkeypatch.setattr(derived_room, "free_bytes", lambda core: next(free))
    store._core.deriving.acquire()  # by whoever makes room before us
    threading.Timer(0.2, store._core.deriving.release).start()
    assert store.make_room(5 * MIB) == 8 * MIB
    assert store.copy_totals().copies == 3


def test_a_failure_leaves_no_row_that_leads_nowhere(
    store: Store, tune: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the place of an older copy was taken; one whose place was not stays."""
    assemble(store, tune)
    mixed, swapped = (entry_of(store, tune, path) for path in (b"mixed", b"swapped"))
    new = [store.new_copy(tune.ordinal, entry, 8 * MIB, Why.ASKED) for entry in (mixed, swapped)]
    real = os.rename

    def fail_at_the_second(old: str, to: str) -> None:
        if to == new[1].path:
            raise OSError(errno.EIO, "disk")
        real(old, to)

    monkeypatch.setattr(os, "rename", fail_at_the_second)
    with pytest.raises(StoreError, match="disk failed"):
        store.record_copies(new)
    assert store.copy_size(tune.ordinal, mixed) is None
    assert content(store, tune, b"swapped") == TUNE[b"swapped"]
    assert store.copy_totals().copies == 2


def test_a_full_disk_is_given_room_before_a_put_fails(store: Store, tune: Checkpoint) -> None:
    """The hook that a blob's write asks; a disk that is really full is in tests/fault."""
    assemble(store, tune)
    assert store._core.blobs.make_room(1)
    assert store.copy_totals().copies == 2
    assert store._core.blobs.make_room(1 << 40)
    assert not store._core.blobs.make_room(1)
