"""Every verb of the control interface on a real daemon: its description, its answers, and who may use it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from bare_daemon import BareDaemon
from daemon_process import until
from openapi_spec_validator import validate

from ckptfs.errors import ConnectionError
from ckptfs.model.records import (
    CheckpointInfo,
    DoctorCheck,
    JobInfo,
    StatusInfo,
    TreeEntry,
    VerifyReport,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

ADMIN_GID = 54_321
STRANGER = 12_345


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareDaemon]:
    """One for all: nobody here stops it. Its socket is for everybody, so that only the verbs decide."""
    directory = tmp_path_factory.mktemp("verbs")
    config = directory / "ckptfsd.toml"
    config.write_text(f'[control]\nsocket_mode = 0o666\nadmin_group = "{ADMIN_GID}"\n')
    daemon = BareDaemon(directory / "d")
    daemon.arguments = ["--config", str(config)]
    try:
        daemon.start()
        yield daemon
        assert daemon.stop() == 0
        assert "[error" not in daemon.said()
    finally:
        daemon.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "weights.bin").write_bytes(bytes(range(256)) * 5000)
    (root / os.fsdecode(b"sub/n\xff\n")).write_bytes(b"odd")
    (root / "link").symlink_to("weights.bin")
    return root


def ask(daemon: BareDaemon, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("ckptfs", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(60)
    connection.sock.connect(str(daemon.socket))
    try:
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answered(daemon: BareDaemon, kind: Any, method: str, target: str, body: Any = None) -> Any:
    """The answer as the record that it is said to be."""
    status, answer = ask(daemon, method, target, body)
    assert status in (200, 201), answer
    return msgspec.convert(json.loads(answer), kind)


def make(daemon: BareDaemon, name: str, source: Path) -> CheckpointInfo:
    daemon.client().checkpoints.create(name, source_uri=str(source)).wait_for("ready", timeout=60)
    info: CheckpointInfo = answered(daemon, CheckpointInfo, "GET", f"/v1/checkpoints/{name}")
    return info


# --- The description ------------------------------------------------------------------------------


def test_the_description_is_valid_openapi(daemon: BareDaemon) -> None:
    status, answer = ask(daemon, "GET", "/v1/openapi.json")
    assert status == 200
    description = json.loads(answer)
    validate(description)
    assert description["openapi"].startswith("3.1")
    names = [o["operationId"] for path in description["paths"].values() for o in path.values()]
    assert len(names) == len(set(names))


def test_every_operation_of_the_description_is_answered_as_described(
    daemon: BareDaemon, source: Path
) -> None:
    """A success for each, whose status and media type are those of the description."""
    description = json.loads(ask(daemon, "GET", "/v1/openapi.json")[1])
    make(daemon, "described", source)
    order: list[tuple[str, str, str, Any]] = [
        ("GET", "/v1/checkpoints", "", None),
        ("POST", "/v1/checkpoints", "", {"name": "described-2", "source_uri": str(source)}),
        ("GET", "/v1/checkpoints/{ref}", "?light=1", None),
        ("GET", "/v1/checkpoints/{ref}/tree", "?path=sub", None),
        ("GET", "/v1/checkpoints/{ref}/content", "?path=weights.bin", None),
        ("POST", "/v1/checkpoints/{ref}/verify", "", None),
        ("POST", "/v1/checkpoints/{ref}/assemble", "", None),
        ("DELETE", "/v1/checkpoints/{ref}/derived", "", None),
        ("POST", "/v1/jobs", "", {"job": "described-job", "checkpoints": ["described"]}),
        ("GET", "/v1/jobs", "", None),
        ("DELETE", "/v1/jobs/{job}", "?checkpoint=described", None),
        ("PATCH", "/v1/checkpoints/{ref}", "", {"name": "described-3"}),
        ("DELETE", "/v1/checkpoints/{ref}", "?force=0", None),
        ("GET", "/v1/status", "", None),
        ("GET", "/v1/doctor", "", None),
        ("POST", "/v1/upgrade", "", {}),
    ]
    # A creation that is over cannot be cancelled; that is answered in test_cancel below.
    skipped = {("POST", "/v1/checkpoints/{ref}/cancel")}
    described = {(m.upper(), path) for path, item in description["paths"].items() for m in item}
    assert described == {(m, path) for m, path, _, _ in order} | skipped
    ref = "described"
    upgrades = upgrades_of(daemon)
    for method, path, query, body in order:
        operation = description["paths"][path][method.lower()]
        target = path.replace("{ref}", ref).replace("{job}", "described-job") + query
        connection = http.client.HTTPConnection("ckptfs")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(str(daemon.socket))
        connection.request(method, target, None if body is None else json.dumps(body))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        success = operation["responses"].get(str(response.status))
        assert success is not None, (method, target, response.status, content)
        media_type = response.getheader("Content-Type")
        assert media_type in success["content"], (method, target, media_type)
        assert ("requestBody" in operation) == (body is not None)
        if method == "PATCH":
            ref = "described-3"
    # The last of them goes on after its answer, and would interrupt whatever the next test begins.
    until(lambda: upgrades_of(daemon) > upgrades, "the upgrade is over")
    daemon.client().checkpoints.get("described-2").wait_for("ready", timeout=60)


def upgrades_of(daemon: BareDaemon) -> int:
    """-1: the worker that was asked has gone."""
    with contextlib.suppress(ConnectionError):
        return daemon.client().status().upgrades
    return -1


# --- The verbs ------------------------------------------------------------------------------------


def test_answers_are_the_records_that_the_sdk_reads(daemon: BareDaemon, source: Path) -> None:
    (source / "only-here").write_bytes(b"!")  # so that its id is no other's
    info = make(daemon, "records", source)
    assert (info.name, info.status, info.size) == ("records", "ready", 1_280_004)
    assert info.stored_bytes is not None
    listed = answered(daemon, dict[str, list[CheckpointInfo]], "GET", "/v1/checkpoints")["checkpoints"]
    assert info.id in {c.id for c in listed}
    by_id = answered(daemon, CheckpointInfo, "GET", f"/v1/checkpoints/{quote(info.id)}?light=1")
    assert by_id.name == "records"
    tree = answered(daemon, dict[str, list[TreeEntry]], "GET", "/v1/checkpoints/records/tree")["entries"]
    assert {(e.path, e.type, e.size) for e in tree} >= {
        ("weights.bin", "f", 1_280_000),
        ("sub", "d", 0),
        ("sub/n\udcff\n", "f", 3),
    }
    job = answered(daemon, JobInfo, "POST", "/v1/jobs", {"job": "r", "checkpoints": ["records"]})
    assert job.checkpoints[0].source == str(daemon.mount / "records")
    assert Path(job.checkpoints[0].source, "weights.bin").stat().st_size == 1_280_000
    left = answered(daemon, JobInfo, "DELETE", "/v1/jobs/r")
    assert left.checkpoints == []
    status = answered(daemon, StatusInfo, "GET", "/v1/status")
    assert status.mounted
    assert status.counters["connections"] >= 1
    checks = answered(daemon, dict[str, list[DoctorCheck]], "GET", "/v1/doctor")["checks"]
    assert [c for c in checks if c.required and not c.ok] == []
    code, lines = ask(daemon, "POST", "/v1/checkpoints/records/verify")
    last = json.loads(lines.splitlines()[-1])
    assert (code, msgspec.convert(last["report"], VerifyReport).damaged) == (200, [])


def test_content_is_the_files_whatever_its_path(daemon: BareDaemon, source: Path) -> None:
    make(daemon, "content", source)
    target = "/v1/checkpoints/content/content?path="
    assert ask(daemon, "GET", target + "weights.bin") == (200, (source / "weights.bin").read_bytes())
    assert ask(daemon, "GET", target + quote(b"sub/n\xff\n")) == (200, b"odd")
    assert ask(daemon, "GET", target + "weights.bin", Range="bytes=256-258") == (206, b"\0\1\2")
    assert ask(daemon, "GET", target + "sub")[0] in (404, 409, 422)
    assert ask(daemon, "GET", target + "../../etc/passwd")[0] in (404, 422)
    assert ask(daemon, "GET", target + "/etc/passwd")[0] in (404, 422)


def test_a_checkpoint_can_be_removed_as_soon_as_it_was_read(daemon: BareDaemon, source: Path) -> None:
    for _ in range(5):
        make(daemon, "read-once", source)
        assert ask(daemon, "GET", "/v1/checkpoints/read-once/content?path=weights.bin")[0] == 200
        code, answer = ask(daemon, "DELETE", "/v1/checkpoints/read-once")
        assert code == 200, answer


def test_errors_of_the_engine_come_with_code_and_status(daemon: BareDaemon, source: Path) -> None:
    make(daemon, "taken", source)
    for expected, code, method, target, body in [
        (404, "not_found", "GET", "/v1/checkpoints/absent", None),
        (404, "not_found", "DELETE", "/v1/jobs/absent", None),
        (409, "name_taken", "POST", "/v1/checkpoints", {"name": "taken", "source_uri": str(source)}),
        (422, "specification", "POST", "/v1/checkpoints", {"name": "a/b", "source_uri": str(source)}),
        (422, "specification", "PATCH", "/v1/checkpoints/taken", {"name": "../x"}),
        (409, "conflict", "POST", "/v1/checkpoints/taken/cancel", None),
    ]:
        status, answer = ask(daemon, method, target, body)
        error = json.loads(answer)["error"]
        assert (status, error["code"]) == (expected, code), error
        assert "\n" not in error["message"]


def test_a_lease_that_is_bound_to_its_caller_ends_with_it(daemon: BareDaemon, source: Path) -> None:
    """The pid is the kernel's word, not the client's."""
    make(daemon, "bound", source)
    program = (
        "import json, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "body = json.dumps({'job': 'b', 'checkpoints': ['bound'], 'bind_to_caller': True})\n"
        "head = f'POST /v1/jobs HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n'\n"
        "s.sendall((head + body).encode())\n"
        "print(s.recv(10000).decode().splitlines()[0], flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(daemon.socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert "201" in holder.stdout.readline()
    jobs = {job.job: job for job in daemon.client().jobs.list()}
    assert jobs["b"].pid == holder.pid
    holder.kill()
    holder.communicate()
    for _ in range(500):
        if "b" not in {job.job for job in daemon.client().jobs.list()}:
            break
    else:
        raise AssertionError("the lease outlived its process")


# --- Who may --------------------------------------------------------------------------------------


def as_user(
    daemon: BareDaemon, requests: list[list[Any]], *, uid: int, gid: int, groups: list[int]
) -> list[list[Any]]:
    """Make requests as another user, from a process of its own that is really that user."""
    program = (
        "import http.client, json, os, socket, sys\n"
        "path, requests, uid, gid, groups = json.load(sys.stdin)\n"
        "connections = []\n"
        "os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)\n"
        "assert os.getuid() == os.geteuid() == uid\n"
        "answers = []\n"
        "for method, target, body in requests:\n"
        "    c = http.client.HTTPConnection('x'); c.sock = socket.socket(socket.AF_UNIX)\n"
        "    c.sock.connect(path)\n"
        "    c.request(method, target, None if body is None else json.dumps(body))\n"
        "    r = c.getresponse(); answers.append([r.status, r.read().decode('latin-1')])\n"
        "print(json.dumps(answers))\n"
    )
    # Over a descriptor: an ordinary user may not enter the test's directory.
    directory = os.open(daemon.socket.parent, os.O_PATH)
    try:
        path = f"/proc/self/fd/{directory}/{daemon.socket.name}"
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps([path, requests, uid, gid, groups]),
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=[directory],
            check=False,
        )
    finally:
        os.close(directory)
    assert done.returncode == 0, done.stderr
    answers: list[list[Any]] = json.loads(done.stdout)
    return answers


@as_root
def test_a_stranger_may_look_and_nothing_else(daemon: BareDaemon, source: Path) -> None:
    make(daemon, "guarded", source)
    reads = [
        ["GET", "/v1/checkpoints", None],
        ["GET", "/v1/checkpoints/guarded", None],
        ["GET", "/v1/checkpoints/guarded/tree", None],
        ["GET", "/v1/checkpoints/guarded/content?path=weights.bin", None],
        ["GET", "/v1/jobs", None],
        ["GET", "/v1/status", None],
        ["GET", "/v1/doctor", None],
        ["GET", "/v1/openapi.json", None],
    ]
    writes = [
        ["POST", "/v1/checkpoints", {"name": "theirs", "source_uri": "/etc"}],
        ["PATCH", "/v1/checkpoints/guarded", {"name": "theirs"}],
        ["DELETE", "/v1/checkpoints/guarded?force=1", None],
        ["POST", "/v1/checkpoints/guarded/cancel", None],
        ["POST", "/v1/checkpoints/guarded/verify", None],
        ["POST", "/v1/checkpoints/guarded/assemble", None],
        ["DELETE", "/v1/checkpoints/guarded/derived", None],
        ["POST", "/v1/jobs", {"job": "theirs", "checkpoints": ["guarded"]}],
        ["DELETE", "/v1/jobs/x", None],
    ]
    answers = as_user(daemon, reads + writes, uid=STRANGER, gid=STRANGER, groups=[STRANGER, 0])
    assert [status for status, _ in answers[: len(reads)]] == [200] * len(reads)
    for status, body in answers[len(reads) :]:
        assert (status, json.loads(body)["error"]["code"]) == (403, "permission_denied")
        assert f"user {STRANGER} may look" in body
    names = {c.name for c in daemon.client().checkpoints.list()}
    assert "guarded" in names
    assert "theirs" not in names
    assert daemon.client().jobs.list() == []


@as_root
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "status"),
    [
        (STRANGER, ADMIN_GID, [], 201),
        (STRANGER, STRANGER, [7, ADMIN_GID], 201),
        (STRANGER, STRANGER, [7], 403),
        (ADMIN_GID, STRANGER, [], 403),
        (0, STRANGER, [], 201),
    ],
)
def test_members_of_the_admin_group_may_change_things(
    daemon: BareDaemon, source: Path, uid: int, gid: int, groups: list[int], status: int
) -> None:
    make(daemon, "shared", source) if not _there(daemon, "shared") else None
    request = ["POST", "/v1/jobs", {"job": "grouped", "checkpoints": ["shared"]}]
    answers = as_user(daemon, [request], uid=uid, gid=gid, groups=groups)
    assert answers[0][0] == status
    if status == 201:
        daemon.client().jobs.detach("grouped")
    assert re.search(rf"path=/v1/jobs .*peer_uid={uid} .*status={status}", daemon.said())


def _there(daemon: BareDaemon, name: str) -> bool:
    return name in {c.name for c in daemon.client().checkpoints.list()}


@as_root
def test_the_sockets_mode_keeps_others_out_altogether(tmp_path: Path) -> None:
    daemon = BareDaemon(tmp_path / "d")
    daemon.mount = None
    config = tmp_path / "c.toml"
    config.write_text(f'[control]\nsocket_group = "{ADMIN_GID}"\n')
    daemon.arguments = ["--config", str(config)]
    try:
        daemon.start()
        assert (daemon.socket.stat().st_mode & 0o777, daemon.socket.stat().st_gid) == (0o660, ADMIN_GID)
        request = ["GET", "/v1/status", None]
        assert as_user(daemon, [request], uid=STRANGER, gid=ADMIN_GID, groups=[])[0][0] == 200
        with pytest.raises(AssertionError, match="PermissionError"):
            as_user(daemon, [request], uid=STRANGER, gid=STRANGER, groups=[])
        assert daemon.stop() == 0
    finally:
        daemon.close()


# --- Abuse ----------------------------------------------------------------------------------------


def test_many_rude_clients_at_once_change_nothing(daemon: BareDaemon) -> None:
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    linger = struct.pack("ii", 1, 0)
    for number in range(300):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            rude.connect(str(daemon.socket))
            rude.sendall((b"", b"\xff" * 100, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")[number % 3])
    status: StatusInfo = answered(daemon, StatusInfo, "GET", "/v1/status")
    assert status.counters["connections_served"] >= 300
    for _ in range(500):
        if len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before + 1:
            break
        answered(daemon, StatusInfo, "GET", "/v1/status")
    else:
        raise AssertionError("descriptors were left open")
    assert "Traceback" not in daemon.said()
