"""Creations from every kind of source: the same tree has the same id wherever it comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ckptfs.engine import Engine, EngineConfig
from ckptfs.model.records import CheckpointInfo, CreateRequest
from ckptfs.store import Store
from ckptfs.testing import faults, maker
from ckptfs.testing.faults import Fault, is_ranged
from ckptfs.testing.httpserver import HttpServer, Reply, Request, Upstream
from ckptfs.testing.radosgw import Bucket

TREE = maker.sample_tree(3)
#: What an object store can hold of it.
PLAIN: dict[str, maker.Node] = {path: node for path, node in TREE.items() if isinstance(node, bytes)}


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Engine]:
    store = Store.open(path)
    try:
        async with Engine(store, EngineConfig(mount="/mnt/x", retries=1, read_timeout_seconds=5)) as engine:
            yield engine
    finally:
        store.close()


async def create(engine: Engine, name: str, uri: str, **more: object) -> CheckpointInfo:
    request = CreateRequest(name=name, source_uri=uri, **more)  # type: ignore[arg-type]
    info = await engine.create(request)
    with trio.fail_after(60):
        while (now := engine.get(info.creation)).status not in ("ready", "failed"):
            await trio.sleep(0.01)
    return now


def options_of(bucket: Bucket, endpoint_url: str = "") -> dict[str, object]:
    options = {"endpoint_url": endpoint_url} if endpoint_url else bucket.options
    return {"source_options": options, "credentials": dict(bucket.credentials)}


async def test_one_tree_has_one_id_from_every_place_and_archive(
    tmp_path: Path, bucket: Bucket, http_server: HttpServer
) -> None:
    async with running(tmp_path / "store") as engine:
        local = await create(engine, "local", maker.write_tree(str(tmp_path / "tree"), TREE))
        assert (local.status, local.reason) == ("ready", "")
        stored = engine.store_status().stored_bytes
        for number, (suffix, make) in enumerate(maker.ARCHIVES.items()):
            body = make(TREE)
            (tmp_path / f"m{suffix}").write_bytes(body)
            for place, uri, more in (
                ("local", str(tmp_path / f"m{suffix}"), {}),
                ("web", http_server.put(f"/m{suffix}", body), {}),
                ("stream", http_server.put(f"/stream/m{suffix}", body, ranges=False), {}),
                ("s3", bucket.put(f"m{suffix}", body), options_of(bucket)),
            ):
                info = await create(engine, f"{place}-{number}", uri, **more)
                assert (info.status, info.reason, info.id) == ("ready", "", local.id), (place, suffix)
        assert engine.store_status().stored_bytes == stored
        spool = tmp_path / "store" / "spool"
        assert not spool.exists() or not list(spool.iterdir())


async def test_a_prefix_and_a_directory_of_the_same_files_have_the_same_id(
    tmp_path: Path, bucket: Bucket
) -> None:
    plain = {path: node for path, node in PLAIN.items() if not maker.is_executable(path)}
    for path, node in plain.items():
        assert isinstance(node, bytes)
        bucket.put(f"model/{path}", node)
    async with running(tmp_path / "store") as engine:
        local = await create(engine, "local", maker.write_tree(str(tmp_path / "tree"), plain))
        remote = await create(engine, "s3", bucket.uri("model/"), **options_of(bucket))
        assert (remote.status, remote.reason, remote.id) == ("ready", "", local.id)


async def test_a_creation_from_s3_that_broke_goes_on_where_it_was(tmp_path: Path, bucket: Bucket) -> None:
    bodies = {f"part-{number}.bin": maker.noise(f"resume {number}", 6_000_000) for number in range(4)}
    for name, body in bodies.items():
        bucket.put(f"model/{name}", body)
    with HttpServer(Upstream(bucket.options["endpoint_url"])) as proxy:
        async with running(tmp_path / "store") as engine:
            down = Fault(faults.status(503), when=is_ranged, spare=6)
            proxy.faults.append(down)
            uri, how = bucket.uri("model/"), options_of(bucket, proxy.url)
            failed = await create(engine, "m", uri, **how)
            assert (failed.status, failed.reason_code) == ("failed", "source_unavailable") and down.fired
            assert "503" in failed.reason and "model/part-" in failed.reason
            proxy.faults.clear()
            proxy.requests.clear()
            ready = await create(engine, "m", uri, **options_of(bucket, proxy.url))
            assert (ready.status, ready.reason) == ("ready", "")
        fetched = sum(_range_bytes(request) for request in proxy.requests if is_ranged(request))
        assert fetched < 24_000_000 - 4_000_000


async def test_an_object_that_changes_in_mid_creation_fails_it_and_leaves_no_name(
    tmp_path: Path, bucket: Bucket
) -> None:
    bucket.put("model/big.bin", maker.noise("before", 20_000_000))
    with HttpServer(Upstream(bucket.options["endpoint_url"])) as proxy:

        def overwrite(request: Request, reply: Reply) -> None:
            bucket.put("model/big.bin", maker.noise("after", 20_000_000))

        # Right after the first answer, which is the look at the file's front.
        changed = Fault(overwrite, when=is_ranged, times=1)
        proxy.faults.append(changed)
        async with running(tmp_path / "store") as engine:
            failed = await create(engine, "m", bucket.uri("model/"), **options_of(bucket, proxy.url))
            assert (failed.status, failed.reason_code) == ("failed", "source_changed") and changed.fired
            assert "ready" not in [info.status for info in engine.list()]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip", ".deflated.zip"])
async def test_an_archive_that_is_cut_off_fails_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    body = maker.ARCHIVES[suffix](TREE)
    path = tmp_path / f"m{suffix}"
    path.write_bytes(body[: len(body) // 2])
    async with running(tmp_path / "store") as engine:
        failed = await create(engine, "m", str(path))
        assert (failed.status, failed.reason_code) == ("failed", "source_corrupt")
        assert str(path) in failed.reason
        assert engine.store_status().stored_bytes == 0


async def test_a_cancelled_creation_hangs_up_at_once(tmp_path: Path, http_server: HttpServer) -> None:
    url = http_server.put("/model.tar.gz", maker.ARCHIVES[".tar.gz"](TREE))
    hang = Fault(faults.hang(5000), when=is_ranged, spare=1)
    http_server.faults.append(hang)
    async with running(tmp_path / "store") as engine:
        info = await engine.create(CreateRequest(name="m", source_uri=url))
        with trio.fail_after(10):
            while not hang.fired:
                await trio.sleep(0.01)
        with trio.fail_after(3):
            await engine.cancel(info.creation)
            while engine.get(info.creation).status != "failed":
                await trio.sleep(0.01)


def _range_bytes(request: Request) -> int:
    first, last = request.headers["range"].removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1
