"""Both faces, under asyncio and trio, against a server on a real socket that behaves and misbehaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from control_stub import FACES, Asked, Stub, answer_error, answer_json, ask, client_of, raw, serving

from ckptfs import errors
from ckptfs.client.client import Client
from ckptfs.client.sync import SyncClient

each_face = pytest.mark.parametrize("face", FACES)
each_loop = pytest.mark.parametrize("face", ("asyncio", "trio"))


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with serving(str(tmp_path / "control.sock")) as serving_stub:
        yield serving_stub


def info(**more: Any) -> dict[str, Any]:
    return {"id": "c-1", "creation": "c-1", "name": "x", "status": "downloading", **more}


@each_face
def test_a_checkpoint_from_beginning_to_end(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path)
    states = iter(["new", "downloading", "downloading", "ready"])

    def answer(asked: Asked) -> bytes:
        if asked.method == "POST":
            return answer_json(info(status="new"), 201)
        return answer_json(info(status=next(states), size=7, billed_size=7))

    stub.answer = answer
    made = ask(face, lambda: client.checkpoints.create(name="x", source_uri="https://host/x"))
    assert (made.status, made.id, made.name) == ("new", "c-1", "x")
    seen: list[str] = []
    again = ask(face, lambda: made.wait_for("ready", 30, watch=lambda i: seen.append(i.status)))
    assert again is made
    assert (made.status, made.size, made.billed_size) == ("ready", 7, 7)
    assert seen == ["new", "downloading", "downloading", "ready"]
    assert stub.asked[0].json["source_uri"] == "https://host/x"
    assert stub.asked[0].headers["content-type"] == "application/json"
    assert {a.target for a in stub.asked[1:]} == {"/v1/checkpoints/c-1?light=1"}


@each_face
def test_rename_remove_and_the_collection(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path)

    def answer(asked: Asked) -> bytes:
        if asked.target == "/v1/checkpoints":
            return answer_json({"checkpoints": [info(), info(id="c-2", creation="c-2")]})
        if asked.method == "PATCH":
            return answer_json(info(name=asked.json["name"]))
        return answer_json(info(status="archived" if asked.method == "DELETE" else "ready"))

    stub.answer = answer
    assert [c.id for c in ask(face, client.checkpoints.list)] == ["c-1", "c-2"]
    found = ask(face, lambda: client.checkpoints.get("x"))
    assert ask(face, lambda: found.rename("y")).name == "y"
    ask(face, lambda: found.remove(force=True))
    assert found.status == "archived"
    ask(face, lambda: client.checkpoints.remove("z"))
    assert [a.target for a in stub.asked[-2:]] == ["/v1/checkpoints/c-1?force=1", "/v1/checkpoints/z?force=0"]


@each_face
def test_waiting_for_archived_ends_when_it_is_unknown(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path)
    stub.answer = lambda asked: answer_json(info(status="ready"))
    found = ask(face, lambda: client.checkpoints.get("x"))
    stub.answer = lambda asked: answer_error(404, "not_found", "no such checkpoint")
    assert ask(face, lambda: found.wait_for("archived", 5)).status == "archived"
    with pytest.raises(errors.NotFound):
        ask(face, lambda: found.wait_for("ready", 5))


@each_face
def test_waiting_ends_with_the_failure_or_the_timeout(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path)
    stub.answer = lambda asked: answer_json(info())
    found = ask(face, lambda: client.checkpoints.get("x"))
    assert ask(face, lambda: found.wait_for("downloading", 5)) is found
    with pytest.raises(errors.WaitTimeout, match=r"downloading, not ready, after 0\.2 seconds"):
        ask(face, lambda: found.wait_for("ready", 0.2))
    looks = len(stub.asked)
    for target, timeout in (("gone", 5), ("ready", 86401)):
        with pytest.raises(errors.SpecificationError):
            ask(face, lambda t=target, s=timeout: found.wait_for(t, s))
    assert len(stub.asked) == looks, "a bad argument is refused before anything is asked"
    stub.answer = lambda asked: answer_json(
        info(status="failed", reason="cut off", reason_code="source_corrupt")
    )
    with pytest.raises(errors.CheckpointError, match="cut off") as caught:
        ask(face, lambda: found.wait_for("ready", 5))
    assert caught.value.status == found.status == "failed"


@each_face
def test_jobs(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path)
    job = {"job": "j", "checkpoints": [], "path": "/mnt", "env": {}}
    stub.answer = lambda asked: answer_json(job if asked.method != "GET" else {"jobs": [job]}, 200)
    assert ask(face, lambda: client.jobs.attach("x", "j", ttl_seconds=5)).path == "/mnt"
    assert ask(face, lambda: client.jobs.detach("j", ["x"])).job == "j"
    assert [j.job for j in ask(face, client.jobs.list)] == ["j"]
    assert stub.asked[0].json == {
        "job": "j",
        "checkpoints": ["x"],
        "bind_to_caller": False,
        "ttl_seconds": 5,
    }


@each_face
def test_content_comes_in_pieces_and_can_be_left(face: str, stub: Stub) -> None:
    body = bytes(range(256)) * 40_000  # 10 MB: more than a socket's buffer
    client = client_of(face, stub.path)
    stub.answer = lambda asked: raw(200, body) if "content" in asked.target else answer_json(info())
    found = ask(face, lambda: client.checkpoints.get("x"))
    assert ask(face, lambda: found.read("f")) == body

    if isinstance(client, SyncClient):
        with closing(found.cat("f")) as pieces:
            first = next(pieces)
    else:

        async def some() -> bytes:
            async with aclosing(found.cat("f")) as pieces:
                return await anext(pieces)

        first = anyio.run(some, backend=face)
    assert body.startswith(first)
    assert 0 < len(first) < len(body)
    deadline = time.monotonic() + 10
    while not stub.hung_up and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stub.hung_up == 1, "leaving early closes the connection"


@each_face
def test_verify_reports_as_it_goes(face: str, stub: Stub) -> None:
    report = {"checkpoint": "x", "id": "c-1", "chunks": 2, "bytes": 9, "damaged": []}
    lines = [{"done": 0, "total": 2}, {"done": 2, "total": 2}, {"report": report}]
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    client = client_of(face, stub.path)
    stub.answer = lambda asked: raw(200, text) if "verify" in asked.target else answer_json(info())
    found = ask(face, lambda: client.checkpoints.get("x"))
    seen: list[tuple[int, int]] = []
    assert ask(face, lambda: found.verify(lambda s: seen.append((s.done, s.total)))).bytes == 9
    assert seen[:2] == [(0, 2), (2, 2)]


@each_face
def test_an_error_answer_is_raised_by_its_class(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path)
    stub.answer = lambda asked: answer_error(409, "ambiguous", "fits two", candidates=["a", "b"])
    with pytest.raises(errors.Ambiguous) as caught:
        ask(face, lambda: client.checkpoints.get("b3:0000"))
    assert caught.value.data["candidates"] == ["a", "b"]


@each_face
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", errors.ConnectionError),
        (b"HTTP/1.1 200 OK\r\nContent-Le", errors.ConnectionError),
        (raw(200, b'{"jobs": [', content_length=500), errors.ConnectionError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", errors.ApiError),
        (raw(200, b"<html>welcome</html>"), errors.ApiError),
        (raw(500, b"Internal Server Error"), errors.ApiError),
    ],
)
def test_a_daemon_that_breaks_off_or_is_another_one(
    face: str, stub: Stub, answer: bytes, expected: type[errors.CkptfsError]
) -> None:
    client = client_of(face, stub.path)
    stub.answer = lambda asked: answer
    with pytest.raises(expected) as caught:
        ask(face, client.jobs.list)
    assert type(caught.value) is expected


@each_face
def test_a_silent_daemon_ends_in_a_bounded_wait(face: str, stub: Stub) -> None:
    client = client_of(face, stub.path, timeout=0.2)
    stub.answer = lambda asked: None
    with pytest.raises(errors.ConnectionError, match=r"not answered for 0\.2 seconds"):
        ask(face, client.status)


@each_face
def test_no_daemon_a_dead_one_and_no_permission(face: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConnectionError, match="start ckptfsd"):
        ask(face, client_of(face, str(tmp_path / "none.sock")).status)
    stale = tmp_path / "stale.sock"
    with serving(str(stale)):
        pass
    with pytest.raises(errors.ConnectionError, match="not running"):
        ask(face, client_of(face, str(stale)).status)
    with pytest.raises(errors.SpecificationError, match="longer than"):
        client_of(face, str(tmp_path / ("x" * 120)))


@each_face
def test_the_socket_is_told_by_argument_environment_default(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = SyncClient if face == "sync" else Client
    monkeypatch.setenv("CKPTFS_SOCKET", "/from/environment")
    assert kind("/from/argument").socket == "/from/argument"
    assert kind().socket == "/from/environment"
    monkeypatch.delenv("CKPTFS_SOCKET")
    assert kind().socket == "/run/ckptfs/control.sock"


@each_loop
def test_a_cancelled_call_hangs_up(face: str, stub: Stub) -> None:
    client = Client(stub.path)
    stub.answer = lambda asked: None

    async def main() -> None:
        with anyio.move_on_after(0.2) as scope:
            await client.status()
        assert scope.cancelled_caught
        while not stub.hung_up:
            await anyio.sleep(0.01)

    anyio.run(main, backend=face)


@each_loop
def test_many_calls_at_once_do_not_wait_for_each_other(face: str, stub: Stub) -> None:
    client = Client(stub.path)
    stub.answer = lambda asked: None if "slow" in asked.target else answer_json(info(name=asked.target[-1]))
    names: list[str] = []

    async def get(reference: str) -> None:
        names.append((await client.checkpoints.get(reference)).name)

    async def main() -> None:
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.checkpoints.get, "slow")
                async with anyio.create_task_group() as quick:
                    for i in range(10):
                        quick.start_soon(get, str(i))
                group.cancel_scope.cancel()
        assert not scope.cancelled_caught

    anyio.run(main, backend=face)
    assert sorted(names) == list("0123456789")
