"""What a request says. Everything in it comes from outside and is checked here."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec
import trio
from starlette.requests import ClientDisconnect, Request

from ckptfs.errors import SpecificationError
from ckptfs.model.names import encode_path

T = TypeVar("T")

_MAX_QUERY_FIELDS = 10_000  # `detach` names each checkpoint


class BodyTooLarge(SpecificationError):
    http_status = 413


class BodyTooSlow(SpecificationError):
    http_status = 408


class RangeNotSatisfiable(SpecificationError):
    http_status = 416


async def read_body(request: Request, *, max_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body, or an error as soon as it is too long or too slow."""
    body = bytearray()
    with trio.move_on_after(timeout_seconds) as scope:
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise BodyTooLarge("body", f"the request's body is longer than {max_bytes} bytes")
        except ClientDisconnect:
            raise BodyTooSlow("body", "the client left before its request was complete") from None
    if scope.cancelled_caught:
        raise BodyTooSlow("body", f"the request's body did not arrive within {timeout_seconds:g} seconds")
    return bytes(body)


def decode(body: bytes, kind: type[T]) -> T:
    """A request's body as a record; the error names the attribute that is wrong."""
    try:
        # Not msgspec's own decoder: it refuses the surrogate escapes of a path that is not UTF-8.
        value: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SpecificationError("body", f"the request's body is not JSON: {error}") from None
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        attribute = where.strip("`.") or _field_in(what) or "body"
        raise SpecificationError(attribute, f"{attribute}: {what.replace('`', '')}") from None


def _field_in(message: str) -> str:
    found = re.search(r"field `([^`]*)`", message)
    return found[1] if found else ""


def segment(request: Request, name: str) -> str:
    """One part of the path, decoded. The routes match the path as it was sent, still encoded, so that a
    part may hold any byte."""
    text = unquote(request.path_params[name], errors="surrogateescape")
    if "\0" in text:
        raise SpecificationError(name, f"{name}: a NUL is not allowed")
    return text


def query(request: Request, allowed: tuple[str, ...]) -> dict[str, list[str]]:
    """The query's fields, undecodable bytes as surrogate escapes; an unknown one is an error."""
    raw = request.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(
            raw, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_QUERY_FIELDS
        )
    except ValueError as error:
        raise SpecificationError("query", f"the request's query is not understood: {error}") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in allowed:
            known = f"known: {', '.join(allowed)}" if allowed else "none is known here"
            raise SpecificationError(name, f"unknown query field {name!r} ({known})")
        fields.setdefault(name, []).append(value)
    return fields


def flag(fields: dict[str, list[str]], name: str) -> bool:
    value = fields.get(name, ["0"])[-1]
    if value not in ("0", "1"):
        raise SpecificationError(name, f"{name} is 0 or 1, not {value!r}")
    return value == "1"


def path(fields: dict[str, list[str]]) -> bytes:
    """A path inside a checkpoint; empty: its root."""
    return encode_path(fields.get("path", [""])[-1])


_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


def byte_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """(first byte, number of bytes) of a ``Range`` header (RFC 9110, 14.1.2); None: send everything.

    Several ranges at once are answered with everything, as the RFC allows.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size_bytes)
        first = size_bytes - length
    else:
        first = int(match[1])
        last = int(match[2]) if match[2] else size_bytes - 1
        if match[2] and last < first:
            return None
        length = min(last + 1, size_bytes) - first
    if length <= 0:
        raise RangeNotSatisfiable("Range", f"the file has {size_bytes} bytes", size_bytes=size_bytes)
    return first, length
