"""Creations through the real engine, store and sources: what a user gets, and what a failure leaves."""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ckptfs import errors
from ckptfs.engine import Engine, EngineConfig
from ckptfs.model.records import CheckpointInfo, CreateRequest
from ckptfs.store import Store


@asynccontextmanager
async def running(path: Path, **config: object) -> AsyncIterator[Engine]:
    store = Store.open(path)
    try:
        async with Engine(store, EngineConfig(mount="/mnt/somewhere", **config)) as engine:  # type: ignore[arg-type]
            yield engine
    finally:
        store.close()


async def ended(engine: Engine, info: CheckpointInfo, seconds: float = 60) -> CheckpointInfo:
    with trio.fail_after(seconds):
        while (now := engine.get(info.creation)).status not in ("ready", "failed"):
            await trio.sleep(0.01)
    return now


async def create(engine: Engine, name: str, source: Path, **options: object) -> CheckpointInfo:
    request = CreateRequest(name=name, source_uri=str(source), **options)  # type: ignore[arg-type]
    return await ended(engine, await engine.create(request))


async def content(engine: Engine, ref: str, path: bytes) -> bytes:
    opened = await engine.open_content(ref, path)
    try:
        return await opened.read(0, opened.size_bytes)
    finally:
        opened.close()


def a_tree(root: Path, seed: int = 0) -> dict[str, bytes]:
    """Files of every shape that the pipeline treats differently; answers path -> content."""
    rng = random.Random(seed)
    files = {
        "config.json": b'{"hidden": 384}',
        "empty": b"",
        "deep/er/tokenizer.txt": rng.randbytes(70_000),
        "weights.bin": rng.randbytes(9_000_001),
        "zeros.bin": bytes(5_000_000),
        "twice.bin": b"",
    }
    files["twice.bin"] = files["weights.bin"]
    for i in range(300):
        files[f"many/{i:04}.txt"] = f"file {i}".encode()
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "latest").symlink_to("deep/er/tokenizer.txt")
    files["run.sh"] = b"#!/bin/sh\n"
    return files


async def test_every_byte_of_a_tree_arrives(tmp_path: Path) -> None:
    files = a_tree(tmp_path / "model")
    async with running(tmp_path / "store") as engine:
        info = await create(engine, "m", tmp_path / "model")
        assert (info.status, info.reason) == ("ready", "")
        assert info.size == sum(map(len, files.values()))
        assert info.files == len(files)
        for path, data in files.items():
            assert await content(engine, "m", path.encode()) == data, path
        assert await content(engine, "m", b"latest") == files["deep/er/tokenizer.txt"]
        entries = {e.path: e for e in await engine.tree("m")}
        assert entries["run.sh"].executable
        assert not entries["config.json"].executable
        assert entries["latest"].target == "deep/er/tokenizer.txt"
        assert entries["deep/er"].type == "d"
        report = await engine.verify("m", lambda done, total: None)
        assert report.damaged == []


async def test_the_same_tree_has_the_same_id_and_takes_no_space(tmp_path: Path) -> None:
    a_tree(tmp_path / "one")
    a_tree(tmp_path / "two")
    os.utime(tmp_path / "two" / "config.json", (1, 1))
    async with running(tmp_path / "store") as engine:
        first = await create(engine, "first", tmp_path / "one")
        before = engine.store_status()
        second = await create(engine, "second", tmp_path / "two")
        after = engine.store_status()
        assert first.id == second.id
        assert after.stored_bytes == before.stored_bytes
        assert after.physical_bytes == before.physical_bytes
        shown = await engine.show("second")
        assert (shown.unique_bytes, shown.shared_bytes) == (0, shown.stored_bytes)
        with pytest.raises(errors.Ambiguous, match=r"first.*second"):
            engine.get(first.id)
        # Removing one leaves the other whole.
        await engine.remove("first")
        assert (await engine.verify("second", lambda done, total: None)).damaged == []
        await engine.remove("second")
        assert engine.store_status().stored_bytes == 0


