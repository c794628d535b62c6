"""Creations that stop and go on: resume, landing, failure, concurrency."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptfs.errors import Conflict, NotFound, SourceChanged
from ckptfs.model import manifest as model
from ckptfs.model.digest import digest, fingerprint
from ckptfs.store import Checkpoint, DraftFile, LandingBlob, Store
from ckptfs.testing.audit import audit
from ckptfs.testing.writing import Writing, cut, read_back, write

CHUNK = 100_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "store"))
    yield store
    assert audit(store) == []
    store.close()


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def begin(store: Store, contents: dict[bytes, bytes], name: str = "a") -> Writing:
    return Writing(store, name, contents, chunk_bytes=CHUNK, source_key="the same source")


# --- Resume -------------------------------------------------------------------------------------------


def test_a_resume_writes_only_what_is_missing(store: Store) -> None:
    contents = {b"f": noise(1, 20 * CHUNK), b"s1": b"one", b"s2": b"two"}
    first = begin(store, contents)
    first.put_some(12)
    first.draft.fail("the source died", "source_unavailable", keep=True)
    (record,) = store.drafts()
    assert (record.status, record.reason_code, record.bytes_kept) == (
        "failed",
        "source_unavailable",
        12 * CHUNK,
    )
    second = begin(store, contents, name="b")
    assert second.draft.ordinal == first.draft.ordinal
    assert second.draft.bytes_known == 12 * CHUNK
    made = second.finish()
    assert second.written == 10
    assert (made.name, made.creation) == ("b", "c-b")
    assert read_back(store, made) == contents
    # whole, in spite of the interruption
    (blob,) = store.own_blobs(made.ordinal).values()
    assert Path(store._core.layout.blob(blob)).read_bytes() == contents[b"f"]


def test_a_daemon_that_stops_keeps_what_arrived(tmp_path: Path) -> None:
    contents = {b"f": noise(1, 10 * CHUNK)}
    store = Store.open(str(tmp_path / "s"))
    begin(store, contents).put_some(4)
    spool = store.spool_path(store.drafts()[0].ordinal)
    Path(spool, "half").write_bytes(b"x")
    store.close()
    store = Store.open(str(tmp_path / "s"))
    assert not store.recovery
    assert store.drafts()[0].reason_code == "interrupted"
    assert Path(spool, "half").exists()
    again = begin(store, contents)
    again.finish()
    assert again.written == 6
    assert not os.path.exists(spool)
    assert audit(store) == []
    store.close()


def test_an_active_draft_is_not_resumed_by_another(store: Store) -> None:
    contents = {b"f": noise(1, 3 * CHUNK)}
    one = begin(store, contents)
    two = begin(store, contents)
    assert one.draft.ordinal != two.draft.ordinal
    with pytest.raises(Conflict):
        store.drop_draft(one.draft.ordinal)
    one.put_some()
    two.put_some()
    assert two.written == 0
    one.draft.fail("no", "interrupted", keep=False)
    made = two.publish()
    assert read_back(store, made) == contents


def test_dropping_a_draft_gives_its_bytes_back(store: Store) -> None:
    kept = write(store, "kept", {b"f": noise(1, 5 * CHUNK)}, chunk_bytes=CHUNK)
    physical = store.physical_bytes()
    draft = begin(store, {b"f": noise(1, 5 * CHUNK), b"g": noise(2, 5 * CHUNK), b"s": b"small"})
    draft.put_some()
    store.spool_path(draft.draft.ordinal)
    draft.draft.release()
    assert store.drafts()[0].bytes_kept == 10 * CHUNK + 5
    store.drop_draft(draft.draft.ordinal)
    assert store.drafts() == []
    assert store.physical_bytes() == physical
    assert os.listdir(store._core.layout.spools) == []
    assert read_back(store, kept) == {b"f": noise(1, 5 * CHUNK)}
    with pytest.raises(NotFound):
        store.drop_draft(draft.draft.ordinal)


def test_a_failed_creation_that_keeps_nothing_stays_visible(store: Store) -> None:
    draft = begin(store, {b"f": noise(1, 5 * CHUNK)})
    draft.put_some(3)
    draft.draft.commit()
    draft.put_some(1)
    draft.draft.fail("refused", "source_refused", keep=False)
    (record,) = store.drafts()
    assert (record.status, record.reason, record.bytes_kept) == ("failed", "refused", 0)
    assert store.physical_bytes() == store.chunk_count() == 0
    with pytest.raises(RuntimeError):
        draft.draft.commit()


def test_what_a_resumed_source_no_longer_has_is_given_up(store: Store) -> None:
    first = begin(store, {b"old": noise(1, 5 * CHUNK), b"same": noise(2, 5 * CHUNK)})
    first.put_some()
    first.draft.release()
    second = begin(store, {b"same": noise(2, 5 * CHUNK)})
    made = second.finish()
    assert second.written == 0
    assert store.stored_bytes() == 5 * CHUNK
    assert read_back(store, made) == {b"same": noise(2, 5 * CHUNK)}


def test_other_cuts_make_other_chunks_in_another_blob(store: Store) -> None:
    content = noise(1, 6 * CHUNK)
    first = begin(store, {b"f": content})
    first.put_some(3)
    first.draft.release()
    second = begin(store, {b"f": content})
    second.file(b"f").set_lengths(cut(content, 150_000), len(content))
    assert second.file(b"f").known == {}
    made = second.finish()
    assert read_back(store, made) == {b"f": content}
    (blob,) = store.own_blobs(made.ordinal).values()
    assert Path(store._core.layout.blob(blob)).read_bytes() == content


def test_a_chunk_that_changes_in_mid_creation_is_refused(store: Store) -> None:
    draft = begin(store, {b"f": noise(1, 2 * CHUNK)})
    draft.put_some()
    other = noise(9, CHUNK)
    with pytest.raises(SourceChanged):
        draft.file(b"f").put(0, 0, memoryview(other), digest(other), fingerprint(other))
    draft.draft.fail("changed", "source_changed", keep=False)


# --- Landing ------------------------------------------------------------------------------------------


def land(store: Store, content: bytes, key: str = "landed") -> tuple[Writing, DraftFile, LandingBlob]:
    writing = Writing(store, "z", {}, source_key=key)
    file = writing.draft.file(bytes(16), None)
    landing = file.landing()
    for at in range(0, len(content), 77_777):
        landing.write_at(at, memoryview(content)[at : at + 77_777])
    return writing, file, landing


def put_landed(file: DraftFile, landing: LandingBlob, size: int, first: int = 0, last: int = 1 << 30) -> int:
    lengths = cut(bytes(size), CHUNK)
    file.set_lengths(lengths, size)
    new = 0
    for index, length in enumerate(lengths):
        if first <= index < last:
            data = bytearray(length)
            landing.read_at(index * CHUNK, memoryview(data))
            new += file.put(
                index, index * CHUNK, memoryview(data), digest(data), fingerprint(data), landed=True
            )
    return new


def publish(writing: Writing, file: DraftFile, size: int) -> Checkpoint:
    manifest = model.of([model.File(b"f", False, size, list(file.lengths or ()), file.digests())])
    return writing.draft.publish(model.encode(manifest), {0: file}, files=1, directories=0, size_bytes=size)


def test_landed_bytes_are_adopted_where_they_lie(store: Store) -> None:
    content = noise(1, 7 * CHUNK + 5)
    writing, file, landing = land(store, content)
    assert landing.size == len(content)
    assert put_landed(file, landing, len(content)) == 8
    made = publish(writing, file, len(content))
    (blob,) = store.own_blobs(made.ordinal).values()
    assert Path(store._core.layout.blob(blob)).read_bytes() == content
    assert read_back(store, made) == {b"f": content}


def test_landed_bytes_that_are_there_already_are_punched(store: Store) -> None:
    content = noise(1, 5 * CHUNK) + bytes(CHUNK) + noise(2, CHUNK)
    write(store, "twin", {b"f": content[: 5 * CHUNK]}, chunk_bytes=CHUNK)
    physical = store.physical_bytes()
    writing, file, landing = land(store, content)
    assert put_landed(file, landing, len(content)) == 1
    made = publish(writing, file, len(content))
    assert read_back(store, made) == {b"f": content}
    assert store.physical_bytes() - physical <= CHUNK + 8192


def test_a_resumed_landing_never_overwrites_recorded_chunks(store: Store) -> None:
    content = noise(1, 7 * CHUNK)
    writing, file, landing = land(store, content)
    put_landed(file, landing, len(content), last=4)
    writing.draft.release()
    again, file, landing = land(store, content)
    assert put_landed(file, landing, len(content)) == 3
    made = publish(again, file, len(content))
    assert read_back(store, made) == {b"f": content}
    (blob,) = store.own_blobs(made.ordinal).values()
    assert Path(store._core.layout.blob(blob)).read_bytes() == content


def test_a_resumed_landing_of_other_bytes_is_refused(store: Store) -> None:
    content = noise(1, 7 * CHUNK)
    writing, file, landing = land(store, content)
    put_landed(file, landing, len(content), last=4)
    other = write(store, "other", {b"f": content[: 2 * CHUNK]}, chunk_bytes=CHUNK)
    writing.draft.release()
    changed = bytearray(content)
    changed[150_000] ^= 1
    with pytest.raises(SourceChanged):
        land(store, bytes(changed))
    assert read_back(store, other) == {b"f": content[: 2 * CHUNK]}
    for draft in list(store._core.active.values()):
        draft.fail("changed", "source_changed", keep=False)


# --- Many at once -------------------------------------------------------------------------------------


def test_many_threads_put_the_same_and_other_chunks(store: Store) -> None:
    """Eight threads, files that share most chunks, commits going on meanwhile."""
    common = [noise(n, CHUNK) for n in range(20)]
    contents = {
        b"f%d" % n: b"".join(random.Random(n).sample(common, 20)) + noise(100 + n, CHUNK) for n in range(8)
    }
    contents |= {b"s%d" % n: noise(n % 30, 3000) for n in range(100)}
    writing = begin(store, contents)
    for path in contents:
        writing.file(path)
    jobs = [
        (path, index, offset * CHUNK)
        for path in contents
        for index, offset in enumerate(range(len(writing.file(path).lengths or ())))
    ]
    random.Random(5).shuffle(jobs)

    def put(job: tuple[bytes, int, int]) -> None:
        path, index, offset = job
        data = memoryview(contents[path])[offset : offset + CHUNK]
        writing.file(path).put(index, offset, data, digest(data), fingerprint(data))

    done = threading.Event()

    def keep_committing() -> None:
        while not done.is_set():
            writing.draft.commit()

    committer = threading.Thread(target=keep_committing)
    committer.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, jobs))
    done.set()
    committer.join()
    made = writing.publish()
    assert read_back(store, made) == contents
    assert store.stored_bytes() == 28 * CHUNK + 30 * 3000


def test_creations_and_removals_race_over_the_same_chunks(store: Store) -> None:
    """Removal takes last references while puts are about to use the same chunks."""
    common = [noise(n, 30_000) for n in range(12)]

    def live(seed: int) -> None:
        chosen = random.Random(seed)
        for step in range(12):
            contents = {b"f": b"".join(chosen.sample(common, 8)), b"s": common[chosen.randrange(12)][:9000]}
            name = f"{seed}.{step}"
            writing = Writing(store, name, contents, chunk_bytes=30_000)
            while writing.put_some(3):
                if chosen.random() < 0.3:
                    writing.draft.commit()
            if chosen.random() < 0.25:
                writing.draft.fail("by chance", "interrupted", keep=chosen.random() < 0.5)
                continue
            made = writing.publish()
            assert read_back(store, made) == contents
            store.remove(made.ordinal)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(live, range(4)))
    for draft in store.drafts():
        store.drop_draft(draft.ordinal)
    assert (store.chunk_count(), store.stored_bytes(), store.physical_bytes()) == (0, 0, 0)
