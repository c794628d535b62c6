"""Every call of the control interface, as data: what to send and how to read the answer.

Nothing here touches a socket. The two faces of the SDK send what these functions return.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from ckptfs.errors import ApiError, CkptfsError, SpecificationError, from_code
from ckptfs.model.records import (
    AssembleReport,
    AttachRequest,
    CheckpointInfo,
    CreateRequest,
    DoctorCheck,
    JobInfo,
    StatusInfo,
    TreeEntry,
    VerifyReport,
)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. ``target`` is percent-encoded and ready for the request line."""

    method: str
    target: str
    decode: Callable[[bytes], T]
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Details:
    """A checkpoint's tree, with what it adds up to."""

    entries: list[TreeEntry]
    files: int
    directories: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """How far a long call is, in bytes; the last step holds the report."""

    done: int = 0
    total: int = 0
    report: T | None = None


VerifyStep = Step[VerifyReport]
AssembleStep = Step[AssembleReport]


# --- checkpoints --------------------------------------------------------------------------------


def list_checkpoints() -> Call[list[CheckpointInfo]]:
    return Call("GET", "/v1/checkpoints", _field("checkpoints", list[CheckpointInfo]))


def get_checkpoint(reference: str, *, light: bool = False) -> Call[CheckpointInfo]:
    """``light`` leaves out what has to be counted (unique, shared and stored bytes)."""
    return Call("GET", _checkpoint(reference) + ("?light=1" if light else ""), _record(CheckpointInfo))


def create_checkpoint(request: CreateRequest) -> Call[CheckpointInfo]:
    return _post("/v1/checkpoints", request, CheckpointInfo)


def rename_checkpoint(reference: str, name: str) -> Call[CheckpointInfo]:
    return _with_body("PATCH", _checkpoint(reference), {"name": name}, _record(CheckpointInfo))


def remove_checkpoint(reference: str, *, force: bool = False) -> Call[CheckpointInfo]:
    return Call("DELETE", f"{_checkpoint(reference)}?force={int(force)}", _record(CheckpointInfo))


def cancel_creation(reference: str) -> Call[CheckpointInfo]:
    return Call("POST", _checkpoint(reference) + "/cancel", _record(CheckpointInfo))


def tree(reference: str, path: str = "") -> Call[list[TreeEntry]]:
    query = f"?path={_raw(path)}" if path else ""
    return Call("GET", f"{_checkpoint(reference)}/tree{query}", _field("entries", list[TreeEntry]))


def content(reference: str, path: str, *, offset: int = 0, length: int | None = None) -> Call[bytes]:
    """A file's bytes. Without ``offset`` and ``length`` all of them.

    The answer's body is the content itself; read it in pieces where it may be large.
    """
    if offset < 0:
        raise SpecificationError("offset", "offset must not be negative")
    if length is not None and length <= 0:
        raise SpecificationError("length", "length must be at least 1 byte")
    target = f"{_checkpoint(reference)}/content?path={_raw(path)}"
    headers: tuple[tuple[str, str], ...] = ()
    if offset or length is not None:
        last = "" if length is None else str(offset + length - 1)
        headers = (("Range", f"bytes={offset}-{last}"),)
    return Call("GET", target, bytes, headers=headers)


def verify(reference: str) -> Call[bytes]:
    """The answer is a sequence of lines; :func:`verify_reader` reads them."""
    return Call("POST", _checkpoint(reference) + "/verify", bytes)


def assemble(reference: str) -> Call[bytes]:
    """The answer is a sequence of lines; :func:`assemble_reader` reads them."""
    return Call("POST", _checkpoint(reference) + "/assemble", bytes)


def drop_derived(reference: str) -> Call[AssembleReport]:
    return Call("DELETE", _checkpoint(reference) + "/derived", _record(AssembleReport))


class StepReader(Generic[T]):
    """Reads a long call's answer as it arrives, in pieces cut anywhere."""

    def __init__(self, report_type: type[T], what: str) -> None:
        self._report_type = report_type
        self._what = what
        self._rest = b""
        self._report: T | None = None

    def feed(self, piece: bytes) -> list[Step[T]]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        steps = [self._step(line) for line in lines if line]
        for step in steps:
            self._report = step.report or self._report
        return steps

    def report(self) -> T:
        """The report, once everything has been fed."""
        self.feed(b"\n")
        if self._report is None:
            raise ApiError(f"the {self._what} ended without a report")
        return self._report

    def _step(self, line: bytes) -> Step[T]:
        value = _json(line)
        if isinstance(value, dict) and "error" in value:
            raise _from_body(value, 200)
        if isinstance(value, dict) and "report" in value:
            return Step(report=_convert(value["report"], self._report_type))
        counts = _convert(value, _Counts)
        return Step(counts.done, counts.total)


class _Counts(msgspec.Struct, kw_only=True):
    done: int = 0
    total: int = 0


