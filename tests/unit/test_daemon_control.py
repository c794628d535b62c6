"""The control interface on a real socket, through the real server, with a small engine behind it.

What the verbs do is the engine's business and tested with the real one in tests/e2e. Here: how requests
are read, how answers and errors are written, who is let in, and what a rude client can do.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ckptfs.errors import CheckpointError, InUse, NotFound, SourceUnavailable
from ckptfs.model.records import (
    AssembleReport,
    AttachRequest,
    CheckpointInfo,
    CreateRequest,
    Damage,
    DoctorCheck,
    JobInfo,
    StatusInfo,
    StoreStatus,
    TreeEntry,
    VerifyReport,
)
from ckptfsd.control.app import build
from ckptfsd.control.face import Control
from ckptfsd.control.peer import Permissions
from ckptfsd.listener import ControlSocket
from ckptfsd.server import ControlServer, ServerLimits

FILE = bytes(range(256)) * 20_000  # 5.12 MB: several pieces


class Content:
    def __init__(self, data: bytes, fails_at: int | None = None) -> None:
        self.size_bytes = len(data)
        self._data = data
        self._fails_at = fails_at
        self.closed = False

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._fails_at is not None and offset >= self._fails_at:
            raise OSError(5, "the disk is gone")
        return self._data[offset : offset + length]

    def close(self) -> None:
        self.closed = True


class SmallEngine:
    """Answers from memory, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.opened: list[Content] = []
        self.info = CheckpointInfo(id="b3:" + "ab" * 32, name="llama", status="ready", size=5)
        self.entries = [TreeEntry(path="a\udcff\n", type="f", size=3), TreeEntry(path="ü", type="d")]
        self.verifying = 0

    def list(self) -> list[CheckpointInfo]:
        return [self.info]

    def get(self, ref: str) -> CheckpointInfo:
        self.asked.append(("get", ref))
        return self.info

    async def show(self, ref: str) -> CheckpointInfo:
        self.asked.append(("show", ref))
        if ref == "boom":
            raise ValueError("a mistake of ours")
        if ref == "absent":
            raise NotFound(f"no checkpoint {ref!r}")
        return self.info

    async def create(self, request: CreateRequest) -> CheckpointInfo:
        self.asked.append(("create", request))
        return CheckpointInfo(id="c-1", name=request.name, status="new")

    async def cancel(self, ref: str) -> CheckpointInfo:
        raise CheckpointError("nothing to cancel", status="ready", name=ref)

    async def rename(self, ref: str, new_name: str) -> CheckpointInfo:
        self.asked.append(("rename", ref, new_name))
        return self.info

    async def remove(self, ref: str, *, force: bool = False) -> CheckpointInfo:
        self.asked.append(("remove", ref, force))
        if not force:
            raise InUse("a job uses it", jobs=["j\udcff1"])
        return self.info

    async def tree(self, ref: str, path: bytes = b"") -> list[TreeEntry]:
        self.asked.append(("tree", ref, path))
        return self.entries

    async def open_content(self, ref: str, path: bytes) -> Content:
        self.asked.append(("content", ref, path))
        data = b"" if path == b"empty" else FILE
        fails_at = {b"broken": 2_000_000, b"unreadable": 0}.get(path)
        self.opened.append(Content(data, fails_at))
        return self.opened[-1]

    async def verify(self, ref: str, report: Callable[[int, int], None]) -> VerifyReport:
        if ref == "absent":
            raise NotFound("no such checkpoint")
        self.verifying += 1
        try:
            for done in range(4 if ref != "endless" else 1_000_000):
                report(done, 4)
                await trio.sleep(0.02)
            if ref == "dies":
                raise SourceUnavailable("gone")
            if ref == "crashes":
                raise ValueError("a mistake of ours")
        finally:
            self.verifying -= 1
        damage = Damage(checkpoint="llama", path="p\udcff", offset=1, length=2, problem="rot")
        return VerifyReport(checkpoint="llama", id=self.info.id, chunks=4, bytes=5, damaged=[damage])

    async def assemble(self, ref: str, report: Callable[[int, int], None]) -> AssembleReport:
        self.asked.append(("assemble", ref))
        await trio.to_thread.run_sync(report, 1, 2)  # as the engine does it: from a thread
        await trio.sleep(0.1)
        return self.assembled(made=1)

    async def drop_derived(self, ref: str) -> AssembleReport:
        self.asked.append(("drop_derived", ref))
        return self.assembled(dropped=1)

    def assembled(self, **counts: int) -> AssembleReport:
        return AssembleReport(
            checkpoint="llama",
            id=self.info.id,
            files=2,
            native_files=1,
            served_files={"small": 1},
            derived_files=1,
            derived_bytes=5,
            **counts,
        )

    async def attach(self, request: AttachRequest, *, peer_pid: int | None) -> JobInfo:
        self.asked.append(("attach", request, peer_pid))
        return JobInfo(job="j", checkpoints=[], path="/p", env={})

    async def detach(self, job: str, refs: list[str] | None = None) -> JobInfo:  # type: ignore[valid-type]
        self.asked.append(("detach", job, refs))
        return JobInfo(job=job, checkpoints=[], path="", env={})

    def jobs(self) -> list[JobInfo]:  # type: ignore[valid-type]
        return []

    def upgrade(self, python: str) -> None:
        self.asked.append(("upgrade", python))


