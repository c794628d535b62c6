"""Calls as data: targets, bodies, answers."""

from __future__ import annotations

import json

import pytest

from ckptfs import errors
from ckptfs.client import calls
from ckptfs.model.records import AttachRequest, CreateRequest


@pytest.mark.parametrize(
    ("call", "method", "target"),
    [
        (calls.list_checkpoints(), "GET", "/v1/checkpoints"),
        (calls.get_checkpoint("llama"), "GET", "/v1/checkpoints/llama"),
        (calls.get_checkpoint("b3:00ff", light=True), "GET", "/v1/checkpoints/b3%3A00ff?light=1"),
        (calls.get_checkpoint("a b/c?d#e%"), "GET", "/v1/checkpoints/a%20b%2Fc%3Fd%23e%25"),
        (calls.get_checkpoint("größe"), "GET", "/v1/checkpoints/gr%C3%B6%C3%9Fe"),
        (calls.remove_checkpoint("x"), "DELETE", "/v1/checkpoints/x?force=0"),
        (calls.remove_checkpoint("x", force=True), "DELETE", "/v1/checkpoints/x?force=1"),
        (calls.cancel_creation("c-1"), "POST", "/v1/checkpoints/c-1/cancel"),
        (calls.tree("x"), "GET", "/v1/checkpoints/x/tree"),
        (calls.tree("x", "a b/c&d"), "GET", "/v1/checkpoints/x/tree?path=a%20b/c%26d"),
        (calls.content("x", "bad\udcff\n"), "GET", "/v1/checkpoints/x/content?path=bad%FF%0A"),
        (calls.verify("x"), "POST", "/v1/checkpoints/x/verify"),
        (calls.assemble("x"), "POST", "/v1/checkpoints/x/assemble"),
        (calls.drop_derived("x"), "DELETE", "/v1/checkpoints/x/derived"),
        (calls.list_jobs(), "GET", "/v1/jobs"),
        (calls.detach("job:1"), "DELETE", "/v1/jobs/job%3A1"),
        (calls.detach("j", ["a", "b&c"]), "DELETE", "/v1/jobs/j?checkpoint=a&checkpoint=b%26c"),
        (calls.status(), "GET", "/v1/status"),
        (calls.doctor(), "GET", "/v1/doctor"),
    ],
)
def test_targets(call: calls.Call[object], method: str, target: str) -> None:
    assert (call.method, call.target) == (method, target)


@pytest.mark.parametrize("reference", ["", ".", ".."])
def test_a_reference_cannot_leave_its_place_in_the_target(reference: str) -> None:
    with pytest.raises(errors.SpecificationError):
        calls.get_checkpoint(reference)


def test_a_slice_of_content_is_a_range() -> None:
    assert calls.content("x", "f", offset=10, length=5).headers == (("Range", "bytes=10-14"),)
    assert calls.content("x", "f", offset=10).headers == (("Range", "bytes=10-"),)
    assert calls.content("x", "f").headers == ()
    for bad in ({"offset": -1}, {"length": 0}):
        with pytest.raises(errors.SpecificationError):
            calls.content("x", "f", **bad)


def test_bodies_carry_paths_that_are_not_utf8() -> None:
    call = calls.create_checkpoint(CreateRequest(name="x", source_uri="/data/\udcff"))
    assert json.loads(call.body)["source_uri"] == "/data/\udcff"
    attach = json.loads(calls.attach(AttachRequest(job="j", checkpoints=["a"], bind_to_caller=True)).body)
    assert (attach["job"], attach["checkpoints"], attach["bind_to_caller"]) == ("j", ["a"], True)


def test_answers_carry_paths_that_are_not_utf8() -> None:
    body = rb'{"entries": [{"path": "\udcff/\u001b", "type": "f", "size": 3}]}'
    (entry,) = calls.tree("x").decode(body)
    assert (entry.path, entry.size) == ("\udcff/\x1b", 3)


def test_details_add_up() -> None:
    entries = calls.tree("x").decode(
        b'{"entries": [{"path":"d","type":"d"},{"path":"d/a","type":"f","size":3},'
        b'{"path":"d/b","type":"f","size":4},{"path":"l","type":"l","target":"d/a"}]}'
    )
    details = calls.details(entries)
    assert (details.files, details.directories, details.size) == (2, 1, 7)


def test_errors_come_back_as_what_they_were() -> None:
    def raised(status: int, body: bytes) -> errors.CkptfsError:
        with pytest.raises(errors.CkptfsError) as caught:
            calls.answer(calls.status(), status, body)
        return caught.value

    def body(code: str, **data: object) -> bytes:
        return json.dumps({"error": {"code": code, "message": "words", "data": data}}).encode()

    taken = raised(409, body("name_taken", name="x"))
    assert type(taken) is errors.NameTaken
    assert (taken.message, taken.data) == ("words", {"name": "x"})
    bad = raised(422, body("specification", attribute="name"))
    assert isinstance(bad, errors.SpecificationError)
    assert bad.attribute == "name"
    # an error of a later version, or something else that listens there
    assert type(raised(418, body("teapot"))) is errors.ApiError
    assert type(raised(500, b"<html>")) is errors.ApiError
    assert type(raised(502, b'{"detail": "x"}')) is errors.ApiError
    # data that would collide with an argument of the exception
    assert raised(404, body("not_found", message="other")).message == "words"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"checkpoints": 3}', b'{"checkpoints": [{"id": 1}]}'])
def test_an_answer_of_another_form_is_an_api_error(body: bytes) -> None:
    with pytest.raises(errors.ApiError):
        calls.answer(calls.list_checkpoints(), 200, body)


def test_an_answer_of_a_later_version_is_read() -> None:
    body = b'{"checkpoints": [{"id": "b3:1", "name": "x", "status": "ready", "colour": "blue"}]}'
    (info,) = calls.answer(calls.list_checkpoints(), 200, body)
    assert info.name == "x"


def test_a_verification_is_read_in_pieces_cut_anywhere() -> None:
    text = (
        b'{"done":1,"total":2}\n{"done":2,"total":2}\n'
        b'{"report":{"checkpoint":"x","id":"b3:1","chunks":2,"bytes":9,"damaged":[]}}\n'
    )
    for cut in range(len(text)):
        reader = calls.verify_reader()
        steps = reader.feed(text[:cut]) + reader.feed(text[cut:])
        assert [s.done for s in steps if s.report is None] == [1, 2]
        assert reader.report().bytes == 9


def test_a_verification_that_ends_early_is_an_error() -> None:
    reader = calls.verify_reader()
    reader.feed(b'{"done":1,"total":2}\n')
    with pytest.raises(errors.ApiError):
        reader.report()
    with pytest.raises(errors.StoreDamaged):
        calls.verify_reader().feed(b'{"error":{"code":"store_damaged","message":"gone","data":{}}}\n')
