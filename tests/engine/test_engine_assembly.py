"""Derived copies through the real engine, on a disk without shared blocks: who gets one, when, and what
makes way for what. (Disks with shared blocks, full disks and mounts: tests/fault, tests/e2e.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ckptfs.engine import Engine, EngineConfig
from ckptfs.errors import NotFound
from ckptfs.model.records import AssembleReport, CheckpointInfo, CreateRequest
from ckptfs.store import Store
from ckptfs.testing.audit import audit
from ckptfs.testing.checkpoints import noise

MIB = 1 << 20
A, B, C, D = (noise(seed, 4 * MIB) for seed in range(4))


@asynccontextmanager
async def running(path: Path, **config: object) -> AsyncIterator[tuple[Engine, Store]]:
    store = Store.open(str(path))
    assert not store.can_share_blocks(), "these tests are about a file system without reflinks"
    try:
        async with Engine(store, EngineConfig(mount="/mnt/somewhere", **config)) as engine:  # type: ignore[arg-type]
            yield engine, store
        assert audit(store) == []
    finally:
        store.close()


async def create(engine: Engine, tmp_path: Path, name: str, files: Mapping[str, bytes]) -> CheckpointInfo:
    source = tmp_path / f"source of {name}"
    source.mkdir()
    for path, content in files.items():
        (source / path).write_bytes(content)
    info = await engine.create(CreateRequest(name=name, source_uri=str(source)))
    with trio.fail_after(60):
        while (now := engine.get(info.creation)).status not in ("ready", "failed"):
            await trio.sleep(0.01)
    assert now.status == "ready", now.reason
    return now


async def until(true: Callable[[], object], what: str) -> None:
    with trio.move_on_after(20) as scope:
        while not true():
            await trio.sleep(0.01)
    assert not scope.cancelled_caught, f"it did not happen: {what}"


def looked_at(engine: Engine, store: Store, count: int) -> bool:
    return len(store.natives()) == count and engine._assembly._at is None and not engine._assembly._queue


def quiet(done: int, total: int) -> None:
    pass


async def test_without_a_limit_only_what_costs_nothing_is_made(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B, "zeros": bytes(5 * MIB), "s": b"small"})
        await until(lambda: looked_at(engine, store, 2), "both are looked at")
        shown = await engine.show("tune")
        assert (shown.native_files, shown.whole_files, shown.derived_files) == (1, 0, 1)
        assert shown.served_files == {"shared": 1, "small": 1}
        assert shown.derived_bytes == 0
        entries = {e.path: (e.form, e.native) for e in await engine.tree("tune")}
        assert entries == {"f": ("shared", False), "zeros": ("derived", True), "s": ("small", False)}
        status = engine.store_status()
        assert (status.files, status.native_files, status.derived_files, status.derived_bytes) == (4, 2, 1, 0)


async def test_who_asks_gets_all_and_can_give_it_back(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as (engine, _):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B, "g": B + A})
        before = engine.store_status().physical_bytes
        steps: list[tuple[int, int]] = []
        report = await engine.assemble("tune", lambda done, total: steps.append((done, total)))
        assert (report.made, report.files, report.native_files, report.served_files) == (2, 2, 2, {})
        assert (report.derived_files, report.derived_bytes) == (2, 16 * MIB)
        assert steps[-1] == (16 * MIB, 16 * MIB)
        assert steps == sorted(steps)
        assert engine.store_status().physical_bytes == before + 16 * MIB
        again = await engine.assemble("tune", quiet)
        assert (again.made, again.native_files) == (0, 2)
        dropped = await engine.drop_derived("tune")
        assert (dropped.dropped, dropped.freed_bytes, dropped.native_files) == (2, 16 * MIB, 0)
        assert engine.store_status().physical_bytes == before
        with pytest.raises(NotFound):
            await engine.assemble("absent", quiet)


async def test_with_a_limit_new_checkpoints_become_native(tmp_path: Path) -> None:
    async with running(tmp_path / "store", derived_limit_bytes=17 * MIB) as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "one", {"f": C + B, "g": B + A})
        await until(lambda: store.copy_totals().limited_bytes == 16 * MIB, "copies within the limit")
        # Another one makes its way: what was not used for the longest time goes, as much as is needed.
        two = await create(engine, tmp_path, "two", {"f": D + B})
        await until(lambda: store.copy_totals(ordinal(store, two)).copies == 1, "the new one has its copy")
        assert store.copy_totals(ordinal(store, store.by_name("one"))).copies == 1
        assert store.copy_totals().limited_bytes == 16 * MIB
    # The limit is lowered: the rest goes at the next start.
    async with running(tmp_path / "store", derived_limit_bytes=9 * MIB) as (engine, store):
        await until(lambda: store.copy_totals().limited_bytes == 8 * MIB, "the limit is kept")
    async with running(tmp_path / "store") as (engine, store):
        await until(lambda: store.copy_totals().copies == 0, "the limit is kept")


async def test_what_a_stop_cut_short_is_made_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a limit, where nothing else would have it looked at again."""
    begun = slow_steps(monkeypatch, only=b"zeros")
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "tune", {"zeros": bytes(5 * MIB), "f": A})
        await until(lambda: begun, "the background is at it")
    begun.append(b"go on")
    async with running(tmp_path / "store") as (engine, store):
        await until(lambda: store.copy_totals().copies == 1, "the next start makes it")


