"""The control interface's description (OpenAPI 3.1), from the table of operations and the records.

Schemas are those that msgspec derives from the records' types, so they say what is really accepted and
answered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ckptfs import errors
from ckptfsd.control.operations import Operation
from ckptfsd.control.records import ErrorBody

_DESCRIPTION = """\
ckptfs on this node. HTTP/1.1 on a Unix socket (`/run/ckptfs/control.sock` by default).

Whoever may connect may read (`GET`); everything else needs root, the daemon's own user or a member of \
the admin group, as the kernel tells it of the peer. Sizes are bytes, times are seconds since the epoch \
(UTC), rates are bytes per second. A `{ref}` is a checkpoint's name, id or unique id prefix; `name:X` and \
`b3:HEX` leave no doubt. Text that is not UTF-8 is written with surrogate escapes (`\\udcXX`)."""


def describe(operations: Iterable[Operation], *, version: str) -> dict[str, Any]:
    operations = list(operations)
    types = [t for o in operations for t in (o.request, o.answer) if t is not None]
    kinds = [*dict.fromkeys(types), ErrorBody]
    references, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(kinds, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ckptfs control interface", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "http://ckptfs", "description": "the Unix socket; any host name will do"}],
        "tags": [
            {"name": "read", "description": "For whoever may connect."},
            {"name": "admin", "description": "For administrators."},
            {"name": "root", "description": "For root, and the user that the daemon runs as."},
        ],
        "paths": paths,
        "components": {"schemas": components, "responses": {"Error": _error_response(schemas)}},
    }


def _operation(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.who],
        "responses": {str(operation.status): _success(operation, schemas)},
    }
    if operation.ranges:
        described["responses"]["206"] = _success(operation, schemas)
    described["responses"]["default"] = {"$ref": "#/components/responses/Error"}
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.request is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[operation.request]}},
        }
    return described


def _success(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    schema = schemas.get(operation.answer, {})
    if operation.listing:
        schema = {
            "type": "object",
            "properties": {operation.listing: {"type": "array", "items": schema}},
            "required": [operation.listing],
        }
    return {"description": operation.summary, "content": {operation.media_type: {"schema": schema}}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    for field in operation.query:
        schema = {"type": "array", "items": field.schema} if field.repeated else field.schema
        found.append({"name": field.name, "in": "query", "description": field.description, "schema": schema})
    if operation.ranges:
        found.append(
            {
                "name": "Range",
                "in": "header",
                "description": "One range of bytes, as in RFC 9110.",
                "schema": {"type": "string"},
            }
        )
    return found


def _error_response(schemas: dict[Any, Any]) -> dict[str, Any]:
    codes: dict[str, int] = {}
    pending: list[type[errors.CkptfsError]] = [errors.CkptfsError]
    while pending:
        kind = pending.pop()
        codes.setdefault(kind.code, kind.http_status)
        pending += kind.__subclasses__()
    listed = ", ".join(f"`{code}` ({status})" for code, status in sorted(codes.items()))
    return {
        "description": f"What went wrong. `code` is one of: {listed}.",
        "content": {"application/json": {"schema": schemas[ErrorBody]}},
    }
