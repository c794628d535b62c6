"""A checkpoint's life in the store: made, shared, listed, renamed, removed. Real files, real index."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.errors import NameTaken, NotFound, StoreDamaged
from ckptfs.model import manifest as model
from ckptfs.model.digest import digest, fingerprint
from ckptfs.store import Checkpoint, Lease, Store
from ckptfs.testing.audit import audit
from ckptfs.testing.writing import Writing, read_back, write

KIB = 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "store"))
    yield store
    assert audit(store) == []
    store.close()


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def own_file(store: Store, checkpoint: Checkpoint, path: bytes) -> str:
    manifest = model.decode(store.manifest(checkpoint.digest))
    entry = next(index for index, file in manifest.files() if file.path == path)
    blob = store.own_blobs(checkpoint.ordinal)[entry]
    return store._core.layout.blob(blob)


def test_what_was_put_is_read_back_after_reopening(tmp_path: Path) -> None:
    contents = {
        b"big": noise(1, 700 * KIB + 13),
        b"small": b"hello",
        b"empty": b"",
        b"zeros": bytes(300 * KIB),
        b"odd \xff\n": noise(2, 5000),
    }
    store = Store.open(str(tmp_path / "s"))
    made = write(store, "a", contents, chunk_bytes=100_000)
    store.close()
    store = Store.open(str(tmp_path / "s"), create=False)
    assert not store.recovery
    assert store.checkpoints() == [made]
    assert store.by_name("a") == store.by_ordinal(made.ordinal) == made
    assert read_back(store, made) == contents
    assert audit(store) == []
    store.close()


def test_a_file_with_nothing_shared_is_one_complete_contiguous_blob(store: Store) -> None:
    content = noise(1, 3_000_001)
    made = write(store, "a", {b"f": content}, chunk_bytes=100_000)
    path = own_file(store, made, b"f")
    assert Path(path).read_bytes() == content
    status = os.stat(path)
    assert status.st_size == len(content)
    assert 0 <= status.st_blocks * 512 - len(content) < 8192


def test_zero_chunks_take_no_space_and_read_as_holes(store: Store) -> None:
    content = noise(1, 100_000) + bytes(1_000_000) + noise(2, 100_000)
    made = write(store, "a", {b"f": content, b"g": bytes(500_000)}, chunk_bytes=100_000)
    assert read_back(store, made) == {b"f": content, b"g": bytes(500_000)}
    assert Path(own_file(store, made, b"f")).read_bytes() == content
    assert store.stored_bytes() == 200_000
    assert store.physical_bytes() < 220_000
    assert store.chunk_count() == 3


def test_small_files_share_a_blob(store: Store) -> None:
    contents = {b"f%d" % n: noise(n, 3000 + n) for n in range(50)}
    made = write(store, "a", contents)
    assert read_back(store, made) == contents
    assert store.own_blobs(made.ordinal) == {}
    assert len({store.chunk(digest(c)).blob for c in contents.values()}) == 1  # type: ignore[union-attr]


def test_the_same_tree_twice_has_one_id_and_takes_no_more_space(store: Store) -> None:
    contents = {b"f": noise(1, 500_000), b"s": b"small"}
    first = write(store, "a", contents)
    before = (store.chunk_count(), store.stored_bytes(), store.physical_bytes())
    writing = Writing(store, "b", contents)
    second = writing.finish()
    assert writing.written == 0
    assert second.digest == first.digest
    assert (store.chunk_count(), store.stored_bytes(), store.physical_bytes()) == before
    # whole-file reuse: the twin is whole in the same blob
    assert store.own_blobs(first.ordinal) == store.own_blobs(second.ordinal) != {}
    store.remove(first.ordinal)
    assert read_back(store, second) == contents
    assert (store.chunk_count(), store.stored_bytes(), store.physical_bytes()) == before
    store.remove(second.ordinal)
    assert (store.chunk_count(), store.stored_bytes(), store.physical_bytes()) == (0, 0, 0)


def test_a_file_takes_its_twins_blob_only_when_nothing_else_lives_there(store: Store) -> None:
    """A hole of ours must not be somebody else's data: the reader takes zeros from the shaped blob."""
    a, b = noise(1, 100_000), noise(2, 100_000)
    write(store, "a", {b"f": a + b}, chunk_bytes=100_000)
    zeroed = write(store, "z", {b"f": a + bytes(100_000)}, chunk_bytes=100_000)
    assert store.own_blobs(zeroed.ordinal) == {}
    assert read_back(store, zeroed) == {b"f": a + bytes(100_000)}


