"""What goes wrong in the background, or at an unlucky moment, harms nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from ckptfs import errors
from ckptfs.engine import Engine, EngineConfig
from ckptfs.model.records import AttachRequest, CreateRequest
from ckptfs.store import Store
from ckptfs.testing import maker

LMDB_META_BYTES = 8192


@contextmanager
def index_takes_no_writes() -> Iterator[None]:
    """Every write behind the index's first two pages fails (EFBIG), as on a disk that is broken."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LMDB_META_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@asynccontextmanager
async def running(path: Path, **config: object) -> AsyncIterator[Engine]:
    store = Store.open(str(path))
    try:
        async with Engine(store, EngineConfig(mount="/mnt/m", **config)) as engine:  # type: ignore[arg-type]
            yield engine
    finally:
        store.close()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not true():
            await trio.sleep(0.01)


async def create(engine: Engine, name: str, source: Path) -> str:
    info = await engine.create(CreateRequest(name=name, source_uri=str(source)))
    await until(lambda: engine.get(info.creation).status in ("ready", "failed"))
    return engine.get(info.creation).status


def a_source(path: Path) -> Path:
    path.mkdir()
    (path / "f").write_bytes(b"hello")
    return path


async def test_a_lease_that_cannot_be_ended_now_is_ended_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptfs.engine.attach._TRY_AGAIN_SECONDS", 0.05)
    async with running(tmp_path / "store") as engine:
        assert await create(engine, "a", a_source(tmp_path / "src")) == "ready"
        await engine.attach(AttachRequest(job="j", checkpoints=["a"], ttl_seconds=0.2), peer_pid=None)
        with index_takes_no_writes():
            await trio.sleep(0.5)
            assert engine.jobs()  # the engine lives
        await until(lambda: not engine.jobs(), 5)


async def test_a_sweep_that_fails_does_not_end_the_engine(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    draft = store.begin(name="m", creation="c-1", source_key="k", source_type="local", source_uri="/x")
    draft.fail("it broke", "interrupted", keep=True)
    store.close()
    store = Store.open(str(tmp_path / "store"))
    try:
        with index_takes_no_writes():
            async with Engine(store, EngineConfig(draft_retention_seconds=0.0)) as engine:
                await trio.sleep(0.3)
                assert [i.status for i in engine.list()] == ["failed"]
    finally:
        store.close()


def zeros_as_tar_zst(path: Path, frames: int) -> int:
    """A tar of one file of zeros, ``frames`` x 64 MiB long, in some kilobytes; its size in bytes."""
    size = frames << 26
    header = tarfile.TarInfo("zeros.bin")
    header.size = size
    zeros = maker.zstandard(bytes(1 << 26))
    path.write_bytes(maker.zstandard(header.tobuf()) + zeros * frames + maker.zstandard(bytes(1024)))
    return size


async def test_a_creation_that_waits_for_its_turn_is_cancelled_at_once(tmp_path: Path) -> None:
    zeros_as_tar_zst(tmp_path / "long.tar.zst", 128)
    async with running(tmp_path / "store", max_creations=1) as engine:
        long = await engine.create(CreateRequest(name="l", source_uri=str(tmp_path / "long.tar.zst")))
        await until(lambda: engine.get(long.id).status == "downloading")
        waiting = await engine.create(CreateRequest(name="w", source_uri=str(a_source(tmp_path / "src"))))
        assert engine.get(waiting.id).status == "new"
        with trio.fail_after(3):
            info = await engine.cancel(waiting.id)
        assert (info.status, info.reason_code) == ("failed", "cancelled")
        assert engine.get(long.id).status == "downloading"
        assert engine.get(waiting.id).status == "failed"  # who waits for it learns how it ended


async def test_a_commit_that_fails_stops_a_stream_in_mid_way(tmp_path: Path) -> None:
    total = zeros_as_tar_zst(tmp_path / "long.tar.zst", 128)
    done = 0
    async with running(tmp_path / "store", commit_seconds=0.05) as engine:
        info = await engine.create(CreateRequest(name="m", source_uri=str(tmp_path / "long.tar.zst")))
        await until(lambda: engine.get(info.id).status == "downloading")
        with index_takes_no_writes():
            while (now := engine.get(info.id)).status == "downloading":
                done = now.progress.bytes_done if now.progress else 0
                await trio.sleep(0.01)
        assert now.status == "failed"
        assert done < total // 2


async def test_a_checkpoint_is_not_attached_while_its_name_changes(tmp_path: Path) -> None:
    """Or the job would be told a path that is gone the next moment."""
    async with running(tmp_path / "store") as engine:
        assert await create(engine, "a", a_source(tmp_path / "src")) == "ready"
        told: list[str] = []

        async def attach() -> None:
            await trio.lowlevel.checkpoint()
            try:
                info = await engine.attach(AttachRequest(job="j", checkpoints=["a"]), peer_pid=None)
                told.append(info.path)
            except (errors.Conflict, errors.NotFound):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(engine.rename, "a", "b"))
            nursery.start_soon(attach)
        assert all(path == f"/mnt/m/{engine.get('name:b').name}" for path in told)


