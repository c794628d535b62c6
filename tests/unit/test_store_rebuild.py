"""A new index from manifests, records, placements and blobs."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ckptfs.errors import StoreDamaged, StoreError, StoreLocked
from ckptfs.store import Checkpoint, RebuildReport, Store, placement, rebuild
from ckptfs.testing.audit import audit
from ckptfs.testing.writing import Writing, read_back, write

CHUNK = 50_000


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


TREES = {
    "a": {b"f": noise(1, 400_000), b"s": b"small one", b"z": bytes(200_000)},
    "b": {b"f": noise(1, 200_000) + noise(2, 200_000), b"twin": noise(1, 400_000)},
    "c": {b"f": noise(3, 300_000) + bytes(100_000), b"empty": b""},
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "s")
    store = Store.open(path)
    for name, tree in TREES.items():
        write(store, name, tree, chunk_bytes=CHUNK)
    gone = write(store, "gone", {b"f": noise(4, 100_000)}, chunk_bytes=CHUNK)
    store.remove(gone.ordinal)
    store.rename(store.by_name("c").ordinal, "see")  # type: ignore[union-attr]
    store.close()
    return path


def rebuilt(path: str) -> tuple[RebuildReport, Store]:
    report = rebuild(path)
    store = Store.open(path)
    assert audit(store) == []
    return report, store


def before(path: str) -> tuple[list[Checkpoint], int, int, int, list[dict[int, int]]]:
    store = Store.open(path)
    try:
        found = store.checkpoints()
        own = [store.own_blobs(c.ordinal) for c in found]
        return found, store.chunk_count(), store.stored_bytes(), store.physical_bytes(), own
    finally:
        store.close()


@pytest.mark.parametrize("how", ["sound", "empty", "missing", "noise"])
def test_everything_comes_back(path: str, how: str) -> None:
    was = before(path)
    data = Path(path, "index/data.mdb")
    if how == "empty":
        os.truncate(data, 0)
    elif how == "missing":
        shutil.rmtree(data.parent)
    elif how == "noise":
        data.write_bytes(noise(1, 100_000))
    seen: list[tuple[int, int]] = []
    report = rebuild(path, lambda done, total: seen.append((done, total)))
    assert [c.name for c in report.restored] == ["a", "b", "see"]
    assert report.damaged == [] and report.blobs_removed == 0
    assert seen and seen[-1][0] == seen[-1][1] > 0
    assert bool(report.old_index) == (how != "missing")
    if how == "noise":
        assert Path(report.old_index, "data.mdb").stat().st_size == 100_000
    assert before(path) == was
    store = Store.open(path)
    assert audit(store) == []
    for checkpoint in store.checkpoints():
        assert read_back(store, checkpoint) == TREES["c" if checkpoint.name == "see" else checkpoint.name]
    new = write(store, "new", {b"n": noise(9, 100_000)}, chunk_bytes=CHUNK)
    assert new.ordinal > max(c.ordinal for c in was[0]) + 1
    store.close()


def hurt(path: str, name: str) -> tuple[str, Path]:
    """The blob file of ``name``'s file "f"."""
    store = Store.open(path)
    checkpoint = store.by_name(name)
    assert checkpoint is not None
    blob = store.own_blobs(checkpoint.ordinal)[1 if name == "see" else 0]
    file = Path(store._core.layout.blob(blob))
    store.close()
    return name, file


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_blob_is_told_with_path_and_offset(path: str, how: str) -> None:
    _, file = hurt(path, "see")
    if how == "flipped":
        content = bytearray(file.read_bytes())
        content[123_456] ^= 4
        with open(file, "r+b") as out:
            out.write(content[:300_000])
    elif how == "truncated":
        os.truncate(file, 120_000)
    else:
        file.unlink()
    report, store = rebuilt(path)
    assert [c.name for c in report.restored] == ["a", "b"]
    first = report.damaged[0]
    assert (first.checkpoint, first.path) == ("see", b"f")
    expected = {"flipped": (100_000, 1), "truncated": (100_000, 4), "missing": (0, 6)}[how]
    assert (first.offset, len(report.damaged)) == expected
    assert [c.name for c in store.checkpoints()] == ["a", "b"]
    (draft,) = store.drafts()
    assert (draft.name, draft.status, draft.reason_code) == ("see", "failed", "store_damaged")
    assert "offset" in draft.reason
    # creating it again brings in only what is missing
    again = Writing(store, "see", TREES["c"], chunk_bytes=CHUNK)
    made = again.finish()
    assert again.written == expected[1]
    assert read_back(store, made) == TREES["c"]
    store.drop_draft(draft.ordinal)
    assert audit(store) == []
    assert os.path.exists(f"{path}/aside/{draft.ordinal}/record")
    store.close()


