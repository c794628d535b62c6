"""The SDK's three faces against a real daemon, as TRAINML.md's users know it."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_process import SAMPLES, Daemon, running, write_tree

import ckptfs
from ckptfs import errors

FACES = ("sync", "asyncio", "trio")


class Face:
    """Makes the same calls on each face: ``ask`` gives what a call answers."""

    def __init__(self, name: str, daemon: Daemon) -> None:
        self.name = name
        self.client: Any = (ckptfs.SyncClient if name == "sync" else ckptfs.Client)(daemon.socket)

    def ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.name == "sync":
            return call(*arguments, **named)

        async def main() -> Any:
            return await call(*arguments, **named)

        return anyio.run(main, backend=self.name)

    def pieces(self, checkpoint: Any, path: str) -> list[bytes]:
        if self.name == "sync":
            with closing(checkpoint.cat(path)) as pieces:
                return list(pieces)

        async def main() -> list[bytes]:
            async with aclosing(checkpoint.cat(path)) as pieces:
                return [piece async for piece in pieces]

        return anyio.run(main, backend=self.name)


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest, node: Daemon) -> Face:
    return Face(request.param, node)


def test_from_creation_to_removal(face: Face, tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/b": b"12345", "c": bytes(100_000)})
    create = face.client.checkpoints.create
    made = face.ask(create, name="mine", source_type="local", source_uri=str(tmp_path))
    assert made.status in ("new", "downloading")
    assert made.id.startswith("c-")
    assert face.ask(made.wait_for, "downloading") is made
    assert face.ask(made.wait_for, "ready", timeout=60) is made
    assert (made.name, made.status, made.size, made.billed_size) == ("mine", "ready", 100_005, 100_005)
    assert made.id.startswith("b3:")
    # passed long ago, and still a success
    face.ask(made.wait_for, "downloading", timeout=1)

    details = face.ask(made.get_details)
    assert (details.files, details.directories, details.size) == (2, 1, 100_005)
    assert [e.path for e in details.entries] == ["a", "a/b", "c"]

    with pytest.raises(errors.NameTaken):
        face.ask(create, name="mine", source_uri=str(tmp_path))
    face.ask(made.rename, "renamed")
    assert made.name == "renamed"
    other = face.ask(face.client.checkpoints.get, "renamed")
    assert other.id == made.id
    assert "renamed" in [c.name for c in face.ask(face.client.checkpoints.list)]

    face.ask(made.remove)
    assert made.status == "archived"
    assert face.ask(other.wait_for, "archived", timeout=10).status == "archived"
    with pytest.raises(errors.NotFound):
        face.ask(other.refresh)
    with pytest.raises(errors.NotFound):
        face.ask(face.client.checkpoints.remove, "renamed")


def test_a_failure_has_its_reason(face: Face, tmp_path: Path) -> None:
    made = face.ask(face.client.checkpoints.create, name="bad", source_uri=str(tmp_path / "none"))
    with pytest.raises(errors.CheckpointError) as failed:
        face.ask(made.wait_for, "ready", timeout=30)
    assert (failed.value.status, failed.value.data["reason_code"]) == ("failed", "source_not_found")
    assert (made.status, made.reason != "") == ("failed", True)
    face.ask(made.remove)


def test_bad_arguments_are_specification_errors(face: Face) -> None:
    model = face.ask(face.client.checkpoints.get, "model")
    for call, attribute in (
        (lambda: face.ask(model.wait_for, "exporting"), "status"),
        (lambda: face.ask(model.wait_for, "ready", timeout=86_401), "timeout"),
        (lambda: face.ask(face.client.checkpoints.create, name="a/b", source_uri="/x"), "name"),
        (lambda: face.ask(face.client.checkpoints.create, name="x", source_uri=""), "source_uri"),
        (lambda: face.ask(model.rename, "-x"), "name"),
    ):
        with pytest.raises(errors.SpecificationError) as refused:
            call()
        assert refused.value.attribute == attribute


def test_content_whole_in_pieces_and_in_part(face: Face) -> None:
    model = face.ask(face.client.checkpoints.get, "model")
    for path, content in SAMPLES["model"].items():
        assert b"".join(face.pieces(model, path)) == content
    content = SAMPLES["model"]["weights/part-2.bin"]
    assert (
        face.ask(model.read, "weights/part-2.bin", offset=1_000_001, length=7) == content[1_000_001:1_000_008]
    )
    assert face.ask(model.read, "weights/part-2.bin", offset=2_999_990) == content[2_999_990:]
    with pytest.raises(errors.NotFound):
        face.ask(model.read, "none")


def test_verify_and_status(face: Face) -> None:
    model = face.ask(face.client.checkpoints.get, "model")
    report = face.ask(model.verify)
    assert (report.checkpoint, report.damaged) == ("model", [])
    assert report.chunks > 3
    assert face.ask(face.client.status).mounted is True
    assert all(c.ok for c in face.ask(face.client.doctor) if c.required)


def test_jobs(face: Face, node: Daemon) -> None:
    info = face.ask(face.client.jobs.attach, ["model", "adapter"], f"sdk-{face.name}")
    assert (info.job, info.path) == (f"sdk-{face.name}", str(node.mount))
    assert sorted(os.listdir(node.mount)) == ["adapter", "model"]
    with pytest.raises(errors.InUse) as refused:
        face.ask(face.client.checkpoints.remove, "model")
    assert refused.value.data["jobs"] == [f"sdk-{face.name}"]
    assert [j.job for j in face.ask(face.client.jobs.list)] == [f"sdk-{face.name}"]
    left = face.ask(face.client.jobs.detach, info.job, "model")
    assert [c.name for c in left.checkpoints] == ["adapter"]
    assert face.ask(face.client.jobs.detach, info.job).checkpoints == []
    with pytest.raises(errors.NotFound):
        face.ask(face.client.jobs.detach, info.job)


def test_an_ambiguous_reference_names_its_candidates(face: Face, node: Daemon, tmp_path: Path) -> None:
    write_tree(tmp_path, {"x": b"same"})
    made = [
        face.ask(face.client.checkpoints.create, name=name, source_uri=str(tmp_path)) for name in ("p", "q")
    ]
    for one in made:
        face.ask(one.wait_for, "ready")
    with pytest.raises(errors.Ambiguous) as ambiguous:
        face.ask(face.client.checkpoints.get, made[0].id)
    assert ambiguous.value.data["candidates"] == ["p", "q"]
    for one in made:  # an object still means the one that it was made as
        face.ask(one.refresh)
        face.ask(one.remove)
        assert one.status == "archived"


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_many_at_once(loop: str, node: Daemon) -> None:
    client = ckptfs.Client(node.socket)
    content = SAMPLES["model"]["weights/part-2.bin"]
    done: list[bool] = []

    async def one() -> None:
        model = await client.checkpoints.get("model")
        done.append(await model.read("weights/part-2.bin") == content)

    async def gather(call: Callable[[], Awaitable[None]], times: int) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(times):
                group.start_soon(call)

    anyio.run(gather, one, 30, backend=loop)
    assert done == [True] * 30


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_may_look_but_not_change(tmp_path: Path) -> None:
    write_tree(tmp_path, {"x": b"x"})
    with running() as daemon:
        daemon.run("create", "model", str(tmp_path))
        os.chmod(daemon.socket, stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
        as_nobody = [
            *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
        ]
        assert daemon.json("list", prefix=as_nobody)["checkpoints"][0]["name"] == "model"
        assert daemon.run("cat", "model", "x", prefix=as_nobody).stdout == "x"
        for arguments in (
            ["create", "other", str(tmp_path)],
            ["remove", "model"],
            ["rename", "model", "x"],
            ["attach", "model", "--job", "j"],
            ["verify", "model"],
        ):
            assert daemon.run(*arguments, code=5, prefix=as_nobody).stderr.startswith("ckptfs: error: ")
        assert daemon.run("run", "--checkpoint", "model", "--", "true", code=125, prefix=as_nobody)
        os.chmod(daemon.socket, stat.S_IRWXU)
        refused = daemon.run("list", code=5, prefix=as_nobody)
        assert refused.stderr.startswith(f"ckptfs: error: no permission to use {daemon.socket}")
        assert daemon.json("list")["checkpoints"][0]["name"] == "model"
