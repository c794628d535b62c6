"""The command line against a real daemon: create, look, rename, remove, verify; errors and exit codes."""

from __future__ import annotations

import base64
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from daemon_process import CKPTFS, SAMPLES, Daemon, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    write_tree(root, SAMPLES["model"])
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("weights/part-1.bin")
    return root


def test_a_checkpoint_from_creation_to_removal(daemon: Daemon, source: Path) -> None:
    size = sum(p.stat().st_size for p in source.rglob("*") if p.is_file() and not p.is_symlink())
    made = daemon.run("create", "model", str(source))
    name, digest, state = made.stdout.split()[:3]
    assert (name, state) == ("model", "ready,")
    assert len(digest) == 3 + 64
    assert "in 5 files" in made.stdout

    listed = daemon.run("list").stdout.splitlines()
    assert listed[0].split() == ["ID", "STATUS", "NAME", "SIZE"]
    assert listed[1].split()[:3] == [digest[:15], "ready", "model"]

    shown = daemon.json("show", digest[:12])
    assert (shown["id"], shown["size"], shown["files"]) == (digest, size, 5)
    assert shown["unique_bytes"] + shown.get("shared_bytes", 0) == shown["stored_bytes"] <= size
    assert f"({size} bytes)" in daemon.run("show", "model").stdout

    tree = daemon.json("tree", "model")
    assert (tree["files"], tree["size"]) == (5, size)
    by_path = {entry["path"]: entry for entry in tree["entries"]}
    assert by_path["run.sh"]["executable"] is True
    assert by_path["link"]["target"] == "weights/part-1.bin"
    drawn = daemon.run("tree", "model").stdout
    assert "run.sh*" in drawn
    assert "link -> weights/part-1.bin" in drawn
    assert "part-2.bin" in daemon.run("tree", "model", "weights").stdout
    assert "config.json" not in daemon.run("tree", "model", "weights").stdout

    for path in SAMPLES["model"]:
        content = subprocess.run(
            [*CKPTFS, "cat", "model", path], env=daemon.environment(), capture_output=True, check=True
        ).stdout
        assert content == SAMPLES["model"][path]
    as_json = daemon.json("cat", "model", "config.json")
    assert base64.b64decode(as_json["files"][0]["content_base64"]) == SAMPLES["model"]["config.json"]

    assert "intact" in daemon.run("verify", "model").stdout
    assert daemon.json("verify", "model")["damaged"] == []

    assert daemon.run("rename", "model", "renamed").stdout == "model is now renamed\n"
    assert daemon.run("wait", "renamed", "--timeout", "5").stdout == "renamed ready\n"
    assert daemon.run("remove", "renamed").stdout == "removed renamed, 9.0 MB given back\n"
    assert daemon.run("list").stdout.splitlines()[1:] == []
    assert daemon.run("wait", "renamed", "--status", "archived").stdout == "renamed archived\n"
    assert daemon.json("status")["store"]["checkpoints"] == 0


def test_a_relative_source_is_the_callers(daemon: Daemon, source: Path) -> None:
    made = daemon.json("create", "model", "./source/", cwd=source.parent)
    assert (made["status"], made["source_uri"]) == ("ready", str(source))


def test_the_same_tree_twice_takes_no_more_space(daemon: Daemon, source: Path) -> None:
    first = daemon.json("create", "one", str(source))
    before = daemon.json("status")["store"]
    second = daemon.json("create", "two", str(source))
    after = daemon.json("status")["store"]
    assert first["id"] == second["id"]
    assert second["shared_bytes"] == second["stored_bytes"]
    assert (before["stored_bytes"], before["chunks"]) == (after["stored_bytes"], after["chunks"])
    assert after["logical_bytes"] == 2 * before["logical_bytes"]
    ambiguous = daemon.run("show", first["id"], code=4)
    assert "one" in ambiguous.stderr
    assert "two" in ambiguous.stderr
    assert daemon.json("show", "name:one")["name"] == "one"


def test_a_creation_goes_on_by_itself(daemon: Daemon, source: Path) -> None:
    started = daemon.json("create", "model", str(source), "--no-wait")
    assert started["id"].startswith("c-")
    assert daemon.json("wait", started["id"], "--status", "downloading")["name"] == "model"
    assert daemon.json("wait", started["id"])["status"] == "ready"
    assert daemon.json("show", started["id"])["id"].startswith("b3:")


