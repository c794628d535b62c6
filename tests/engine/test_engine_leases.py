"""Leases: they persist, and end by themselves with a process or a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ckptfs import errors
from ckptfs.engine import Engine, EngineConfig
from ckptfs.engine.attach import process_start
from ckptfs.model.records import AttachRequest, CreateRequest
from ckptfs.store import Store


async def with_checkpoints(engine: Engine, source: Path, *names: str) -> None:
    source.mkdir(exist_ok=True)
    (source / "f").write_bytes(b"hello")
    for name in names:
        info = await engine.create(CreateRequest(name=name, source_uri=str(source)))
        with trio.fail_after(30):
            while engine.get(info.id).status != "ready":
                await trio.sleep(0.01)


def engine_on(store: Store) -> Engine:
    return Engine(store, EngineConfig(mount="/mnt/m"))


async def test_leases_outlive_the_daemon(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    async with engine_on(store) as engine:
        await with_checkpoints(engine, tmp_path / "src", "a", "b")
        info = await engine.attach(AttachRequest(job="two", checkpoints=["a", "b"]), peer_pid=None)
        assert info.path == "/mnt/m"
        assert [c.target for c in info.checkpoints] == [
            "/opt/trainml/checkpoint/a",
            "/opt/trainml/checkpoint/b",
        ]
    store.close()
    store = Store.open(tmp_path / "store")
    async with engine_on(store) as engine:
        assert [j.job for j in engine.jobs()] == ["two"]
        left = await engine.detach("two", ["a", "a"])
        assert [c.name for c in left.checkpoints] == ["b"]
        assert left.path == "/mnt/m/b"
        assert (await engine.detach("two")).checkpoints == []
        with pytest.raises(errors.NotFound, match="two"):
            await engine.detach("two")
    store.close()


async def test_a_lease_ends_with_its_killed_process(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    async with engine_on(store) as engine:
        await with_checkpoints(engine, tmp_path / "src", "a")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            request = AttachRequest(job="bound", checkpoints=["a"], bind_to_caller=True)
            info = await engine.attach(request, peer_pid=process.pid)
            assert info.pid == process.pid
            with pytest.raises(errors.Conflict, match="another process"):
                await engine.attach(AttachRequest(job="bound", checkpoints=["a"]), peer_pid=None)
            await trio.sleep(0.05)
            assert len(engine.jobs()) == 1
            process.kill()
            with trio.fail_after(5):
                while engine.jobs():
                    await trio.sleep(0.01)
    store.close()


async def test_a_bound_lease_found_at_start_ends_when_its_process_is_gone(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        async with engine_on(store) as engine:
            await with_checkpoints(engine, tmp_path / "src", "a")
            request = AttachRequest(job="bound", checkpoints=["a"], bind_to_caller=True)
            await engine.attach(request, peer_pid=process.pid)
        assert store.leases()
        process.kill()
    async with engine_on(store) as engine:
        with trio.fail_after(5):
            while engine.jobs():
                await trio.sleep(0.01)
    assert store.leases() == []
    store.close()


async def test_a_lease_ends_when_its_time_runs_out(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    async with engine_on(store) as engine:
        await with_checkpoints(engine, tmp_path / "src", "a", "b")
        await engine.attach(AttachRequest(job="short", checkpoints=["a"], ttl_seconds=0.3), peer_pid=None)
        await engine.attach(AttachRequest(job="long", checkpoints=["b"], ttl_seconds=60), peer_pid=None)
        with trio.fail_after(5):
            while len(engine.jobs()) > 1:
                await trio.sleep(0.01)
        assert [j.job for j in engine.jobs()] == ["long"]
    store.close()


async def test_what_cannot_be_attached(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    async with engine_on(store) as engine:
        await with_checkpoints(engine, tmp_path / "src", "a")
        for request, error in [
            (AttachRequest(job="x", checkpoints=["nope"]), errors.NotFound),
            (AttachRequest(job="x", checkpoints=[]), errors.SpecificationError),
            (AttachRequest(job="../x", checkpoints=["a"]), errors.SpecificationError),
            (AttachRequest(job="x", checkpoints=["a"], ttl_seconds=-1), errors.SpecificationError),
            (AttachRequest(job="x", checkpoints=["a"], bind_to_caller=True), errors.PermissionDenied),
        ]:
            with pytest.raises(error):
                await engine.attach(request, peer_pid=None)
        assert engine.jobs() == []
    store.close()


def test_a_process_is_named_by_number_and_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        start = process_start(process.pid)
        assert start is not None
        assert start == process_start(process.pid)
        process.kill()
    assert process_start(process.pid) is None