async def test_what_exceeds_the_limit_alone_drops_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "store", derived_limit_bytes=9 * MIB) as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        one = await create(engine, tmp_path, "one", {"f": C + B})
        await until(lambda: store.copy_totals().limited_bytes == 8 * MIB, "a copy within the limit")
        await create(engine, tmp_path, "two", {"f": D + C + B})
        await until(lambda: looked_at(engine, store, 3), "all are looked at")
        assert store.copy_totals(ordinal(store, one)).copies == 1


async def test_what_was_asked_for_is_not_limited(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B})
        await engine.assemble("tune", quiet)
    async with running(tmp_path / "store") as (engine, store):
        await until(lambda: looked_at(engine, store, 2), "the start has looked")
        await trio.sleep(0.1)
        assert store.copy_totals().copies == 1


async def test_what_was_given_back_is_not_made_again_by_itself(tmp_path: Path) -> None:
    for _ in range(2):
        async with running(tmp_path / "store", derived_limit_bytes=100 * MIB) as (engine, store):
            if store.by_name("tune") is None:
                await create(engine, tmp_path, "base", {"f": A + B})
                await create(engine, tmp_path, "tune", {"f": C + B})
                await until(lambda: store.copy_totals().copies == 1, "the copy is there")
                await engine.drop_derived("tune")
            engine._assembly.look()
            await until(lambda: looked_at(engine, store, 2), "it has looked")
            await trio.sleep(0.1)
            assert store.copy_totals().copies == 0
    async with running(tmp_path / "store", derived_limit_bytes=100 * MIB) as (engine, store):
        assert (await engine.assemble("tune", quiet)).made == 1


async def test_a_removal_does_not_wait_for_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background stops at its next step, and nothing of its work is left."""
    async with running(tmp_path / "store", derived_limit_bytes=1 << 40) as (engine, store):
        begun = slow_steps(monkeypatch)
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": D + C + B + A})
        await until(lambda: begun, "the background copies")
        with trio.fail_after(5):
            await engine.remove("tune")
        assert store.copy_totals().copies == 0
        assert engine._assembly._at is None


async def test_who_asks_does_not_wait_for_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store", derived_limit_bytes=1 << 40) as (engine, store):
        begun = slow_steps(monkeypatch, only=b"slow")
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "two", {"g": C + B})
        await until(lambda: store.copy_totals().copies == 1, "the first has its copy")
        await engine.drop_derived("two")
        one = await create(engine, tmp_path, "one", {"slow": D + C + B + A})
        await until(lambda: begun, "the background copies")
        with trio.fail_after(5):
            assert (await engine.assemble("two", quiet)).made == 1
        assert store.copy_totals(ordinal(store, one)).copies == 0
        begun.append(b"go on")  # quickly
        await until(lambda: store.copy_totals(ordinal(store, one)).copies == 1, "the background came back")


async def test_who_gives_copies_back_does_not_wait_for_another_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store") as (engine, store):
        begun = slow_steps(monkeypatch, only=b"slow")
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "two", {"g": C + B})
        await create(engine, tmp_path, "one", {"slow": D + C + B + A})
        assert (await engine.assemble("two", quiet)).made == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.assemble, "one", quiet)
            await until(lambda: begun, "the other is being copied")
            with trio.fail_after(5):
                assert (await engine.drop_derived("two")).dropped == 1
            # Those of the checkpoint itself come first, and then go.
            begun.append(b"go on")
            assert (await engine.drop_derived("one")).dropped == 1
        assert store.copy_totals().copies == 0
        assert engine._assembly._asking == {}


async def test_a_stop_does_not_wait_for_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker waits for the store; what ends later begins nothing more."""
    async with running(tmp_path / "store", derived_limit_bytes=1 << 40) as (engine, store):
        begun = slow_steps(monkeypatch)
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": D + C + B + A})
        await until(lambda: begun, "the background copies")
        with trio.fail_after(5):
            await engine.stop_work()
        assert engine._assembly._at is None
        begun.append(b"go on")  # quickly, if there were any more
        engine._assembly.creation_ended(store.by_name("tune"))
        engine._assembly.look()
        await trio.sleep(0.3)
        assert (engine._assembly._at, store.copy_totals().copies) == (None, 0)