def test_archives_are_extracted_or_kept(daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b.txt", "inside")
    daemon.run("create", "extracted", str(archive))
    daemon.run("create", "kept", str(archive), "--no-extract")
    assert daemon.run("cat", "extracted", "a/b.txt").stdout == "inside"
    assert [e["path"] for e in daemon.json("tree", "kept")["entries"]] == ["model.zip"]


def test_errors_are_one_line_with_their_exit_code(daemon: Daemon, source: Path, tmp_path: Path) -> None:
    daemon.run("create", "model", str(source))
    empty = tmp_path / "empty"
    empty.mkdir()
    fifo = tmp_path / "special"
    fifo.mkdir()
    os.mkfifo(fifo / "pipe")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04" + bytes(100))
    for arguments, code in (
        (["create", "model", str(source)], 4),
        (["create", "bad/name", str(source)], 2),
        (["create", "x", str(tmp_path / "none")], 6),
        (["create", "x", str(empty)], 6),
        (["create", "x", str(fifo)], 6),
        (["create", "x", str(broken)], 6),
        (["create", "x", "gopher://host/x"], 2),
        (["show", "none"], 3),
        (["show", "b3:" + "0" * 64], 3),
        (["cat", "model", "none"], 3),
        (["cat", "model", "weights"], 3),
        (["tree", "model", "none"], 3),
        (["rename", "model", ".hidden"], 2),
        (["remove", "model", "none"], 3),
        (["cancel", "model"], 4),
        (["attach", "none", "--job", "j"], 3),
        (["attach", "model", "--job", "a b"], 2),
        (["detach", "--job", "none"], 3),
    ):
        failed = daemon.run(*arguments, code=code)
        last = failed.stderr.splitlines()[-1]
        assert last.startswith("ckptfs: error: "), (arguments, failed.stderr)
        assert failed.stderr.count("ckptfs: error") == 1
        assert failed.stdout == ""
    assert [c["name"] for c in daemon.json("list")["checkpoints"] if c["status"] == "ready"] == ["model"]


def test_a_failed_creation_is_reported_and_can_be_forgotten(daemon: Daemon, tmp_path: Path) -> None:
    failed = daemon.json("create", "x", str(tmp_path / "none"), code=6)
    assert failed["error"]["code"] == "source_not_found"
    (listed,) = daemon.json("list")["checkpoints"]
    assert (listed["status"], listed["reason_code"]) == ("failed", "source_not_found")
    assert "none" in daemon.run("show", "x").stdout
    assert daemon.run("wait", "x", code=6).stderr.startswith("ckptfs: error: checkpoint x failed: ")
    daemon.run("remove", "x")
    assert daemon.json("list")["checkpoints"] == []


def test_hostile_names_are_shown_safely_and_can_be_read(daemon: Daemon, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "source")
    os.mkdir(root)
    names = [b"new\nline", b"\x1b[31mred", b"bad\xff\xfeutf8", b"back\\slash", "größe".encode(), b"a" * 255]
    for name in names:
        with open(os.path.join(root, name), "wb") as file:
            file.write(b"content of " + name[:20])
    daemon.run("create", "odd", root)
    drawn = daemon.run("tree", "odd").stdout
    assert len(drawn.splitlines()) == len(names) + 2
    assert "\x1b" not in drawn
    for shown in ("new\\x0aline", "\\x1b[31mred", "bad\\xff\\xfeutf8", "back\\\\slash", "größe"):
        assert shown in drawn
    paths = [os.fsencode(e["path"]) for e in daemon.json("tree", "odd")["entries"]]
    assert sorted(paths) == sorted(names)
    for name in names:
        content = daemon.run(b"cat", b"odd", name).stdout
        assert os.fsencode(content) == b"content of " + name[:20]


def test_a_reader_that_leaves_is_no_error(node: Daemon) -> None:
    shell = '{ "$@"; echo "$?" >&2; } | head -c 10 >/dev/null'
    command = ["sh", "-c", shell, "sh", *CKPTFS, "cat", "model", "weights/part-1.bin"]
    done = subprocess.run(command, env=node.environment(), capture_output=True, text=True, timeout=60)
    assert done.stderr == "141\n"


def test_status_and_doctor(node: Daemon) -> None:
    status = node.json("status")
    assert (status["mount"], status["mounted"], status["socket"]) == (str(node.mount), True, node.socket)
    assert status["store"]["checkpoints"] == 2
    assert status["store"]["physical_bytes"] > 0
    text = node.run("status").stdout
    for word in ("logical", "stored", "physical", str(node.mount)):
        assert word in text
    doctor = node.json("doctor")
    assert doctor["reachable"] is True
    assert doctor["ok"] is True
    assert len(doctor["checks"]) > 5


def test_nothing_of_the_callers_credentials_is_shown(daemon: Daemon, tmp_path: Path) -> None:
    secret = "SECRETsecretSECRET"
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIDexample",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": f"T{secret}",
        "AWS_REGION": "eu-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # nobody listens: the creation fails
        "AWS_MAX_ATTEMPTS": "1",
    }
    failed = daemon.run("create", "x", "s3://bucket/prefix/", "--no-wait", env=environment)
    told = failed.stdout + failed.stderr
    told += daemon.run("show", "x", "--json").stdout + daemon.run("list", "--json").stdout
    daemon.run("cancel", "x", code=None)
    told += daemon.log.read_text()
    assert secret not in told
    for path in daemon.store.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
