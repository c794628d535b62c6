"""What a server can do wrong. Each fault counts how often it struck, so a test can prove that it did.

A fault strikes requests for which ``when`` is true, after sparing the first ``spare`` of them, at most
``times`` times.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from ckptfs.testing.httpserver import Files, Reply, Request

Condition = Callable[[Request], bool]


def is_get(request: Request) -> bool:
    return request.method == "GET"


def is_ranged(request: Request) -> bool:
    return is_get(request) and "range" in request.headers


class Fault:
    def __init__(
        self,
        change: Callable[[Request, Reply], None],
        *,
        when: Condition = is_get,
        spare: int = 0,
        times: int = 1 << 30,
    ) -> None:
        self._change = change
        self._when = when
        self._spare = spare
        self._times = times
        self._lock = threading.Lock()
        self.fired = 0

    def __call__(self, request: Request, reply: Reply) -> None:
        if not self._when(request):
            return
        with self._lock:
            if self._spare > 0:
                self._spare -= 1
                return
            if self.fired >= self._times:
                return
            self.fired += 1
        self._change(request, reply)


def _replaced(reply: Reply, status: int, headers: dict[str, str], body: bytes) -> None:
    reply.status, reply.headers, reply.body, reply.chunked = status, headers, body, False


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[Request, Reply], None]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, reply: _replaced(reply, code, sent, body)


def s3_error(code: int, name: str) -> Callable[[Request, Reply], None]:
    body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>no</Message></Error>".encode()
    return status(code, body, Content_Type="application/xml")


def html_page(request: Request, reply: Reply) -> None:
    """The login page of some proxy, with status 200."""
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    _replaced(reply, 200, {"Content-Type": "text/html; charset=utf-8"}, page)


def whole_for_range(files: Files) -> Callable[[Request, Reply], None]:
    """Status 200 and the whole body, whatever range was asked for."""

    def change(request: Request, reply: Reply) -> None:
        resource = files.resources[request.path]
        headers = {"Content-Type": resource.content_type, **resource.version_headers()}
        _replaced(reply, 200, headers, resource.body)

    return change


def shifted_range(request: Request, reply: Reply) -> None:
    """Another range than the one asked for, honestly labelled."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    assert match is not None
    first, last = int(match[1]) + 1, int(match[2]) + 1
    reply.headers["Content-Range"] = f"bytes {first}-{last}/{match[3]}"


def without(*names: str) -> Callable[[Request, Reply], None]:
    """Leaves headers out."""

    def change(request: Request, reply: Reply) -> None:
        for name in [n for n in reply.headers if n.lower() in names]:
            del reply.headers[name]

    return change


def with_headers(**headers: str) -> Callable[[Request, Reply], None]:
    def change(request: Request, reply: Reply) -> None:
        reply.headers.update({name.replace("_", "-"): value for name, value in headers.items()})

    return change


def truncated(after_bytes: int, *, reset: bool = False) -> Callable[[Request, Reply], None]:
    """The whole length is announced, and then the connection ends (or is reset)."""

    def change(request: Request, reply: Reply) -> None:
        reply.cut_after_bytes, reply.reset = min(after_bytes, len(reply.body)), reset

    return change


def longer(request: Request, reply: Reply) -> None:
    """A body of one byte more than was asked for, and announced as such."""
    reply.body += b"!"
    without("content-length")(request, reply)


def flipped(at: int) -> Callable[[Request, Reply], None]:
    """One bit of the answer is wrong, everything else is right."""

    def change(request: Request, reply: Reply) -> None:
        if at < len(reply.body):
            body = bytearray(reply.body)
            body[at] ^= 1
            reply.body = bytes(body)

    return change


def hang_before_headers(request: Request, reply: Reply) -> None:
    reply.hang_before_headers = True


def hang(after_bytes: int = 0) -> Callable[[Request, Reply], None]:
    """Headers, some bytes, and then silence."""

    def change(request: Request, reply: Reply) -> None:
        reply.hang_after_bytes = after_bytes

    return change


def drip(bytes_per_second: float) -> Callable[[Request, Reply], None]:
    def change(request: Request, reply: Reply) -> None:
        reply.drip_bytes_per_second = bytes_per_second

    return change


def redirect(to: str, code: int = 302) -> Callable[[Request, Reply], None]:
    return status(code, b"", Location=to)