async def test_a_cancelled_creation_leaves_no_name_and_resumes(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    rng = random.Random(1)
    for i in range(40):
        (source / f"{i:02}.bin").write_bytes(rng.randbytes(3 << 20))
    async with running(tmp_path / "store", workers=1, commit_seconds=0.01) as engine:
        begun = await engine.create(CreateRequest(name="m", source_uri=str(source)))
        while not (progress := engine.get("m").progress) or progress.bytes_done < 20 << 20:
            await trio.sleep(0.001)
        cancelled = await engine.cancel("m")
        assert (cancelled.status, cancelled.reason_code) == ("failed", "cancelled")
        with pytest.raises(errors.CheckpointError, match="cancelled"):
            await engine.tree("m")
        kept = engine.get(begun.id)
        assert kept.status == "failed"
        assert kept.stored_bytes
        again = await create(engine, "m", source)
        assert again.status == "ready"
        counted = [p for p in [again.progress] if p]
        assert not counted  # a ready checkpoint has no progress any more
        for i in (0, 20, 39):
            assert await content(engine, "m", b"%02d.bin" % i) == (source / f"{i:02}.bin").read_bytes()


async def test_a_stopped_daemon_resumes_without_reading_again(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    rng = random.Random(2)
    for i in range(30):
        (source / f"{i:02}.bin").write_bytes(rng.randbytes(3 << 20))
    async with running(tmp_path / "store", workers=1, commit_seconds=0.01) as engine:
        await engine.create(CreateRequest(name="m", source_uri=str(source)))
        while not (progress := engine.get("m").progress) or progress.bytes_done < 20 << 20:
            await trio.sleep(0.001)
    async with running(tmp_path / "store", workers=1) as engine:
        kept = engine.get("m")
        assert kept.status == "failed"
        assert kept.stored_bytes is not None
        assert kept.stored_bytes >= 20 << 20
        # Proof that nothing kept is read again: what was brought in cannot be read any more.
        reused = 0
        begun = await engine.create(CreateRequest(name="m", source_uri=str(source)))
        while (now := engine.get(begun.id)).status not in ("ready", "failed"):
            if now.progress:
                reused = max(reused, now.progress.bytes_reused)
            await trio.sleep(0.001)
        assert now.status == "ready"
        assert reused >= 20 << 20


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda p: None, "source_not_found", "does not exist"),
        (lambda p: p.mkdir(), "source_not_found", "empty"),
        (lambda p: (p.mkdir(), os.mkfifo(p / "pipe")), "source_refused", "fifo"),
        (lambda p: (p.mkdir(), (p / "out").symlink_to("../../etc/passwd")), "source_refused", "outside"),
        (
            lambda p: (p.mkdir(), (p / "s").write_bytes(b"x"), (p / "s").chmod(0o4755)),
            "source_refused",
            "set-uid",
        ),
    ],
)
async def test_bad_sources_fail_with_their_reason_and_leave_nothing(
    tmp_path: Path, make: object, code: str, says: str
) -> None:
    make(tmp_path / "source")  # type: ignore[operator]
    async with running(tmp_path / "store") as engine:
        info = await create(engine, "m", tmp_path / "source")
        assert (info.status, info.reason_code) == ("failed", code)
        assert says in info.reason.lower()
        assert "\n" not in info.reason
        assert engine.store_status().stored_bytes == 0
        # The name is free.
        (tmp_path / "good").mkdir()
        (tmp_path / "good" / "f").write_bytes(b"hello")
        assert (await create(engine, "m", tmp_path / "good")).status == "ready"


async def test_a_taken_name_is_refused_at_once(tmp_path: Path) -> None:
    a_tree(tmp_path / "model")
    async with running(tmp_path / "store") as engine:
        await create(engine, "m", tmp_path / "model")
        with pytest.raises(errors.NameTaken, match="'m'"):
            await engine.create(CreateRequest(name="m", source_uri=str(tmp_path / "model")))
        with pytest.raises(errors.SpecificationError):
            await engine.create(CreateRequest(name="../m", source_uri=str(tmp_path / "model")))
        assert [c.name for c in engine.list()] == ["m"]


async def test_two_creations_of_one_name_at_once(tmp_path: Path) -> None:
    a_tree(tmp_path / "model")
    async with running(tmp_path / "store") as engine:
        first = await engine.create(CreateRequest(name="m", source_uri=str(tmp_path / "model")))
        with pytest.raises(errors.NameTaken, match="being created"):
            await engine.create(CreateRequest(name="m", source_uri=str(tmp_path / "model")))
        assert (await ended(engine, first)).status == "ready"


async def test_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    a_tree(tmp_path / "model")
    async with running(tmp_path / "store", max_checkpoint_bytes=1_000_000) as engine:
        info = await create(engine, "m", tmp_path / "model")
        assert info.reason_code == "source_too_large"
        assert "max_checkpoint_bytes" in info.reason


async def test_a_compressed_tar_is_streamed_with_its_links(tmp_path: Path) -> None:
    files = a_tree(tmp_path / "model")
    os.link(tmp_path / "model" / "weights.bin", tmp_path / "model" / "zz_hard.bin")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(tmp_path / "model", ".")
    async with running(tmp_path / "store") as engine:
        info = await create(engine, "m", tmp_path / "m.tar.gz")
        assert (info.status, info.reason) == ("ready", "")
        for path, data in files.items():
            assert await content(engine, "m", path.encode()) == data, path
        assert await content(engine, "m", b"zz_hard.bin") == files["weights.bin"]
        # The same id as from the directory: how it came does not matter.
        assert (await create(engine, "dir", tmp_path / "model")).id == info.id


async def test_removal_is_refused_while_a_job_has_a_lease(tmp_path: Path) -> None:
    from ckptfs.model.records import AttachRequest

    a_tree(tmp_path / "model")
    async with running(tmp_path / "store") as engine:
        await create(engine, "m", tmp_path / "model")
        job = await engine.attach(AttachRequest(job="j1", checkpoints=["m"]), peer_pid=None)
        assert job.env["TRAINML_CHECKPOINT_PATH"] == "/mnt/somewhere/m"
        with pytest.raises(errors.InUse, match="j1") as refused:
            await engine.remove("m")
        assert refused.value.data["jobs"] == ["j1"]
        with pytest.raises(errors.InUse):
            await engine.rename("m", "n")
        gone = await engine.remove("m", force=True)
        assert gone.status == "archived"
        assert engine.jobs() == []
        assert engine.list() == []


async def test_a_later_creation_makes_earlier_failures_history(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as engine:
        for _ in range(2):
            info = await create(engine, "m", tmp_path / "nothing")
            assert info.status == "failed"
        (tmp_path / "empty").mkdir()
        assert (await create(engine, "m", tmp_path / "empty")).status == "failed"
        assert [(c.name, c.reason_code) for c in engine.list()] == [("m", "source_not_found")]
        (tmp_path / "good").mkdir()
        (tmp_path / "good" / "f").write_bytes(b"hello")
        await create(engine, "m", tmp_path / "good")
        assert [(c.name, c.status) for c in engine.list()] == [("m", "ready")]


async def test_a_refusal_names_the_source_and_the_path(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../x"))
    async with running(tmp_path / "store") as engine:
        info = await create(engine, "m", tmp_path / "m.tar")
        assert info.reason_code == "source_refused"
        assert str(tmp_path / "m.tar") in info.reason
        assert "../x" in info.reason