def verify_reader() -> StepReader[VerifyReport]:
    return StepReader(VerifyReport, "verification")


def assemble_reader() -> StepReader[AssembleReport]:
    return StepReader(AssembleReport, "assembling")


def details(entries: list[TreeEntry]) -> Details:
    return Details(
        entries=entries,
        files=sum(1 for e in entries if e.type == "f"),
        directories=sum(1 for e in entries if e.type == "d"),
        size=sum(e.size for e in entries if e.type == "f"),
    )


# --- jobs ---------------------------------------------------------------------------------------


def list_jobs() -> Call[list[JobInfo]]:
    return Call("GET", "/v1/jobs", _field("jobs", list[JobInfo]))


def attach(request: AttachRequest) -> Call[JobInfo]:
    return _post("/v1/jobs", request, JobInfo)


def detach(job: str, references: Iterable[str] = ()) -> Call[JobInfo]:
    """Without references everything that is attached for the job is detached."""
    query = urlencode([("checkpoint", r) for r in references], errors="surrogateescape")
    return Call(
        "DELETE", f"/v1/jobs/{_segment(job, 'job')}" + (f"?{query}" if query else ""), _record(JobInfo)
    )


# --- the daemon ---------------------------------------------------------------------------------


def status() -> Call[StatusInfo]:
    return Call("GET", "/v1/status", _record(StatusInfo))


def doctor() -> Call[list[DoctorCheck]]:
    return Call("GET", "/v1/doctor", _field("checks", list[DoctorCheck]))


def upgrade(python: str = "") -> Call[StatusInfo]:
    """Answered before it happens, with the status of the process that is to be replaced."""
    return _with_body("POST", "/v1/upgrade", {"python": python}, _record(StatusInfo))


# --- answers ------------------------------------------------------------------------------------


def error_of(status: int, body: bytes) -> CkptfsError | None:
    """The error that an answer stands for; None for a success."""
    if 200 <= status < 300:
        return None
    try:
        value = _json(body)
    except ApiError:
        value = None
    return _from_body(value, status)


def answer(call: Call[T], status: int, body: bytes) -> T:
    error = error_of(status, body)
    if error is not None:
        raise error
    return call.decode(body)


# --- how --------------------------------------------------------------------------------------


def _post(target: str, request: msgspec.Struct, answer_type: type[R]) -> Call[R]:
    return _with_body("POST", target, msgspec.to_builtins(request), _record(answer_type))


def _with_body(method: str, target: str, value: Any, decode: Callable[[bytes], R]) -> Call[R]:
    # Not msgspec's encoder: it refuses the surrogate escapes of a path that is not UTF-8.
    body = json.dumps(value, separators=(",", ":")).encode()
    return Call(method, target, decode, body, (("Content-Type", "application/json"),))


def _checkpoint(reference: str) -> str:
    return f"/v1/checkpoints/{_segment(reference, 'checkpoint')}"


def _segment(text: str, attribute: str) -> str:
    if not text:
        raise SpecificationError(attribute, f"the {attribute}'s name is empty")
    if text in (".", ".."):  # percent-encoding cannot protect these from being resolved on the way
        raise SpecificationError(attribute, f"{text!r} is not the name of a {attribute}")
    return _raw(text, safe="")


def _raw(text: str, safe: str = "/") -> str:
    return quote(text, safe=safe, errors="surrogateescape")


def _record(answer_type: type[R]) -> Callable[[bytes], R]:
    return lambda body: _convert(_json(body), answer_type)


def _field(name: str, answer_type: type[R]) -> Callable[[bytes], R]:
    def decode(body: bytes) -> R:
        value = _json(body)
        if not isinstance(value, dict) or name not in value:
            raise ApiError(f"the daemon's answer has no {name!r}: is it another version of ckptfs?")
        return _convert(value[name], answer_type)

    return decode


def _json(body: bytes) -> Any:
    # Not msgspec's decoder: it refuses the surrogate escapes that stand for bytes that are not UTF-8.
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError(f"the daemon's answer is not JSON: {error}") from error


def _convert(value: Any, answer_type: type[R]) -> R:
    try:
        return msgspec.convert(value, answer_type)
    except msgspec.ValidationError as error:
        raise ApiError(f"the daemon's answer is not understood: {error}: is it another version?") from error


def _from_body(value: Any, status: int) -> CkptfsError:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return ApiError(f"the daemon answered with HTTP status {status} and no reason", status=status)
    data = error.get("data")
    known: dict[str, Any] = {str(k): v for k, v in data.items()} if isinstance(data, dict) else {}
    known.pop("message", None)  # an argument of every error's constructor
    return from_code(error["code"], str(error.get("message", "")), known)


def references(checkpoints: str | Sequence[str]) -> list[str]:
    """One reference or several, as a list."""
    return [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
