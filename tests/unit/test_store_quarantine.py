"""A chunk that was found damaged is written again by whoever brings it, for all who use it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ckptfs.model.digest import digest
from ckptfs.store import Checkpoint, Store
from ckptfs.testing.audit import audit
from ckptfs.testing.writing import Writing, read_back, write

CHUNK = 50_000
CONTENT = random.Random(1).randbytes(5 * CHUNK)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "store"))
    write(store, "a", {b"f": CONTENT}, chunk_bytes=CHUNK)
    write(store, "b", {b"g": CONTENT[: 3 * CHUNK]}, chunk_bytes=CHUNK)
    yield store
    assert audit(store) == []
    store.close()


def chunk(number: int) -> bytes:
    return digest(CONTENT[number * CHUNK : (number + 1) * CHUNK])


def found(store: Store, name: str) -> Checkpoint:
    checkpoint = store.by_name(name)
    assert checkpoint is not None
    return checkpoint


def hurt(store: Store, how: str) -> list[bytes]:
    """Damage the blob; the digests of the chunks that are damaged by it."""
    found = store.chunk(chunk(1))
    assert found is not None
    path = store._core.layout.blob(found.blob)
    if how == "flipped":
        with open(path, "r+b") as file:
            file.seek(CHUNK + 7)
            file.write(b"rot")
        return [chunk(1)]
    store._core.blobs.forget(found.blob)
    if how == "truncated":
        os.truncate(path, CHUNK + 10)
        return [chunk(n) for n in range(1, 5)]
    os.unlink(path)
    return [chunk(n) for n in range(5)]


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_creating_again_repairs_everybody(store: Store, how: str) -> None:
    damaged = hurt(store, how)
    assert store.quarantine([*damaged, digest(b"unknown")]) == len(damaged)
    assert store.quarantine(damaged) == 0
    assert store.quarantined() == set(damaged)
    before = (store.chunk_count(), store.stored_bytes())
    again = Writing(store, "again", {b"h": CONTENT}, chunk_bytes=CHUNK)
    made = again.finish()
    assert again.written == len(damaged)
    assert store.quarantined() == set()
    assert (store.chunk_count(), store.stored_bytes()) == before
    for checkpoint in store.checkpoints():
        content = next(iter(read_back(store, checkpoint).values()))
        assert content == CONTENT[: len(content)]
    assert audit(store) == []
    assert store.own_blobs(made.ordinal) != {}


def test_two_who_bring_what_a_lost_blob_had_do_not_meet(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.quarantine(hurt(store, "missing"))
    both, real = threading.Barrier(2), store._core.blobs.restore
    met: list[int] = []

    def restore(blob: int) -> None:
        both.wait(10)  # neither found the file
        met.append(blob)
        real(blob)

    monkeypatch.setattr(store._core.blobs, "restore", restore)
    with ThreadPoolExecutor(2) as pool:
        bring = partial(write, store, chunk_bytes=CHUNK)
        for made in [pool.submit(bring, name, {b"f": CONTENT}) for name in ("again", "more")]:
            made.result()
    assert len(met) == 2
    assert store.quarantined() == set()
    for checkpoint in store.checkpoints():
        content = next(iter(read_back(store, checkpoint).values()))
        assert content == CONTENT[: len(content)]


def test_a_quarantine_is_remembered_and_ends_with_its_chunk(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    store = Store.open(path)
    a = write(store, "a", {b"f": CONTENT}, chunk_bytes=CHUNK)
    damaged = hurt(store, "flipped")
    store.quarantine(damaged)
    store.close()
    store = Store.open(path)
    assert store.quarantined() == set(damaged)
    store.remove(a.ordinal)
    store.close()
    store = Store.open(path)
    assert store.quarantined() == set()
    assert audit(store) == []
    store.close()


def test_a_resume_brings_damaged_chunks_again(store: Store) -> None:
    more = CONTENT + random.Random(2).randbytes(3 * CHUNK)
    first = Writing(store, "c", {b"f": more}, chunk_bytes=CHUNK)
    first.put_some(7)
    first.draft.release()
    store.quarantine(hurt(store, "flipped"))
    second = Writing(store, "c", {b"f": more}, chunk_bytes=CHUNK)
    made = second.finish()
    assert second.written == 2
    assert read_back(store, made) == {b"f": more}
    assert store.quarantined() == set()


def test_a_creation_that_fails_after_a_repair_leaves_it_done_or_noted(store: Store) -> None:
    store.quarantine(hurt(store, "flipped"))
    writing = Writing(store, "c", {b"f": CONTENT}, chunk_bytes=CHUNK)
    writing.put_some(3)
    writing.draft.fail("no more", "interrupted", keep=False)
    assert audit(store) == []
    writing = Writing(store, "c", {b"f": CONTENT}, chunk_bytes=CHUNK)
    writing.finish()
    assert store.quarantined() == set()


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_repair_makes_no_zeros_of_what_nobody_missed_yet(store: Store, how: str) -> None:
    """One chunk of a lost blob is mended: the others must not read as the hole that is there now."""
    lost = hurt(store, how)
    last = 4 * CHUNK
    assert chunk(4) in lost
    store.quarantine([chunk(4)])
    write(store, "again", {b"h": CONTENT[last:]}, chunk_bytes=CHUNK)
    assert store.quarantined() == set(lost) - {chunk(4)}
    write(store, "all of it", {b"h": CONTENT}, chunk_bytes=CHUNK)
    assert store.quarantined() == set()
    assert read_back(store, found(store, "a")) == {b"f": CONTENT}


def test_a_repair_makes_no_zeros_in_a_pack(store: Store) -> None:
    small = {b"1": b"one" * 1000, b"2": b"two" * 2000}
    write(store, "small", small)
    first, second = (digest(content) for content in small.values())
    place = store.chunk(second)
    assert place is not None and place.offset > 0
    store._core.blobs.forget(place.blob)
    os.unlink(store._core.layout.blob(place.blob))
    store.quarantine([second])
    write(store, "again", {b"2": small[b"2"]})
    assert store.quarantined() == {first}
    write(store, "once more", small)
    assert read_back(store, found(store, "small")) == small
