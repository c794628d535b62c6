"""One HTTP/1.1 request and its response as a state machine over h11. It owns no socket.

The owner of the socket sends ``request()``, then calls ``next()``: it answers with what has arrived,
or with NEED_DATA, upon which the owner hands what it received to ``feed()`` (``b""`` at the end).
A connection serves one exchange only: on a Unix socket a new one costs less than keeping track.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import h11

from ckptfs.client.calls import Call
from ckptfs.errors import ApiError, CkptfsError, ConnectionError

RECEIVE_BYTES = 256 * 1024  # one receive: a Unix socket's default buffer holds about 208 KiB


class Signal(enum.Enum):
    NEED_DATA = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    length: int | None  # of the body in bytes, when it was said


class Exchange:
    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._connection = h11.Connection(h11.CLIENT)
        self._ended = False

    def request(self) -> bytes:
        call = self._call
        headers = [("Host", "ckptfs"), ("Connection", "close"), *call.headers]
        if call.body or call.method in ("POST", "PATCH"):
            headers.append(("Content-Length", str(len(call.body))))
        sent = (
            self._connection.send(h11.Request(method=call.method, target=call.target, headers=headers)) or b""
        )
        if call.body:
            sent += self._connection.send(h11.Data(data=call.body)) or b""
        return sent + (self._connection.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> None:
        self._ended = self._ended or not data
        self._connection.receive_data(data)

    def next(self) -> Head | bytes | Signal:
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as error:
                raise self._broken(str(error)) from error
            if event is h11.NEED_DATA:
                return Signal.NEED_DATA
            if isinstance(event, h11.Response):
                return Head(event.status_code, _length(event))
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return Signal.END
            if isinstance(event, h11.ConnectionClosed):
                raise self._broken("it closed the connection")

    def _broken(self, what: str) -> CkptfsError:
        if self._ended:
            return ConnectionError(f"the daemon stopped in the middle of an answer ({what}): is it running?")
        return ApiError(f"what answers on the control socket does not speak HTTP: {what}")


def _length(response: h11.Response) -> int | None:
    for name, value in response.headers:
        if name == b"content-length":
            return int(value)
    return None
