"""Derived copies on real file systems: with shared blocks (XFS, btrfs), and on full disks (ext4 too)."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from store_child import assemble

from ckptfs.engine import Engine, EngineConfig
from ckptfs.errors import StoreFull
from ckptfs.model import manifest as manifests
from ckptfs.model.digest import digest
from ckptfs.model.records import CheckpointInfo, CreateRequest
from ckptfs.store import Store, Why, kernel
from ckptfs.testing import maker
from ckptfs.testing.audit import audit
from ckptfs.testing.checkpoints import make_checkpoint
from ckptfs.testing.disks import SHARING, MakeDisk
from ckptfs.testing.httpserver import HttpServer
from ckptfs.testing.maker import Tensor, model, noise, safetensors, tensor
from ckptfs.testing.writing import Writing

MB = 1_000_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a loop file system needs root")


def weights(seed: int = 1) -> dict[str, Tensor]:
    """About 40 MB: matrices of 2 MiB, norms of 2 KiB between them."""
    return model(seed, layers=4, width=1024, vocabulary=4000)


def tuned(of: dict[str, Tensor], *changed: str) -> dict[str, Tensor]:
    return {name: tensor(f"tuned {name}", *t.shape) if name in changed else t for name, t in of.items()}


BASE = safetensors(weights())
TUNED = safetensors(tuned(weights(), "layers.1.attention.q.weight", "layers.3.norm.weight"))
SHIFTED = safetensors(weights(), {"trained by": "somebody with a longer header"})


def free(store: Store) -> int:
    """What is free when the file system has finished what it does in the background."""
    os.sync()
    return store.disk_free_bytes()


def content(store: Store, name: str, path: bytes = b"m") -> bytes:
    checkpoint = store.by_name(name)
    assert checkpoint is not None
    entries = manifests.decode(store.manifest(checkpoint.digest)).entries
    entry = next(index for index, e in enumerate(entries) if e.path == path)
    fd = store.open_copy(checkpoint.ordinal, entry)
    with open(fd, "rb") as file:
        return file.read()


# --- Shared blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHARING)
def test_a_fine_tune_takes_no_space_twice(disk: MakeDisk, kind: str) -> None:
    with closing(Store.open(disk(400 * MB, kind))) as store:
        make_checkpoint(store, "base", {b"m": BASE})
        make_checkpoint(store, "tuned", {b"m": TUNED})
        before, physical = free(store), store.physical_bytes()
        assert assemble(store, "tuned") == 1
        assert content(store, "tuned") == TUNED
        (copy,) = store.copies()
        assert copy.why is Why.FREE
        assert copy.physical_bytes <= len(TUNED) // 256
        assert store.physical_bytes() == physical + copy.physical_bytes
        # What the file system says: the copied edges, and its own notes of who shares what.
        assert before - free(store) < copy.physical_bytes + MB
        assert audit(store) == []


@pytest.mark.parametrize("kind", SHARING)
def test_what_is_shifted_by_less_than_a_block_is_copied(disk: MakeDisk, kind: str) -> None:
    assert (len(SHIFTED) - len(BASE)) % 4096
    with closing(Store.open(disk(400 * MB, kind))) as store:
        make_checkpoint(store, "base", {b"m": BASE})
        make_checkpoint(store, "shifted", {b"m": SHIFTED})
        before = free(store)
        assert assemble(store, "shifted") == 1
        assert content(store, "shifted") == SHIFTED
        (copy,) = store.copies()
        assert copy.why is Why.ASKED
        assert copy.physical_bytes > len(SHIFTED) * 0.99
        assert abs(before - free(store) - copy.physical_bytes) < MB
        assert audit(store) == []


@pytest.mark.parametrize("kind", SHARING)
def test_what_it_shared_with_goes_and_the_copy_stays(disk: MakeDisk, kind: str) -> None:
    with closing(Store.open(disk(400 * MB, kind))) as store:
        base = make_checkpoint(store, "base", {b"m": BASE, b"other": noise("other", 8 * MB)})
        make_checkpoint(store, "tuned", {b"m": TUNED})
        assemble(store, "tuned")
        before = free(store)
        report = store.remove(base.ordinal)
        assert content(store, "tuned") == TUNED
        assert free(store) - before > report.bytes_freed - MB, "nothing is held that nobody needs"
        assert audit(store) == []
        # And after the copy has gone, the file is read from its chunks as before.
        (copy,) = store.copies()
        store.drop_copies([(copy.ordinal, copy.entry)])
        assert assemble(store, "tuned") == 1
        assert content(store, "tuned") == TUNED


@pytest.mark.parametrize("kind", SHARING)
def test_copies_that_share_with_damage_go_and_come_back(disk: MakeDisk, kind: str) -> None:
    with closing(Store.open(disk(400 * MB, kind))) as store:
        make_checkpoint(store, "base", {b"m": BASE, b"other": BASE[:100_000]})
        make_checkpoint(store, "tuned", {b"m": TUNED})
        assemble(store, "tuned")
        data = weights()["layers.0.attention.k.weight"].data
        chunk = store.chunk(digest(data))
        assert chunk is not None
        with open(store._core.layout.blob(chunk.blob), "r+b") as file:
            file.seek(chunk.offset + 100)
            file.write(b"rot")
        assert store.quarantine([chunk.digest]) == 1
        assert store.copy_totals().copies == 0
        make_checkpoint(store, "again", {b"tensor": data})
        assert store.quarantined() == set()
        assert assemble(store, "tuned") == 1
        assert content(store, "tuned") == TUNED
        assert audit(store) == []


async def test_many_files_are_shared_batch_by_batch(disk: MakeDisk) -> None:
    """Each of two tensors, one of them changed: a run that is shared, and the block in the middle."""
    with closing(Store.open(disk(400 * MB, "xfs"))) as store:

        def files(second: str) -> dict[bytes, Any]:
            return {
                b"%03d" % n: safetensors(
                    {"a": tensor(f"a {n}", 200, 100), "b": tensor(f"{second} {n}", 200, 100)}
                )
                for n in range(150)
            }

        make_checkpoint(store, "base", files("b"))
        after = files("c")
        checkpoint = make_checkpoint(store, "tuned", after)
        async with Engine(store, EngineConfig(mount="/mnt/somewhere")) as engine:
            with trio.fail_after(60):
                while (shown := await engine.show("tuned")).native_files != 150:
                    await trio.sleep(0.05)
            assert shown.served_files == {}
        for path in (b"000", b"077", b"149"):
            assert content(store, "tuned", path) == after[path]
        assert store.copy_totals(checkpoint.ordinal).physical_bytes <= 150 * 2 * 4096
        assert audit(store) == []


async def test_what_cannot_be_shared_after_all_is_not_copied_by_itself(disk: MakeDisk) -> None:
    """btrfs shares no blocks between files that are written in place (chattr +C) and others."""
    with closing(Store.open(disk(400 * MB, "btrfs"))) as store:
        for folder in os.scandir(store.blobs_directory):
            assert kernel.write_in_place(folder.path)
        assert store.can_share_blocks()
        make_checkpoint(store, "base", {b"m": BASE})
        tuned = make_checkpoint(store, "tuned", {b"m": TUNED})
        async with Engine(store, EngineConfig(mount="/mnt/somewhere")) as engine:
            with trio.fail_after(20):
                while tuned.ordinal not in store.natives():
                    await trio.sleep(0.02)
            assert store.copy_totals().copies == 0
            assert (await engine.assemble("tuned", quiet)).native_files == 1
            (copy,) = store.copies()
            assert copy.why is Why.ASKED
            assert copy.physical_bytes > len(TUNED) * 0.99
        assert content(store, "tuned") == TUNED
        assert audit(store) == []


# --- Full disks ---------------------------------------------------------------------------------------

KINDS = ("ext4", *SHARING)


@pytest.mark.parametrize("kind", KINDS)
def test_a_put_on_a_full_disk_takes_the_room_of_copies(disk: MakeDisk, kind: str) -> None:
    with closing(Store.open(disk(420 * MB, kind))) as store:
        make_checkpoint(store, "base", {b"m": BASE})
        shifted = make_checkpoint(store, "shifted", {b"m": SHIFTED})
        assemble(store, "shifted")
        # What is left does not hold the next one, and the copy's room does.
        assert store.copy_totals().physical_bytes > 30 * MB
        size = free(store) + 5 * MB
        writing = Writing(store, "big", {b"f": os.urandom(size)}, chunk_bytes=1 << 20)
        while writing.put_some(8):
            writing.draft.commit()
        assert store.copy_totals().copies == 0
        if kind == "btrfs":  # to the last byte means without room for a file's name
            writing.draft.fail("the disk is full", "store_full", keep=False)
        else:
            writing.publish()
            assert assemble_fails(store)
        assert audit(store) == []
        assert store.by_ordinal(shifted.ordinal) is not None


def ballast(store: Store, *, leave: int) -> None:
    """Take all of the disk but so many bytes. In steps: btrfs says what is free when it has written it, and
    then not to the byte."""
    at = 0
    with open(f"{store.path}/ballast", "wb") as file:
        while (too_many := free(store) - leave) > MB:
            step = max(MB, too_many // 2)
            os.posix_fallocate(file.fileno(), at, step)
            at += step


def assemble_fails(store: Store) -> bool:
    """A disk that is full now has no room for the copy; and nothing of the attempt is left."""
    with pytest.raises(StoreFull):
        assemble(store, "shifted")
    return os.listdir(store._core.layout.derived_folder) == []


def fill(store: Store) -> None:
    """To the last block: in large steps, then block by block."""
    with open(f"{store.path}/ballast", "wb", buffering=0) as file:
        for step in (MB, 4096, 4096, 4096):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(step))
                    if step < MB:
                        os.fsync(file.fileno())


@pytest.mark.parametrize("kind", KINDS)
def test_a_removal_works_on_a_full_disk(disk: MakeDisk, kind: str) -> None:
    """Its chunks begin and end inside blocks, which btrfs, and whoever shares them, cannot write in place."""
    with closing(Store.open(disk(400 * MB, kind))) as store:
        base = make_checkpoint(store, "base", {b"m": BASE})
        make_checkpoint(store, "tuned", {b"m": TUNED})
        assemble(store, "tuned")
        fill(store)
        store.remove(base.ordinal)
        os.unlink(f"{store.path}/ballast")
        assert audit(store) == []


def test_a_copy_that_is_open_makes_no_room(disk: MakeDisk) -> None:
    with closing(Store.open(disk(250 * MB))) as store:
        make_checkpoint(store, "base", {b"m": BASE})
        make_checkpoint(store, "shifted", {b"m": SHIFTED})
        assemble(store, "shifted")
        (copy,) = store.copies()
        fd = store.open_copy(copy.ordinal, copy.entry)
        ballast(store, leave=10 * MB)
        writing = Writing(store, "big", {b"f": noise("big", 25 * MB)}, chunk_bytes=1 << 20)
        with pytest.raises(StoreFull):
            while writing.put_some(8):
                writing.draft.commit()
        assert store.copy_totals().copies == 1
        os.close(fd)
        while writing.put_some(8):
            writing.draft.commit()
        writing.publish()
        assert store.copy_totals().copies == 0
        assert audit(store) == []


async def ended(engine: Engine, name: str, source: Path | str) -> CheckpointInfo:
    info = await engine.create(CreateRequest(name=name, source_uri=str(source)))
    with trio.fail_after(60):
        while (now := engine.get(info.creation)).status not in ("ready", "failed"):
            await trio.sleep(0.01)
    return now


def quiet(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("kind", KINDS)
async def test_copies_go_before_a_creation_is_refused(disk: MakeDisk, kind: str, tmp_path: Path) -> None:
    """By its size, before anything is read: the reserve of the disk is kept."""
    with closing(Store.open(disk(1000 * MB, kind))) as store:
        reserve = store.disk_total_bytes() // 20
        for name, body in (("base", BASE), ("shifted", SHIFTED)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "m").write_bytes(body)
        async with Engine(store, EngineConfig(mount="/mnt/somewhere")) as engine:
            for name in ("base", "shifted"):
                assert (await ended(engine, name, tmp_path / name)).status == "ready"
            assert (await engine.assemble("shifted", quiet)).native_files == 1
            ballast(store, leave=reserve + 10 * MB)
            (tmp_path / "big").mkdir()
            (tmp_path / "big" / "f").write_bytes(noise("big", 25 * MB))
            made = await ended(engine, "big", tmp_path / "big")
            assert (made.status, made.reason) == ("ready", "")
            assert store.copy_totals().copies == 0
            if kind != "btrfs":  # whose figure of what is free is an estimate
                with pytest.raises(StoreFull, match="the derived copies of 'shifted' need"):
                    await engine.assemble("shifted", quiet)
            os.unlink(f"{store.path}/ballast")
            os.sync()
            assert (await engine.assemble("shifted", quiet)).native_files == 1
        assert audit(store) == []


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_copies_in_the_making_go_before_a_creation_is_refused(
    disk: MakeDisk, kind: str, tmp_path: Path
) -> None:
    with closing(Store.open(disk(400 * MB, kind))) as store:
        make_checkpoint(store, "base", {b"m": BASE})
        make_checkpoint(store, "shifted", {b"m": SHIFTED})
        (tmp_path / "big").mkdir()
        (tmp_path / "big" / "f").write_bytes(noise("big", 15 * MB))
        refused: list[StoreFull] = []

        async def ask(engine: Engine) -> None:
            try:
                await engine.assemble("shifted", lambda done, total: time.sleep(0.3 if done > 25 * MB else 0))
            except StoreFull as error:
                refused.append(error)

        async with Engine(store, EngineConfig(mount="/mnt/somewhere", reserve_free_bytes=5 * MB)) as engine:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, engine)
                with trio.fail_after(20):
                    while store.unfinished_bytes() < 25 * MB:
                        await trio.sleep(0.01)
                ballast(store, leave=10 * MB)
                assert store.unfinished_bytes(), "it is being made still"
                made = await ended(engine, "big", tmp_path / "big")
            assert (made.status, made.reason) == ("ready", "")
            assert "'shifted': a derived copy in the making (file 0) gave way" in str(refused[0])
            os.unlink(f"{store.path}/ballast")
            with trio.fail_after(10):  # XFS gives it back in the background
                while free(store) < 60 * MB:
                    await trio.sleep(0.02)
            assert (await engine.assemble("shifted", quiet)).native_files == 1
        assert audit(store) == []


async def test_an_archive_takes_no_more_copies_than_it_needs(disk: MakeDisk, http_server: HttpServer) -> None:
    with closing(Store.open(disk(300 * MB))) as store:
        for name, extra in (("base", {}), ("one", {"n": "1" * 100}), ("two", {"n": "2" * 300})):
            make_checkpoint(store, name, {b"m": safetensors(weights(), extra)})
        archive = maker.ARCHIVES[".tar.gz"]({"f": noise("big", 15 * MB)})
        url = http_server.put("/big.tar.gz", archive)
        async with Engine(store, EngineConfig(mount="/mnt/somewhere", reserve_free_bytes=5 * MB)) as engine:
            for name in ("one", "two"):
                assert (await engine.assemble(name, quiet)).native_files == 1
            ballast(store, leave=10 * MB)
            made = await ended(engine, "big", url)
            assert (made.status, made.reason) == ("ready", "")
            assert [(await engine.show(name)).native_files for name in ("one", "two")] == [0, 1]
            os.unlink(f"{store.path}/ballast")
        assert audit(store) == []


async def test_a_checkpoint_asked_for_makes_others_copies_go(disk: MakeDisk, tmp_path: Path) -> None:
    with closing(Store.open(disk(200 * MB))) as store:
        for name, extra in (("base", {}), ("one", {"n": "1" * 100}), ("two", {"n": "2" * 300})):
            make_checkpoint(store, name, {b"m": safetensors(weights(), extra)})
        async with Engine(store, EngineConfig(mount="/mnt/somewhere", reserve_free_bytes=5 * MB)) as engine:
            ballast(store, leave=60 * MB)
            assert (await engine.assemble("one", quiet)).native_files == 1
            assert (await engine.assemble("two", quiet)).native_files == 1
            assert (await engine.show("one")).native_files == 0
            os.unlink(f"{store.path}/ballast")
        assert audit(store) == []


async def test_what_is_refused_all_the_same_takes_no_copies(disk: MakeDisk, tmp_path: Path) -> None:
    with closing(Store.open(disk(200 * MB))) as store:
        make_checkpoint(store, "base", {b"m": BASE})
        make_checkpoint(store, "one", {b"m": safetensors(weights(), {"n": "1" * 100})})
        make_checkpoint(store, "two", {b"m": SHIFTED, b"n": safetensors(weights(), {"n": "2" * 300})})
        async with Engine(store, EngineConfig(mount="/mnt/somewhere", reserve_free_bytes=5 * MB)) as engine:
            assert (await engine.assemble("one", quiet)).native_files == 1
            ballast(store, leave=20 * MB)
            (tmp_path / "big").mkdir()
            (tmp_path / "big" / "f").write_bytes(noise("big", 100 * MB))
            assert (await ended(engine, "big", tmp_path / "big")).reason_code == "store_full"
            with pytest.raises(StoreFull, match="the derived copies of 'two' need"):
                await engine.assemble("two", quiet)
            assert (await engine.show("one")).native_files == 1
            os.unlink(f"{store.path}/ballast")
        assert audit(store) == []


async def test_what_was_mended_is_shared_anew(disk: MakeDisk, tmp_path: Path) -> None:
    """Damage takes the copies that share blocks with it; the creation that mends it brings them back."""
    with closing(Store.open(disk(400 * MB, "xfs"))) as store:
        for name, body in (("base", BASE), ("tuned", TUNED)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "m").write_bytes(body)
        async with Engine(store, EngineConfig(mount="/mnt/somewhere")) as engine:
            for name in ("base", "tuned"):
                assert (await ended(engine, name, tmp_path / name)).status == "ready"
            await native(engine, "tuned")
            chunk = store.chunk(digest(weights()["layers.0.attention.k.weight"].data))
            assert chunk is not None
            with open(store._core.layout.blob(chunk.blob), "r+b") as file:
                file.seek(chunk.offset + 100)
                file.write(b"rot")
            report = await engine.verify("tuned", quiet)
            assert [damage.path for damage in report.damaged] == ["m"]
            assert [copy.problem for copy in report.dropped] == ["it shared blocks with a damaged chunk"]
            assert (await engine.show("tuned")).served_files == {"damaged": 1}
            assert (await ended(engine, "again", tmp_path / "base")).status == "ready"
            await native(engine, "tuned")
            assert (await engine.verify("tuned", quiet)).damaged == []
        assert content(store, "tuned") == TUNED
        assert audit(store) == []


async def native(engine: Engine, name: str) -> None:
    with trio.fail_after(20):
        while (await engine.show(name)).native_files != 1:
            await trio.sleep(0.02)