def test_damage_in_a_shared_chunk_is_told_of_all_who_show_it(path: str) -> None:
    _, file = hurt(path, "a")
    with open(file, "r+b") as out:
        out.seek(10)
        out.write(b"rot")
    report, store = rebuilt(path)
    assert {(d.checkpoint, d.path) for d in report.damaged} == {("a", b"f"), ("b", b"f"), ("b", b"twin")}
    assert [c.name for c in store.checkpoints()] == ["see"]
    store.close()


@pytest.mark.parametrize("what", ["manifest", "placement", "record"])
def test_a_damaged_small_file_costs_its_checkpoint_only(path: str, what: str) -> None:
    store = Store.open(path)
    see = store.by_name("see")
    assert see is not None
    place = store._core.layout
    file = Path(
        {
            "manifest": place.manifest(see.digest),
            "placement": place.placement(see.ordinal),
            "record": place.record(see.ordinal),
        }[what]
    )
    store.close()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    report, store = rebuilt(path)
    assert [c.name for c in report.restored] == ["a", "b"]
    assert len(report.damaged) >= 1
    assert len(store.drafts()) == 1
    store.close()


def test_a_lost_placement_whose_chunks_others_know_costs_nothing(path: str) -> None:
    store = Store.open(path)
    twin = write(store, "twin", TREES["a"], chunk_bytes=CHUNK)
    placed = store._core.layout.placement(twin.ordinal)
    store.close()
    os.unlink(placed)
    report, store = rebuilt(path)
    assert [c.name for c in report.restored] == ["a", "b", "see", "twin"] and report.damaged == []
    assert read_back(store, twin) == TREES["a"]
    store.close()


def test_creations_and_their_blobs_go(path: str) -> None:
    store = Store.open(path)
    Writing(store, "d", {b"f": noise(7, 500_000)}, chunk_bytes=CHUNK).put_some(3)
    store.close()
    report, store = rebuilt(path)
    assert report.blobs_removed == 1
    assert store.drafts() == []
    assert len(store.checkpoints()) == 3
    store.close()


def test_a_rebuild_again_and_after_one_cut_short(path: str) -> None:
    shutil.copytree(f"{path}/index", f"{path}/.tmp-index")
    os.truncate(f"{path}/.tmp-index/data.mdb", 10_000)
    was = before(path)
    rebuild(path)
    report = rebuild(path)
    assert len(report.restored) == 3
    assert before(path) == was


def test_two_records_of_one_name(path: str) -> None:
    """Cannot come about by a crash; a restored backup can do it."""
    store = Store.open(path)
    place, a, b = store._core.layout, store.by_name("a"), store.by_name("b")
    assert a is not None and b is not None
    record = Path(place.record(b.ordinal))
    record.write_bytes(placement.encode_record(replace(b, name="a")))
    store.close()
    report, store = rebuilt(path)
    assert report.renamed == {"a": f"a.{b.ordinal}"}
    assert store.by_name("a") == a and store.by_name(f"a.{b.ordinal}") is not None
    store.close()


def test_the_name_that_a_rebuild_gives_may_be_taken_too(path: str) -> None:
    store = Store.open(path)
    place = store._core.layout
    _, second, third = store.checkpoints()
    for one, name in ((second, f"a.{third.ordinal}"), (third, "a")):
        Path(place.record(one.ordinal)).write_bytes(placement.encode_record(replace(one, name=name)))
    store.close()
    _, store = rebuilt(path)
    names = {c.name: c.ordinal for c in store.checkpoints()}
    assert len(names) == 3
    assert names[f"a.{third.ordinal}"] == second.ordinal
    store.close()


def test_who_may_not(path: str, tmp_path: Path) -> None:
    store = Store.open(path)
    with pytest.raises(StoreLocked):
        rebuild(path)
    store.close()
    with pytest.raises(StoreError):
        rebuild(str(tmp_path / "none"))
    os.truncate(f"{path}/index/data.mdb", 0)
    with pytest.raises(StoreDamaged):
        Store.open(path)
