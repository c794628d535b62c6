"""A small HTTP server on a Unix socket for the tests of the client: real sockets, scripted answers.

The real daemon is used in tests/e2e. This one exists for what the real one never does: answers cut
off, garbage, silence, errors of every kind.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import h11

from ckptfs.client.client import Client
from ckptfs.client.sync import SyncClient

FACES = ("sync", "asyncio", "trio")


def ask(face: str, action: Callable[[], Any]) -> Any:
    """Make a call of the SDK on one of its faces and give what it answers."""
    if face == "sync":
        return action()

    async def main() -> Any:
        return await action()

    return anyio.run(main, backend=face)


def client_of(face: str, path: str, **options: Any) -> Any:
    return SyncClient(path, **options) if face == "sync" else Client(path, **options)


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stub:
    """``answer`` gives the raw bytes to send; None keeps the client waiting."""

    path: str
    answer: Callable[[Asked], bytes | None] = lambda asked: b""
    asked: list[Asked] = field(default_factory=list)
    hung_up: int = 0  # clients that left before they were answered


def answer_json(value: Any, status: int = 200) -> bytes:
    return raw(status, json.dumps(value).encode())


def answer_error(status: int, code: str, message: str, **data: Any) -> bytes:
    return answer_json({"error": {"code": code, "message": message, "data": data}}, status)


def raw(status: int, body: bytes, content_length: int | None = None) -> bytes:
    length = len(body) if content_length is None else content_length
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, length) + body


@contextmanager
def serving(path: str) -> Iterator[Stub]:
    stub = Stub(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=_serve, args=(stub, connection))
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield stub
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10)
        for thread in threads:
            thread.join(10)
        assert not any(t.is_alive() for t in threads), "a client is still connected"


def _serve(stub: Stub, connection: socket.socket) -> None:
    with connection:
        asked = _request(connection)
        if asked is None:
            return
        stub.asked.append(asked)
        answer = stub.answer(asked)
        if answer is None:
            connection.settimeout(10)
            if connection.recv(1) == b"":
                stub.hung_up += 1
            return
        try:
            connection.sendall(answer)
        except BrokenPipeError:
            stub.hung_up += 1


def _request(connection: socket.socket) -> Asked | None:
    parser = h11.Connection(h11.SERVER)
    asked: Asked | None = None
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(connection.recv(65536))
        elif isinstance(event, h11.Request):
            headers = {name.decode(): value.decode() for name, value in event.headers}
            asked = Asked(event.method.decode(), event.target.decode(), headers, b"")
        elif isinstance(event, h11.Data) and asked is not None:
            asked.body += bytes(event.data)
        else:
            return asked
