"""The control interface as an ASGI application: the gate, the router, the operations."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ckptfs.errors import ApiError, NotFound
from ckptfsd.control.face import Control
from ckptfsd.control.gate import Gate
from ckptfsd.control.openapi import describe
from ckptfsd.control.operations import OPERATIONS, Operation
from ckptfsd.control.responses import answer


class MethodNotAllowed(ApiError):
    http_status = 405


def build(control: Control, *, version: str) -> ASGIApp:
    by_path: dict[str, list[Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, []).append(operation)
    routes = [Route(path, _Resource(control, operations)) for path, operations in by_path.items()]
    routes.append(Route("/v1/openapi.json", _Description(describe(OPERATIONS, version=version))))
    router = Router(routes, redirect_slashes=False, default=_nothing_there)
    return Gate(
        router,
        control.permissions,
        max_body_bytes=control.max_body_bytes,
        body_timeout_seconds=control.body_timeout_seconds,
    )


class _Resource:
    """All operations of one path."""

    def __init__(self, control: Control, operations: Iterable[Operation]) -> None:
        self._control = control
        self._handlers = {operation.method: operation.handler for operation in operations}
        if "GET" in self._handlers:
            self._handlers["HEAD"] = self._handlers["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            allowed = ", ".join(self._handlers)
            raise MethodNotAllowed(
                f"{scope['method']} is not allowed on {scope['path']} (allowed: {allowed})"
            )
        response = await handler(self._control, Request(scope, receive))
        await response(scope, receive, send)


class _Description:
    def __init__(self, description: dict[str, object]) -> None:
        self._response = answer(description)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{scope['method']} is not allowed on {scope['path']} (allowed: GET)")
        await self._response(scope, receive, send)


async def _nothing_there(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(
        f"the control interface has nothing at {scope['path']}; /v1/openapi.json says what there is"
    )
