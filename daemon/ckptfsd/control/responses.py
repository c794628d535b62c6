"""Answers: JSON, errors, a file's bytes, lines of progress.

Long answers go out in pieces with a deadline for each (server.py), so that a big tree or a file costs
no memory, and other requests go on meanwhile.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ckptfs.errors import CkptfsError
from ckptfsd.control.face import ContentFace
from ckptfsd.control.requests import RangeNotSatisfiable

_JSON = "application/json"
_NDJSON = "application/x-ndjson"

# Content: large enough that a thread hop per piece does not count, small enough to be dropped and forgotten.
CONTENT_PIECE_BYTES = 1 << 20
_ITEMS_PER_PIECE = 1000


def encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        # A path that is not UTF-8: msgspec refuses its surrogate escapes, json writes them as \udcXX.
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode()


def answer(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status_code=status, media_type=_JSON)


def error_body(error: CkptfsError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "data": error.data}}


def failure(error: CkptfsError) -> Response:
    try:
        body = encode(error_body(error))
    except TypeError:  # something in its data that JSON does not know
        body = encode({"error": {"code": error.code, "message": error.message, "data": {}}})
    headers = {}
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.data['size_bytes']}"
    return Response(body, status_code=error.http_status, media_type=_JSON, headers=headers)


class LongAnswer(Response, ABC):
    """An answer that is made while it is sent. When the client leaves, the making is cancelled: nobody
    else waits for it. An error before :meth:`begin` is answered as any other; after it the answer is
    broken off (the gate sees to both)."""

    @abstractmethod
    async def write(self, send: Send) -> None:
        """Send all of it: :meth:`begin` once, then pieces, the last with ``more=False``."""

    async def begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    @staticmethod
    async def piece(send: Send, body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_disconnect, receive, nursery.cancel_scope)
            await self.write(send)
            nursery.cancel_scope.cancel()


async def _until_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class Listing(LongAnswer):
    """``{"field": [...]}``, encoded piece by piece: a tree may have two million entries."""

    def __init__(self, field: str, items: Sequence[Any]) -> None:
        super().__init__(media_type=_JSON)
        del self.headers["content-length"]
        self._field = field
        self._items = items

    async def write(self, send: Send) -> None:
        await self.begin(send)
        before = encode({self._field: []})[:-2]
        for start in range(0, len(self._items), _ITEMS_PER_PIECE):
            await self.piece(send, before + encode(self._items[start : start + _ITEMS_PER_PIECE])[1:-1])
            before = b","
        await self.piece(send, b"]}" if self._items else before + b"]}", more=False)


class FileContent(LongAnswer):
    """A file's bytes or a range of them. Closes ``opened`` when the answer has gone or the client has."""

    def __init__(self, opened: ContentFace, wanted: tuple[int, int] | None, *, without_body: bool) -> None:
        first, length = wanted or (0, opened.size_bytes)
        headers = {"Content-Length": str(length), "Accept-Ranges": "bytes"}
        if wanted is not None:
            headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{opened.size_bytes}"
        super().__init__(
            status_code=200 if wanted is None else 206,
            media_type="application/octet-stream",
            headers=headers,
        )
        self._opened = opened
        self._first, self._end = first, first if without_body else first + length

    async def write(self, send: Send) -> None:
        # One piece ahead. What cannot be read at all is told with its status, and when the client has the
        # last byte the file is closed already: a checkpoint can be removed right after it was read.
        piece = await self._read(self._first)
        begun = False
        offset = self._first + len(piece)
        while piece:
            following = await self._read(offset)
            offset += len(following)
            if not following:
                self._opened.close()
            if not begun:
                await self.begin(send)
                begun = True
            await self.piece(send, piece)
            piece = following
        if not begun:
            self._opened.close()
            await self.begin(send)
        await self.piece(send, b"", more=False)

    async def _read(self, offset: int) -> bytes:
        wanted_bytes = min(CONTENT_PIECE_BYTES, self._end - offset)
        if wanted_bytes == 0:
            return b""
        piece = await self._opened.read(offset, wanted_bytes)
        if not piece:
            raise OSError(f"a file of {self._opened.size_bytes} bytes ended at byte {offset}")
        return piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._opened.close()


class ProgressLines(LongAnswer):
    """Runs ``work`` and answers with a line ``{"done":n,"total":n}`` now and then, and at the end
    ``{"report":…}`` or ``{"error":…}``. What fails before the first line is due is answered as any
    other error, with its status."""

    def __init__(
        self, work: Callable[[Callable[[int, int], None]], Awaitable[Any]], *, every_seconds: float
    ) -> None:
        super().__init__(media_type=_NDJSON)
        del self.headers["content-length"]
        self._work = work
        self._every_seconds = every_seconds
        self._progress: tuple[int, int] | None = None  # only ever replaced: any thread may report
        self._outcome: Any = None
        self._error: Exception | None = None
        self._finished = trio.Event()

    async def write(self, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            await self._wait()
            if self._error is None:
                await self._lines(send)
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        try:
            self._outcome = await self._work(self._report)
        except Exception as error:
            self._error = error  # told by write(), as a status, a last line or a broken answer
        self._finished.set()

    def _report(self, done: int, total: int) -> None:
        self._progress = (done, total)

    async def _wait(self) -> None:
        with trio.move_on_after(self._every_seconds):
            await self._finished.wait()

    async def _lines(self, send: Send) -> None:
        await self.begin(send)
        said = None
        while not self._finished.is_set():
            if self._progress is not None and self._progress != said:
                said = self._progress
                await self._line(send, {"done": said[0], "total": said[1]})
            await self._wait()
        if self._error is None:
            await self._line(send, {"report": self._outcome})
        elif isinstance(self._error, CkptfsError):
            await self._line(send, error_body(self._error))
            self._error = None
        else:
            return
        await self.piece(send, b"", more=False)

    async def _line(self, send: Send, value: Any) -> None:
        await self.piece(send, encode(value) + b"\n")
