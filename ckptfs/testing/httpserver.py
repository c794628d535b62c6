"""A real HTTP server on loopback that can misbehave.

It serves resources of its own (:class:`Files`), or stands before another server (:class:`Upstream`), so
that faults happen where they happen in life: on the wire. What goes wrong is said by
:mod:`ckptfs.testing.faults`.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

from blake3 import blake3


@dataclass(slots=True)
class Request:
    method: str
    target: str  # path and query as they were sent
    headers: dict[str, str]  # names in lower case
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass(slots=True)
class Reply:
    """What is to be sent, and how. Faults change it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunked: bool = False
    hang_before_headers: bool = False
    hang_after_bytes: int | None = None
    cut_after_bytes: int | None = None  # the connection is closed there
    reset: bool = False  # … and by a reset instead of an orderly end
    drip_bytes_per_second: float = 0.0
    endless: bool = False  # neither a length nor chunks: the body ends with the connection


@dataclass(slots=True)
class Resource:
    """A file of the server. An empty ``etag`` or ``last_modified`` is not sent; None means the usual one."""

    body: bytes
    etag: str | None = None
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    ranges: bool = True
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    made: float = 1_700_000_000.0

    def version_headers(self) -> dict[str, str]:
        etag = f'"{blake3(self.body).hexdigest(8)}"' if self.etag is None else self.etag
        modified = formatdate(self.made, usegmt=True) if self.last_modified is None else self.last_modified
        return {name: value for name, value in (("ETag", etag), ("Last-Modified", modified)) if value}


Backend = Callable[[Request], Reply]


class Files:
    """Serves resources by path, as RFC 9110 says: single ranges, If-Match, HEAD."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}

    def __call__(self, request: Request) -> Reply:
        resource = self.resources.get(request.path)
        if resource is None:
            return Reply(404, {"Content-Type": "text/plain"}, b"not here\n")
        headers = {"Content-Type": resource.content_type, **resource.version_headers(), **resource.headers}
        wanted = request.headers.get("if-match")
        if wanted and resource.ranges and wanted != headers.get("ETag"):
            return Reply(412)
        total = len(resource.body)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if match is None or not resource.ranges:
            return Reply(200, headers, resource.body, chunked=resource.chunked)
        first, last = int(match[1]), int(match[2] or total - 1)
        if first >= total:
            return Reply(416, {"Content-Range": f"bytes */{total}"})
        last = min(last, total - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        return Reply(206, headers, resource.body[first : last + 1])


class Upstream:
    """Passes requests on to another server, headers and all: signatures over Host stay good."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._local = threading.local()

    def __call__(self, request: Request) -> Reply:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name != "connection":
                connection.putheader(name, value)
        connection.endheaders(request.body)
        answer = connection.getresponse()
        body = answer.read()
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "keep-alive")
        }
        return Reply(answer.status, headers, body)


class HttpServer:
    """A server on a port of its own; use it as a context manager.

    ``faults`` are asked in order for every request; ``requests`` records what came.
    """

    def __init__(self, backend: Backend | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.files = Files()
        self.faults: list[Callable[[Request, Reply], None]] = []
        self.requests: list[Request] = []
        self.released = threading.Event()
        self._backend: Backend = backend or self.files
        self._server = _Server(self)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def put(self, path: str, body: bytes, **how: Any) -> str:
        """Serve a resource; returns its URL."""
        self.files.resources[path] = Resource(body, **how)
        return self.url + path

    @property
    def open_connections(self) -> int:
        return len(self._server.connections)

    def reply(self, request: Request) -> Reply:
        self.requests.append(request)
        reply = self._backend(request)
        for fault in self.faults:
            fault(request, reply)
        return reply

    def stop(self) -> None:
        """Let go of what hangs, and end. Open connections are closed."""
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, owner: HttpServer) -> None:
        self.owner = owner
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        # A buffered writer would hold back what a slow answer has sent.
        self.connection.settimeout(60)

    def do_GET(self) -> None:
        owner = self.server.owner
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        reply = owner.reply(request)
        if reply.hang_before_headers:
            owner.released.wait(60)
            self._break(reply)
            return
        self._send(reply, owner)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _send(self, reply: Reply, owner: HttpServer) -> None:
        given = {name.lower() for name in reply.headers}
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif reply.endless:
            self.close_connection = True
        elif "content-length" not in given:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command == "HEAD" or reply.status in (204, 304):
            return
        body = reply.body
        ends = [at for at in (reply.cut_after_bytes, reply.hang_after_bytes) if at is not None]
        stop = min(ends, default=len(body))
        self._write(body[:stop], reply, owner)
        if stop < len(body) or reply.cut_after_bytes is not None:
            if reply.hang_after_bytes is not None:
                owner.released.wait(60)
            self._break(reply)
        elif reply.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, body: bytes, reply: Reply, owner: HttpServer) -> None:
        step = 64 << 10
        pause = 0.0
        if reply.drip_bytes_per_second:
            step = max(1, int(reply.drip_bytes_per_second / 20))
            pause = step / reply.drip_bytes_per_second
        for start in range(0, len(body), step):
            part = body[start : start + step]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if reply.chunked else part)
            if pause and owner.released.wait(pause):
                self._break(reply)
                return

    def _break(self, reply: Reply) -> None:
        if reply.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