async def test_what_costs_space_waits_while_something_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store", derived_limit_bytes=1 << 40) as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        creating = True
        monkeypatch.setattr(engine._assembly, "_creating", lambda: creating)
        await create(engine, tmp_path, "tune", {"f": C + B, "zeros": bytes(5 * MIB)})
        await until(lambda: looked_at(engine, store, 2), "both are looked at")
        assert store.copy_totals().physical_bytes == 0
        assert store.copy_totals().copies == 1, "what costs nothing does not wait"
        creating = False
        engine._assembly.creation_ended(None)
        await until(lambda: store.copy_totals().copies == 2, "the rest is made when that is over")


async def test_a_cancelled_request_keeps_what_it_made_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B, "slow": D + C + B + A})
        monkeypatch.setattr("ckptfs.engine.making._BATCH_FILES", 1)
        begun = slow_steps(monkeypatch, only=b"slow")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.assemble, "tune", quiet)
            await until(lambda: begun, "the second file is being copied")
            nursery.cancel_scope.cancel()
        assert store.copy_totals().copies == 1
        begun.append(b"go on")
        assert (await engine.assemble("tune", quiet)).made == 1


async def test_damage_that_is_met_is_told_and_quarantined(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B, "g": B + A})
        name = hurt(store, C)
        report: AssembleReport = await engine.assemble("tune", quiet)
        (damage,) = report.damaged
        assert (damage.checkpoint, damage.path, damage.offset, damage.length) == ("tune", "f", 0, 4 * MIB)
        assert (report.made, report.native_files, report.served_files) == (1, 1, {"damaged": 1})
        assert store.quarantined() == {name}
        # Its right bytes come with another creation; then it can be made.
        await create(engine, tmp_path, "again", {"f": C})
        assert store.quarantined() == set()
        assert (await engine.assemble("tune", quiet)).native_files == 2


async def test_verify_drops_a_copy_that_is_wrong(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B, "g": B + A, "h": A + C})
        await engine.assemble("tune", quiet)
        report = await engine.verify("tune", quiet)
        assert (report.copies, report.dropped, report.damaged) == (3, [], [])
        paths = [Path(store._core.layout.derived(c.ordinal, c.entry)) for c in store.copies()]
        flip(paths[0], 5 * MIB)
        paths[1].write_bytes(b"short")
        report = await engine.verify("tune", quiet)
        assert report.damaged == []
        assert sorted(copy.problem for copy in report.dropped) == [
            "it has 5 bytes instead of 8388608",
            "its bytes at offset 4194304 do not match their digest",
        ]
        assert store.copy_totals().copies == 1
        assert not paths[0].exists()
        assert (await engine.assemble("tune", quiet)).made == 2
        assert (await engine.verify("tune", quiet)).dropped == []


async def test_verify_does_not_take_a_copy_that_is_given_back_for_a_wrong_one(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as (engine, store):
        await create(engine, tmp_path, "base", {"f": A + B})
        await create(engine, tmp_path, "tune", {"f": C + B, "g": B + A})
        await engine.assemble("tune", quiet)
        freed = 0

        def give_back(done: int, total: int) -> None:
            nonlocal freed
            freed += store.make_room(1 << 40)  # at the first step, before any copy is read

        report = await engine.verify("tune", give_back)
        assert freed == 16 * MIB
        assert (report.copies, report.dropped, report.damaged) == (2, [], [])


# --- How ----------------------------------------------------------------------------------------------


def ordinal(store: Store, what: object) -> int:
    found = store.by_name(what.name)  # type: ignore[attr-defined]
    assert found is not None
    return found.ordinal


def slow_steps(monkeypatch: pytest.MonkeyPatch, only: bytes = b"") -> list[bytes]:
    """Copies of files wait 0.2 s before each of a hundred small steps: as a slow disk would make them. The
    list is filled when one has begun; something more in it makes them quick again."""
    from ckptfs.engine.derive import Deriver

    begun: list[bytes] = []
    real = Deriver.make

    def make(self: Deriver, of: int, work, *, asked, step):  # type: ignore[no-untyped-def]
        if only in (b"", work.file.path):
            import time

            begun.append(work.file.path)
            for _ in range(100):
                if b"go on" in begun:
                    break
                time.sleep(0.2)
                step(0)
        return real(self, of, work, asked=asked, step=step)

    monkeypatch.setattr(Deriver, "make", make)
    return begun


def hurt(store: Store, data: bytes) -> bytes:
    from ckptfs.model.digest import digest

    name = digest(data)
    chunk = store.chunk(name)
    assert chunk is not None
    flip(Path(store._core.layout.blob(chunk.blob)), chunk.offset + 7)
    return name


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
