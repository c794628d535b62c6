"""The command's edge: exit codes, one error line, JSON errors, --socket, streams, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_stub import Stub, answer_error, answer_json, serving

from ckptfs.cli.main import VERBS, main


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with serving(str(tmp_path / "s")) as serving_stub:
        monkeypatch.setenv("CKPTFS_SOCKET", serving_stub.path)
        yield serving_stub


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def invoke(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ran(left.value.code, captured.out, captured.err)

    return invoke


def info(**more: Any) -> dict[str, Any]:
    return {"id": "c-1", "creation": "c-1", "name": "x", "status": "ready", **more}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (422, "specification", 2),
        (404, "not_found", 3),
        (409, "name_taken", 4),
        (409, "ambiguous", 4),
        (403, "permission_denied", 5),
        (409, "checkpoint", 6),
        (422, "source_corrupt", 6),
        (507, "store_full", 7),
        (500, "unheard-of", 8),
        (500, "internal", 1),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    run: Any, stub: Stub, status: int, code: str, expected: int
) -> None:
    stub.answer = lambda asked: answer_error(status, code, "what\nhappened \x1b[31m")
    ran = run("show", "x")
    assert ran.code == expected
    assert ran.out == ""
    assert ran.err == "ckptfs: error: what\\x0ahappened \\x1b[31m\n"


def test_with_json_the_error_is_a_document_too(run: Any, stub: Stub) -> None:
    stub.answer = lambda asked: answer_error(409, "ambiguous", "fits two", candidates=["a", "b"])
    ran = run("show", "--json", "x")
    assert ran.code == 4
    assert ran.json == {
        "error": {"code": "ambiguous", "message": "fits two", "data": {"candidates": ["a", "b"]}}
    }
    assert ran.err == "ckptfs: error: fits two\n"


def test_no_daemon(run: Any, tmp_path: Path) -> None:
    ran = run("list", "--socket", str(tmp_path / "none"))
    assert ran.code == 8
    assert ran.err.startswith("ckptfs: error: no daemon at")
    assert ran.err.count("\n") == 1


def test_the_socket_may_stand_before_or_after_the_verb(run: Any, stub: Stub, monkeypatch: Any) -> None:
    monkeypatch.setenv("CKPTFS_SOCKET", "/nowhere")
    stub.answer = lambda asked: answer_json({"checkpoints": [info(size=1500)]})
    table = "ID   STATUS  NAME    SIZE\nc-1  ready   x     1.5 kB\n"
    assert run("--socket", stub.path, "list").out == table
    assert run("list", "--socket", stub.path).out == table
    assert run("list").code == 8


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["show"], 2),
        (["show", "--nonsense", "x"], 2),
        (["create", "x", "y", "--source-option", "novalue"], 2),
        (["create", "a/b", "/x"], 2),
        (["wait", "x", "--timeout", "86401"], 2),
        (["wait", "x", "--timeout", "-1"], 2),
        (["show", ""], 2),
        (["run", "--checkpoint", "x"], 125),
        (["run", "--nonsense", "--", "true"], 125),
        (["run", "--checkpoint", "x", "--", "true"], 125),
    ],
)
def test_usage_errors(run: Any, monkeypatch: Any, arguments: list[str], code: int) -> None:
    monkeypatch.setenv("CKPTFS_SOCKET", "/nowhere")
    ran = run(*arguments)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("ckptfs: error: ")
    assert ran.err.count("\n") == 1


def test_a_secret_in_the_wrong_place_is_not_repeated(run: Any) -> None:
    ran = run("create", "x", "s3://b/", "--source-option", "hunter2hunter2")
    assert "hunter2" not in ran.err


def test_a_defect_is_one_line_as_well(run: Any, stub: Stub, monkeypatch: Any) -> None:
    monkeypatch.setattr("ckptfs.cli.rendering.columns", lambda *a, **k: 1 / 0)
    stub.answer = lambda asked: answer_json({"checkpoints": []})
    ran = run("list")
    assert ran.code == 1
    assert ran.err.startswith("ckptfs: error: a defect in ckptfs, ZeroDivisionError")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_teaches(run: Any, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    assert "--socket" in ran.out
    assert len(ran.out.splitlines()) > 8


def test_help_names_every_verb(run: Any) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert all(f"\n  {name} " in ran.out for name in VERBS)
    nothing = run()
    assert nothing.code == 2
    assert "Usage: ckptfs" in nothing.err


def test_version(run: Any) -> None:
    import ckptfs

    assert run("--version").out == f"ckptfs {ckptfs.__version__}\n"


def test_names_cannot_drive_the_terminal(run: Any, stub: Stub) -> None:
    stub.answer = lambda asked: answer_json({"checkpoints": [info(name="a\x1b[2J\nb\udcff")]})
    ran = run("list")
    assert "a\\x1b[2J\\x0ab\\xff" in ran.out
    assert ran.out.count("\n") == 2
    as_json = run("list", "--json")
    assert as_json.json["checkpoints"][0]["name"] == "a\x1b[2J\nb\udcff"
    assert as_json.out.isascii()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Any, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == 0
    assert "_CKPTFS_COMPLETE" in ran.out


def complete(words: str, socket: str) -> list[str]:
    environment = {
        **os.environ,
        "_CKPTFS_COMPLETE": "bash_complete",
        "COMP_WORDS": f"ckptfs {words}",
        "COMP_CWORD": str(len(words.split(" "))),
        "CKPTFS_SOCKET": socket,
    }
    command = [sys.executable, "-c", "from ckptfs.cli.main import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_verbs_and_names_are_completed(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda asked: answer_json({"checkpoints": [info(name="llama"), info(name="other")]})
    assert complete("re", stub.path) == ["rename", "remove"]
    assert complete("show l", stub.path) == ["llama"]
    assert complete("show l", str(tmp_path / "none")) == []


def test_doctor_without_a_daemon_checks_what_it_can(run: Any, tmp_path: Path) -> None:
    socket = str(tmp_path / "none")
    ran = run("doctor", "--socket", socket)
    assert ran.code == 8
    assert "MISSING  daemon: not reachable" in ran.out
    for name in ("FUSE device", "fusermount3", "libraries", "ckptfs run"):
        assert f"  {name}: " in ran.out
    assert ran.err.startswith("ckptfs: error: the daemon is not reachable")
    as_json = run("doctor", "--json", "--socket", socket).json
    assert as_json["reachable"] is False
    assert {"name", "ok", "detail"} <= set(as_json["checks"][0])


def test_doctor_with_a_daemon_that_lacks_something(run: Any, stub: Stub) -> None:
    checks = [{"name": "disk", "ok": False, "detail": "full", "remedy": "buy one"}]
    stub.answer = lambda asked: answer_json({"checks": checks})
    ran = run("doctor")
    assert ran.code == 7
    assert "MISSING  disk: full\n         -> buy one\n" in ran.out
    checks[0]["required"] = False  # type: ignore[assignment]
    assert run("doctor").code == 0


def test_assembling_says_what_it_made_and_what_it_takes(run: Any, stub: Stub) -> None:
    report = {
        **{"checkpoint": "x", "id": "b3:1", "made": 2, "dropped": 0, "freed_bytes": 0, "files": 5},
        **{"native_files": 3, "served_files": {"small": 2}, "derived_files": 2, "derived_bytes": 8192},
        "damaged": [],
    }
    stub.answer = lambda asked: answer_json({"report": report} if "assemble" in asked.target else info())
    ran = run("assemble", "x")
    assert ran.out == "x: 2 derived copies made; 3 of 5 files native; derived copies take 8.2 kB\n"
    assert run("assemble", "x", "--json").json == report
    report |= {"damaged": [{"checkpoint": "x", "path": "a\nb", "offset": 1, "length": 2, "problem": "rot"}]}
    ran = run("assemble", "x")
    assert ran.code == 7
    assert ran.out.endswith("x/a\\x0ab: rot at offset 1, 2 bytes\n")
    report |= {"made": 0, "dropped": 2, "freed_bytes": 5000, "native_files": 1, "damaged": []}
    stub.answer = lambda asked: answer_json(report if asked.method == "DELETE" else info())
    ran = run("assemble", "x", "--drop")
    assert ran.out == "x: 2 derived copies dropped, 5.0 kB given back; 1 of 5 files native\n"


def test_a_wrong_derived_copy_is_told_and_no_damage(run: Any, stub: Stub) -> None:
    dropped = [{"path": "f", "problem": "it has 3 bytes instead of 4"}]
    report = {"checkpoint": "x", "id": "b3:1", "chunks": 2, "bytes": 9, "damaged": [], "copies": 2}
    stub.answer = lambda asked: answer_json(
        {"report": report | {"dropped": dropped}} if "verify" in asked.target else info()
    )
    ran = run("verify", "x")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        "x: intact, 9 B in 2 chunks verified, and 1 derived copy\n"
        "x/f: its derived copy was wrong (it has 3 bytes instead of 4) and is dropped\n"
    )


def test_damage_is_reported_with_its_place(run: Any, stub: Stub) -> None:
    damage = {"checkpoint": "x", "path": "a\nb", "offset": 4096, "length": 10, "problem": "wrong digest"}
    report = {"checkpoint": "x", "id": "b3:1", "chunks": 2, "bytes": 9, "damaged": [damage]}
    stub.answer = lambda asked: answer_json({"report": report} if "verify" in asked.target else info())
    ran = run("verify", "x")
    assert ran.code == 7
    assert ran.out == "x/a\\x0ab: wrong digest at offset 4096, 10 bytes\n"
    assert ran.err.startswith("ckptfs: error: x has 1 damaged chunk")
    as_json = run("verify", "x", "--json")
    assert (as_json.code, as_json.json["damaged"]) == (7, [damage])
