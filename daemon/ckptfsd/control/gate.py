"""In front of every request: who asks, may they, one log line, and the last catch-all.

Fails closed: a request whose peer is not known is refused, and so is every method that is not known to
only read unless the peer is an administrator.

The log line has method, path and peer, never the query or the body: those may hold what is nobody's
business.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckptfs.errors import CkptfsError, PermissionDenied
from ckptfsd.control.peer import Peer, Permissions
from ckptfsd.control.requests import read_body
from ckptfsd.control.responses import failure
from ckptfsd.logging import get_logger

_READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_log = get_logger(__name__)


class Gate:
    def __init__(
        self, app: ASGIApp, permissions: Permissions, *, max_body_bytes: int, body_timeout_seconds: float
    ) -> None:
        self._app = app
        self._permissions = permissions
        self._max_body_bytes = max_body_bytes
        self._body_timeout_seconds = body_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets, and nothing to do at start-up
        # Match the path as it was sent, still encoded: a part of it may hold an encoded "/".
        scope["path"] = scope["raw_path"].decode("latin-1")
        peer = scope.get("state", {}).get("peer")
        answered, received = _Answered(send), _Received(receive)
        started = time.monotonic()
        try:
            self._check(peer, scope["method"])
            await self._app(scope, received, answered)
        except Exception as error:
            await self._fail(_single(error), scope, received, answered)
        finally:
            log = _log.debug if scope["method"] in _READ_METHODS else _log.info
            log(
                "control request",
                method=scope["method"],
                path=scope["path"],
                status=answered.status,
                seconds=round(time.monotonic() - started, 6),
                peer_uid=getattr(peer, "uid", None),
                peer_pid=getattr(peer, "pid", None),
            )

    def _check(self, peer: Any, method: str) -> None:
        if not isinstance(peer, Peer):
            raise PermissionDenied("the daemon cannot tell who is asking, so it refuses")
        if method not in _READ_METHODS and not self._permissions.is_admin(peer):
            raise PermissionDenied(
                f"user {peer.uid} may look, but not change anything: ask as root, as the daemon's user, "
                "or as a member of the admin group ([control] admin_group)"
            )

    async def _fail(self, error: Exception, scope: Scope, received: _Received, answered: _Answered) -> None:
        if not isinstance(error, CkptfsError):
            _log.error("control request failed", path=scope["path"], method=scope["method"], exc_info=error)
            error = CkptfsError(
                f"internal error in the daemon ({type(error).__name__}); its log has the details"
            )
        elif answered.status:
            _log.error("control answer broken off", path=scope["path"], error=str(error), code=error.code)
        if answered.status:
            return  # Hypercorn closes the connection before the end that was promised
        if not received.complete:
            await self._drain(scope, received)
        await failure(error)(scope, received, answered)

    async def _drain(self, scope: Scope, received: _Received) -> None:
        """Take in what the client still sends, or it would fail at that and never see the answer."""
        with contextlib.suppress(CkptfsError):  # too much of it: then it does
            await read_body(
                Request(scope, received),
                max_bytes=self._max_body_bytes,
                timeout_seconds=self._body_timeout_seconds,
            )


class _Received:
    """``receive``, remembering whether the whole request has been read."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = self.complete or not message.get("more_body", False)
        return message


class _Answered:
    """``send``, remembering the status that was sent; 0: nothing yet."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        await self._send(message)


def _single(error: Exception) -> Exception:
    """What a nursery wrapped, when it is one error only."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