async def test_the_event_loop_does_not_wait_for_the_index(tmp_path: Path) -> None:
    """It answers the mount; a commit or a removal can hold the index's one writer for seconds."""
    store = Store.open(str(tmp_path / "store"))
    longest = 0.0

    def be_busy() -> None:
        with store._core.transaction():
            time.sleep(2)

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await trio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    try:
        async with Engine(store, EngineConfig(mount="/mnt/m")) as engine:
            assert await create(engine, "a", a_source(tmp_path / "src")) == "ready"
            for change in (
                partial(engine.attach, AttachRequest(job="j", checkpoints=["a"]), peer_pid=None),
                partial(engine.detach, "j"),
            ):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tick)
                    nursery.start_soon(trio.to_thread.run_sync, be_busy)
                    await trio.sleep(0.1)
                    await change()
                    nursery.cancel_scope.cancel()
    finally:
        store.close()
    assert longest < 1


async def test_a_lease_that_cannot_be_recorded_is_not_given(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as engine:
        assert await create(engine, "a", a_source(tmp_path / "src")) == "ready"
        with index_takes_no_writes(), pytest.raises(errors.StoreError):
            await engine.attach(AttachRequest(job="j", checkpoints=["a"]), peer_pid=None)
        assert engine.jobs() == []
        await engine.attach(AttachRequest(job="j", checkpoints=["a"]), peer_pid=None)
        with index_takes_no_writes(), pytest.raises(errors.StoreError):
            await engine.detach("j")
        assert [j.job for j in engine.jobs()] == ["j"]
        with index_takes_no_writes(), pytest.raises(errors.StoreError):
            await engine.remove("a", force=True)
        assert [j.job for j in engine.jobs()] == ["j"]
        await engine.remove("a", force=True)
        assert engine.jobs() == []


async def test_readers_that_wait_for_a_bad_disk_hold_up_no_changes(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "f").write_bytes(random.Random(1).randbytes(100_000))
    async with running(tmp_path / "store") as engine:
        assert await create(engine, "hangs", tmp_path / "big") == "ready"
        assert await create(engine, "a", a_source(tmp_path / "src")) == "ready"
    (blob,) = (p for p in (tmp_path / "store" / "blobs").glob("*/*") if p.stat().st_size == 100_000)
    blob.unlink()
    os.mkfifo(blob)  # whoever opens it waits until somebody writes
    async with running(tmp_path / "store") as engine, trio.open_nursery() as nursery:

        async def read() -> None:
            opened = await engine.open_content("hangs", b"f")
            with contextlib.closing(opened), contextlib.suppress(errors.CkptfsError, OSError):
                await opened.read(0, 1000)

        for _ in range(60):
            nursery.start_soon(read)
        try:
            await trio.sleep(0.5)
            with trio.fail_after(5):
                await engine.rename("a", "b")
                await engine.remove("b")
        finally:
            nursery.start_soon(release, blob, nursery.cancel_scope)


async def release(fifo: Path, readers: trio.CancelScope) -> None:
    """Let everybody go who waits for the fifo now, and those who come after them."""
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    readers.cancel()
    with trio.CancelScope(shield=True):
        await trio.sleep(0.2)
    os.close(descriptor)