def test_removal_gives_back_exactly_what_no_other_uses(store: Store) -> None:
    shared, mine, theirs = noise(1, 800_000), noise(2, 800_000), noise(3, 800_000)
    a = write(store, "a", {b"f": mine[:400_000] + shared + mine[400_000:]}, chunk_bytes=50_000)
    b = write(store, "b", {b"f": shared + theirs}, chunk_bytes=50_000)
    assert store.usage(a.ordinal).unique_bytes == 800_000
    assert store.usage(b.ordinal).shared_bytes == 800_000
    physical = store.physical_bytes()
    report = store.remove(a.ordinal)
    assert (report.bytes_freed, report.chunks_freed) == (800_000, 16)
    # 400,000 is no multiple of a block: one block on either side of the shared run stays
    assert 800_000 - 2 * 4096 <= physical - store.physical_bytes() <= 800_000 + 2 * 4096
    assert audit(store) == []
    assert read_back(store, b) == {b"f": shared + theirs}
    assert store.remove(b.ordinal).bytes_freed == 1_600_000
    assert store.physical_bytes() == 0
    assert not any(os.listdir(f"{store._core.layout.blobs}/{n:02x}") for n in range(256))


def test_unaligned_neighbours_leak_no_blocks(store: Store) -> None:
    """Chunks of 1000 bytes share blocks; the block goes when the last of them does."""
    parts = [noise(n, 1000) for n in range(200)]
    a = write(store, "a", {b"f": b"".join(parts)}, chunk_bytes=1000)
    keep = b"".join(parts[::8])
    b = write(store, "b", {b"k": keep}, chunk_bytes=1000)
    store.remove(a.ordinal)
    assert audit(store) == []
    assert read_back(store, b) == {b"k": keep}


def test_names(store: Store) -> None:
    a = write(store, "a", {b"f": b"1"})
    b = write(store, "b", {b"f": b"2"})
    with pytest.raises(NameTaken):
        store.rename(b.ordinal, "a")
    store.rename(b.ordinal, "c")
    store.rename(b.ordinal, "c")
    assert store.by_name("b") is None
    assert store.by_name("c") is not None and store.by_name("c").ordinal == b.ordinal  # type: ignore[union-attr]
    again = Writing(store, "a", {b"f": b"3"})
    again.put_some()
    with pytest.raises(NameTaken):
        again.publish()
    again.draft.fail("taken", "name_taken", keep=False)
    store.remove(a.ordinal)
    assert store.by_name("a") is None
    renewed = write(store, "a", {b"f": b"3"})
    assert renewed.ordinal > b.ordinal
    with pytest.raises(NotFound):
        store.rename(a.ordinal, "x")
    with pytest.raises(NotFound):
        store.remove(a.ordinal)


def test_a_manifest_whose_chunks_were_never_put_is_refused(store: Store) -> None:
    writing = Writing(store, "a", {b"f": noise(1, 100_000)})
    writing.put_some()
    forged = model.of([model.File(b"f", False, 4, [4], digest(b"none"))])
    with pytest.raises(StoreDamaged):
        writing.draft.publish(model.encode(forged), {}, files=1, directories=0, size_bytes=4)
    assert store.checkpoints() == []
    writing.publish()


def test_a_chunk_is_known_before_and_after_its_commit(store: Store) -> None:
    data = noise(1, 200_000)
    draft = store.begin(name="a", creation="c-1", source_key="k", source_type="local", source_uri="/")
    file = draft.file(bytes(16), len(data))
    file.set_lengths([len(data)], len(data))
    assert store.chunk(digest(data)) is None
    assert file.put(0, 0, memoryview(data), digest(data), fingerprint(data))
    put = store.chunk(digest(data))
    assert put is not None and put.refs == 0 and store.chunks([digest(data)]) == [None]
    draft.commit()
    assert store.chunk(digest(data)).refs == 1  # type: ignore[union-attr]
    assert not file.put(0, 0, memoryview(data), digest(data), fingerprint(data))
    draft.fail("no more", "interrupted", keep=False)
    assert store.chunk_count() == 0


def test_leases(store: Store) -> None:
    one = Lease("job", 1, 10.0, None, 5, 6)
    two = Lease("job", 2, 10.0, 20.0, None, None)
    other = Lease("job.2", 1, 10.0, None, None, None)
    store.put_leases([one, two, other])
    assert sorted(store.leases(), key=lambda lease: (lease.job, lease.ordinal)) == [one, two, other]
    store.delete_leases("job", [2])
    assert len(store.leases()) == 2
    store.delete_leases("job")
    assert store.leases() == [other]
    store.delete_leases("job.2")


def test_descriptors_are_bounded_and_valid_while_held(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "s"), open_blobs=4)
    contents = {b"f%02d" % n: noise(n, 70_000) for n in range(20)}
    made = write(store, "a", contents)
    blobs = list(store.own_blobs(made.ordinal).values())
    before = len(os.listdir("/proc/self/fd"))
    with store.blob(blobs[0]) as held:
        for blob in blobs:
            with store.blob(blob) as handle:
                assert os.pread(handle.fd, 10, 0)
        assert os.pread(held.fd, 70_000, 0) == contents[b"f00"]
        assert len(os.listdir("/proc/self/fd")) <= before + 5
    store.close()
    assert len(os.listdir("/proc/self/fd")) <= before - 4