def status() -> StatusInfo:
    store = StoreStatus(
        path="/s",
        checkpoints=0,
        chunks=0,
        logical_bytes=0,
        stored_bytes=0,
        physical_bytes=0,
        files=0,
        native_files=0,
        derived_files=0,
        derived_bytes=0,
        derived_limit_bytes=0,
        disk_free_bytes=0,
        disk_total_bytes=0,
        format=1,
    )
    return StatusInfo(
        version="1",
        pid=1,
        worker_pid=2,
        worker_starts=0,
        upgrades=0,
        spare_pid=0,
        upgrade_note="",
        started=0.0,
        socket="/x",
        mount="",
        mounted=False,
        mount_note="",
        store=store,
        jobs=0,
        creations=0,
        counters={},
    )


async def doctor() -> list[DoctorCheck]:
    return [DoctorCheck(name="n", ok=True, detail="d")]


class Served:
    """A running control interface."""

    def __init__(self, path: str, engine: SmallEngine, server: ControlServer) -> None:
        self.path = path
        self.engine = engine
        self.server = server

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(10)
        connection.connect(self.path)
        return connection

    def ask(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("ckptfs")
        connection.sock = self.connect()
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, body=sent, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()

    async def call(self, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        code, body, _ = await trio.to_thread.run_sync(lambda: self.ask(*args, **kwargs))
        return code, json.loads(body) if body else None

    async def whole(self, *args: Any, **kwargs: Any) -> tuple[int, bytes, dict[str, str]]:
        return await trio.to_thread.run_sync(lambda: self.ask(*args, **kwargs))


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    permissions: Permissions | None = None,
    limits: ServerLimits | None = None,
    **control: Any,
) -> AsyncIterator[Served]:
    engine = SmallEngine()
    face = Control(
        engine=engine,
        status=status,
        doctor=doctor,
        upgrade=engine.upgrade,
        permissions=permissions or Permissions.of_this_process(None),
        **{"progress_seconds": 0.01, **control},
    )
    with ControlSocket(str(directory / "control.sock")) as listening:
        server = ControlServer(
            build(face, version="1"), listening.socket, limits or ServerLimits(stop_grace_seconds=0.5)
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            with trio.fail_after(30):
                yield Served(listening.path, engine, server)
            server.stop()


# --- Requests and answers -------------------------------------------------------------------------


async def test_records_come_as_json(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, body = await served.call("GET", "/v1/checkpoints")
        expected = {"id": "b3:" + "ab" * 32, "name": "llama", "status": "ready", "size": 5}
        assert (code, body) == (200, {"checkpoints": [expected]})
        assert await served.call("GET", "/v1/checkpoints/llama") == (200, expected)
        assert await served.call("GET", "/v1/checkpoints/llama?light=1") == (200, expected)
        assert served.engine.asked == [("show", "llama"), ("get", "llama")]
        assert await served.call("GET", "/v1/jobs") == (200, {"jobs": []})
        code, body = await served.call("GET", "/v1/doctor")
        assert body == {"checks": [{"name": "n", "ok": True, "detail": "d"}]}
        code, body = await served.call("GET", "/v1/status")
        assert (code, body["store"]["path"]) == (200, "/s")


async def test_a_reference_is_one_segment_whatever_it_holds(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for sent, arrives in [
            ("a%2Fb", "a/b"),
            ("name:x%20y", "name:x y"),
            ("%FF%C3%BC", "\udcffü"),
            ("..%2F..%2Fetc", "../../etc"),
            ("%25", "%"),
        ]:
            assert (await served.call("GET", f"/v1/checkpoints/{sent}"))[0] == 200
            assert served.engine.asked.pop() == ("show", arrives)
        assert (await served.call("GET", "/v1/checkpoints/a/b"))[0] == 404
        assert (await served.call("GET", "/v1/checkpoints/a%00b"))[0] == 422


async def test_paths_travel_as_raw_bytes_both_ways(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, body = await served.call("GET", "/v1/checkpoints/llama/tree?path=d%FF/x%26y%2B")
        assert served.engine.asked == [("tree", "llama", b"d\xff/x&y+")]
        assert code == 200
        assert body == {
            "entries": [{"path": "a\udcff\n", "type": "f", "size": 3}, {"path": "ü", "type": "d"}]
        }


async def test_a_long_tree_is_whole_and_an_empty_one_is_valid(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.engine.entries = [TreeEntry(path=f"f{n}", type="f") for n in range(2501)]
        _, body = await served.call("GET", "/v1/checkpoints/llama/tree")
        assert [e["path"] for e in body["entries"]] == [f"f{n}" for n in range(2501)]
        served.engine.entries = []
        assert await served.call("GET", "/v1/checkpoints/llama/tree") == (200, {"entries": []})


async def test_bodies_become_records(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        wanted = {"name": "n", "source_uri": "/s\udcff", "credentials": {"k": "v"}}
        code, body = await served.call("POST", "/v1/checkpoints", wanted)
        assert (code, body) == (201, {"id": "c-1", "name": "n", "status": "new"})
        assert served.engine.asked == [
            ("create", CreateRequest(name="n", source_uri="/s\udcff", credentials={"k": "v"}))
        ]
        code, _ = await served.call("PATCH", "/v1/checkpoints/a", {"name": "b"})
        assert (code, served.engine.asked[-1]) == (200, ("rename", "a", "b"))
        code, _ = await served.call("POST", "/v1/jobs", {"checkpoints": ["a"], "ttl_seconds": 5})
        assert code == 201
        assert served.engine.asked[-1] == (
            "attach",
            AttachRequest(checkpoints=["a"], ttl_seconds=5.0),
            os.getpid(),
        )
        await served.call("DELETE", "/v1/jobs/j%40x?checkpoint=a&checkpoint=b%2Fc")
        assert served.engine.asked[-1] == ("detach", "j@x", ["a", "b/c"])
        await served.call("DELETE", "/v1/jobs/j")
        assert served.engine.asked[-1] == ("detach", "j", None)


@pytest.mark.parametrize(
    ("body", "attribute"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[" * 100_000, "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        ({"name": "n"}, "source_uri"),
        ({"name": 3, "source_uri": "x"}, "name"),
        ({"name": "n", "source_uri": "x", "colour": "red"}, "colour"),
        ({"name": "n", "source_uri": "x", "extract": "perhaps"}, "extract"),
        ({"name": "n", "source_uri": "x", "source_options": {"a": 1}}, "source_options"),
    ],
)
async def test_a_bad_body_is_told_by_attribute(tmp_path: Path, body: Any, attribute: str) -> None:
    async with serving(tmp_path) as served:
        code, answer = await served.call("POST", "/v1/checkpoints", body)
        assert code == 422
        assert answer["error"]["code"] == "specification"
        assert answer["error"]["data"]["attribute"].startswith(attribute)
        assert "\n" not in answer["error"]["message"]
        assert served.engine.asked == []


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/v1/checkpoints?x=1", "unknown query field 'x'"),
        ("/v1/checkpoints/a?light=yes", "light is 0 or 1"),
        ("/v1/checkpoints/a/content", "say which file"),
    ],
)
async def test_a_bad_query_is_told(tmp_path: Path, target: str, says: str) -> None:
    async with serving(tmp_path) as served:
        code, answer = await served.call("GET", target)
        assert code == 422
        assert says in answer["error"]["message"]


async def test_errors_keep_code_data_and_status(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, answer = await served.call("GET", "/v1/checkpoints/absent")
        assert (code, answer) == (
            404,
            {"error": {"code": "not_found", "message": "no checkpoint 'absent'", "data": {}}},
        )
        code, answer = await served.call("DELETE", "/v1/checkpoints/llama?force=0")
        assert (code, answer["error"]["data"]) == (409, {"jobs": ["j\udcff1"]})
        assert (await served.call("DELETE", "/v1/checkpoints/llama?force=1"))[0] == 200
        code, answer = await served.call("POST", "/v1/checkpoints/llama/cancel")
        assert (code, answer["error"]["data"]) == (409, {"status": "ready", "name": "llama"})


async def test_what_is_not_there_and_what_is_not_allowed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for target in ("/", "/v1", "/v1/status/", "/v2/status", "//v1/status", "/v1/checkpoints/"):
            code, answer = await served.call("GET", target)
            assert (code, answer["error"]["code"]) == (404, "not_found"), target
        for method, target in [
            ("DELETE", "/v1/status"),
            ("PUT", "/v1/checkpoints"),
            ("POST", "/v1/openapi.json"),
        ]:
            code, answer = await served.call(method, target)
            assert code == 405, target
            assert "allowed: " in answer["error"]["message"]


async def test_a_mistake_of_ours_is_500_without_its_innards_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        code, answer = await served.call("GET", "/v1/checkpoints/boom")
        assert (code, answer["error"]["code"]) == (500, "internal")
        assert "ValueError" in answer["error"]["message"]
        assert "a mistake of ours" not in answer["error"]["message"]
        assert (await served.call("GET", "/v1/status"))[0] == 200


# --- Content --------------------------------------------------------------------------------------


async def test_content_whole_and_by_range(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        target = "/v1/checkpoints/llama/content?path=w%FF"
        code, body, headers = await served.whole("GET", target)
        assert (code, body, headers["content-length"]) == (200, FILE, str(len(FILE)))
        assert headers["accept-ranges"] == "bytes"
        assert served.engine.asked == [("content", "llama", b"w\xff")]
        size = len(FILE)
        for wanted, first, end in [
            ("bytes=0-0", 0, 1),
            ("bytes=10-2000009", 10, 2_000_010),
            ("bytes=5119999-", size - 1, size),
            ("bytes=-5", size - 5, size),
            ("bytes=-99999999", 0, size),
            ("bytes=100-99999999", 100, size),
        ]:
            code, body, headers = await served.whole("GET", target, headers={"Range": wanted})
            assert (code, body) == (206, FILE[first:end]), wanted
            assert headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
        for ignored in ("bytes=5-1", "bytes=-", "lines=1-2", "bytes=0-1,5-6", "bytes=x-1"):
            code, body, _ = await served.whole("GET", target, headers={"Range": ignored})
            assert (code, len(body)) == (200, size), ignored
        code, _, headers = await served.whole("GET", target, headers={"Range": f"bytes={size}-"})
        assert (code, headers["content-range"]) == (416, f"bytes */{size}")
        code, body, headers = await served.whole("HEAD", target)
        assert (code, body, headers["content-length"]) == (200, b"", str(size))
        code, body, headers = await served.whole("GET", "/v1/checkpoints/llama/content?path=empty")
        assert (code, body, headers["content-length"]) == (200, b"", "0")
        assert all(content.closed for content in served.engine.opened)


async def test_content_that_fails_in_mid_way_is_broken_off_never_short(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with pytest.raises(http.client.IncompleteRead):
            await served.whole("GET", "/v1/checkpoints/llama/content?path=broken")
        code, answer = await served.call("GET", "/v1/checkpoints/llama/content?path=unreadable")
        assert (code, answer["error"]["code"]) == (500, "internal")
        assert all(content.closed for content in served.engine.opened)


async def test_content_is_closed_when_the_reader_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        connection = served.connect()
        connection.sendall(b"GET /v1/checkpoints/llama/content?path=w HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await trio.to_thread.run_sync(connection.recv, 10)) != b""
        connection.close()
        while not (served.engine.opened and served.engine.opened[0].closed):
            await trio.sleep(0.01)


# --- Progress -------------------------------------------------------------------------------------


async def test_verify_streams_progress_and_ends_with_the_report(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, body, headers = await served.whole("POST", "/v1/checkpoints/llama/verify")
        assert (code, headers["content-type"]) == (200, "application/x-ndjson")
        *progress, last = [json.loads(line) for line in body.splitlines()]
        assert progress
        assert all(line["total"] == 4 for line in progress)
        assert sorted(line["done"] for line in progress) == [line["done"] for line in progress]
        assert last["report"]["damaged"][0]["path"] == "p\udcff"


async def test_verify_that_fails_at_once_has_its_status_and_later_a_last_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, answer = await served.call("POST", "/v1/checkpoints/absent/verify")
        assert (code, answer["error"]["code"]) == (404, "not_found")
        code, body, _ = await served.whole("POST", "/v1/checkpoints/dies/verify")
        assert code == 200
        assert json.loads(body.splitlines()[-1])["error"]["code"] == "source_unavailable"
        with pytest.raises(http.client.IncompleteRead):
            await served.whole("POST", "/v1/checkpoints/crashes/verify")


async def test_verify_ends_when_the_client_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        connection = served.connect()
        connection.sendall(
            b"POST /v1/checkpoints/endless/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        assert (await trio.to_thread.run_sync(connection.recv, 10)) != b""
        assert served.engine.verifying == 1
        connection.close()
        while served.engine.verifying:
            await trio.sleep(0.01)


async def test_assemble_streams_too_and_copies_are_given_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, body, headers = await served.whole("POST", "/v1/checkpoints/llama/assemble")
        assert (code, headers["content-type"]) == (200, "application/x-ndjson")
        first, *_, last = [json.loads(line) for line in body.splitlines()]
        assert first == {"done": 1, "total": 2}
        assert (last["report"]["made"], last["report"]["served_files"]) == (1, {"small": 1})
        code, answer = await served.call("DELETE", "/v1/checkpoints/llama/derived")
        assert (code, answer["dropped"]) == (200, 1)
        assert served.engine.asked == [("assemble", "llama"), ("drop_derived", "llama")]


# --- Who may --------------------------------------------------------------------------------------


async def test_an_upgrade_is_for_root_and_names_a_whole_path(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        code, answer = await served.call("POST", "/v1/upgrade", {"python": "/opt/x/bin/python"})
        assert (code, answer["worker_pid"]) == (202, 2)
        assert served.engine.asked == [("upgrade", "/opt/x/bin/python")]
        code, answer = await served.call("POST", "/v1/upgrade", {"python": "bin/python"})
        assert (code, answer["error"]["code"]) == (422, "specification")
    # An administrator who is not root: a member of the group.
    async with serving(tmp_path, permissions=_MembersOnly()) as served:
        code, answer = await served.call("POST", "/v1/upgrade", {})
        assert (code, answer["error"]["code"]) == (403, "permission_denied")
        assert "only root" in answer["error"]["message"]
        assert served.engine.asked == []


async def test_who_is_not_an_administrator_may_only_read(tmp_path: Path) -> None:
    nobody_is_admin = _Nobody()
    async with serving(tmp_path, permissions=nobody_is_admin) as served:
        for method, target in [
            ("POST", "/v1/checkpoints"),
            ("PATCH", "/v1/checkpoints/a"),
            ("DELETE", "/v1/checkpoints/a?force=1"),
            ("POST", "/v1/checkpoints/a/cancel"),
            ("POST", "/v1/checkpoints/a/verify"),
            ("POST", "/v1/checkpoints/a/assemble"),
            ("DELETE", "/v1/checkpoints/a/derived"),
            ("POST", "/v1/jobs"),
            ("DELETE", "/v1/jobs/j"),
            ("PUT", "/v1/status"),
            ("FROBNICATE", "/v1/status"),
            ("POST", "/nowhere"),
        ]:
            code, answer = await served.call(method, target, {"name": "n"})
            assert (code, answer["error"]["code"]) == (403, "permission_denied"), (method, target)
        assert served.engine.asked == []
        for target in (
            "/v1/checkpoints",
            "/v1/checkpoints/a",
            "/v1/checkpoints/a/tree",
            "/v1/jobs",
            "/v1/status",
            "/v1/doctor",
            "/v1/openapi.json",
        ):
            assert (await served.call("GET", target))[0] == 200, target
        code, body, _ = await served.whole("GET", "/v1/checkpoints/a/content?path=w")
        assert (code, body) == (200, FILE)


class _MembersOnly(Permissions):
    """As for a peer that is a member of the admin group, and neither root nor the daemon's own user."""

    def is_owner(self, peer: object) -> bool:
        return False

    def is_admin(self, peer: object) -> bool:
        return True


class _Nobody(Permissions):
    def is_admin(self, peer: object) -> bool:
        return False


async def test_a_refused_request_with_a_long_body_still_sees_why(tmp_path: Path) -> None:
    async with serving(tmp_path, permissions=_Nobody()) as served:
        code, answer = await served.call("POST", "/v1/checkpoints", b"x" * 900_000)
        assert (code, answer["error"]["code"]) == (403, "permission_denied")


async def test_without_credentials_in_the_scope_nobody_gets_in() -> None:
    """Should Hypercorn change and the peer not arrive, everything is refused."""
    engine = SmallEngine()
    face = Control(engine=engine, status=status, doctor=doctor, upgrade=engine.upgrade)
    application = build(face, version="1")
    for state in ({}, {"peer": None}, {"peer": (1, 0, 0)}):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/status",
            "raw_path": b"/v1/status",
            "query_string": b"",
            "headers": [],
            "state": state,
        }
        await application(scope, receive, send)
        assert sent[0]["status"] == 403


# --- Rude clients ---------------------------------------------------------------------------------


async def test_too_long_too_slow_and_never_finished_bodies(tmp_path: Path) -> None:
    async with serving(tmp_path, max_body_bytes=1000, body_timeout_seconds=0.3) as served:
        code, answer = await served.call("POST", "/v1/checkpoints", b"x" * 1001)
        assert (code, answer["error"]["code"]) == (413, "specification")
        connection = served.connect()
        connection.sendall(b"POST /v1/checkpoints HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        said = await trio.to_thread.run_sync(connection.recv, 1000)
        assert said.startswith(b"HTTP/1.1 408")
        connection.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",  # no Host
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n",
        b"POST /v1/checkpoints HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/checkpoints HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://elsewhere/v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/status%zz?%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"",
    ],
)
async def test_garbage_closes_only_its_own_connection(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as served:
        beside = served.connect()
        rude = served.connect()
        rude.sendall(garbage)
        rude.shutdown(socket.SHUT_WR)

        def drain() -> bytes:
            said = b""
            try:
                while piece := rude.recv(65536):
                    said += piece
            except ConnectionResetError:
                pass
            return said

        said = await trio.to_thread.run_sync(drain)
        assert not said.startswith(b"HTTP/1.1 2")
        rude.close()
        assert (await served.call("GET", "/v1/status"))[0] == 200
        beside.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await trio.to_thread.run_sync(beside.recv, 100)).startswith(b"HTTP/1.1 200")
        beside.close()


async def test_who_asks_for_http_2_is_answered_in_http_1(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        connection = served.connect()
        connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: ?\r\n\r\n")
        assert (await trio.to_thread.run_sync(connection.recv, 100)).startswith(b"HTTP/1.1 200")
        connection.close()


async def test_a_client_that_leaves_frees_its_place_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        connection = served.connect()
        connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await trio.to_thread.run_sync(connection.recv, 100)
        connection.close()
        with trio.fail_after(1):
            while served.server.statistics()["connections"]:
                await trio.sleep(0.01)


async def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    limits = ServerLimits(send_timeout_seconds=0.3, stop_grace_seconds=0.2)
    async with serving(tmp_path, limits=limits) as served:
        connection = served.connect()
        connection.sendall(b"GET /v1/checkpoints/llama/content?path=w HTTP/1.1\r\nHost: x\r\n\r\n")
        while not served.engine.opened:
            await trio.sleep(0.01)
        with trio.fail_after(5):
            while not served.engine.opened[0].closed:
                await trio.sleep(0.01)
        connection.close()


async def test_idle_connections_are_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServerLimits(idle_timeout_seconds=0.2)) as served:
        silent, slow = served.connect(), served.connect()
        slow.sendall(b"GET /v1/status HTTP/1.1\r\nHos")
        for connection in (silent, slow):
            assert await trio.to_thread.run_sync(connection.recv, 100) == b""
            connection.close()


async def test_only_so_many_connections_are_served_at_a_time(tmp_path: Path) -> None:
    limits = ServerLimits(max_connections=2, idle_timeout_seconds=0.4, stop_grace_seconds=0.2)
    async with serving(tmp_path, limits=limits) as served:
        hogs = [served.connect() for _ in range(2)]
        while served.server.statistics()["connections"] < 2:
            await trio.sleep(0.01)
        code, _ = await served.call("GET", "/v1/status")  # waits until a hog is cut off
        assert code == 200
        for hog in hogs:
            hog.close()


async def test_a_stop_waits_for_requests_but_not_for_ever(tmp_path: Path) -> None:
    with ControlSocket(str(tmp_path / "s")) as listening:
        engine = SmallEngine()
        face = Control(
            engine=engine,
            status=status,
            doctor=doctor,
            upgrade=engine.upgrade,
            permissions=Permissions.of_this_process(None),
            progress_seconds=0.01,
        )
        server = ControlServer(
            build(face, version="1"), listening.socket, ServerLimits(stop_grace_seconds=0.3)
        )
        served = Served(listening.path, engine, server)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                idle, stuck, working = served.connect(), served.connect(), served.connect()
                request = b"POST /v1/checkpoints/%s/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
                stuck.sendall(request % b"endless")
                working.sendall(request % b"llama")
                while engine.verifying < 2:
                    await trio.sleep(0.01)
                server.stop()
                assert await trio.to_thread.run_sync(idle.recv, 10) == b""

                def drain(connection: socket.socket) -> bytes:
                    said = b""
                    try:
                        while piece := connection.recv(65536):
                            said += piece
                    except ConnectionResetError:
                        pass
                    return said

                assert b'"report"' in await trio.to_thread.run_sync(drain, working)
                assert b'"report"' not in await trio.to_thread.run_sync(drain, stuck)
        assert engine.verifying == 0
        for connection in (idle, stuck, working):
            connection.close()
