"""The bytes of one pinned remote object, by HTTP, straight into the caller's buffer.

HTTP libraries accept silently what must not be accepted: the whole body where a range was asked for,
another range, another version, an error page with status 200, a body cut short, an endless drip. So
every answer is compared with what was asked (status, Content-Range, length, ETag) before its first
byte is taken, and every byte counts against a least pace.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn
from urllib.parse import urlsplit

import urllib3

from ckptfs.errors import (
    CkptfsError,
    SourceChanged,
    SourceCorrupt,
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
)
from ckptfs.source.connection import Answer
from ckptfs.source.limits import Limits, Opening
from ckptfs.source.tries import NETWORK_ERRORS, Pace, Passing, Tries, passing, retry_after_seconds

_AGAIN_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529})
_AGAIN_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling"})
_EXPIRED_CODES = frozenset({"ExpiredToken", "TokenRefreshRequired", "RequestExpired", "InvalidToken"})
#: An error's body is read only this far, for its code.
_ERROR_BODY_BYTES = 16 << 10
_ERROR_BODY_SECONDS = 5.0

#: Makes one exchange up to the answer's headers: extra headers in; ``fresh`` asks for a new signature or
#: a new walk through the redirects.
Exchange = Callable[[dict[str, str], bool], urllib3.BaseHTTPResponse]


@dataclass(frozen=True, slots=True)
class Version:
    """What an object is pinned by. Empty strings where the server has no such thing."""

    size_bytes: int
    etag: str = ""
    last_modified: str = ""


class HttpRanged:
    """One remote object (:class:`~ckptfs.source.base.Ranged`). ``label`` names it in messages."""

    __slots__ = ("_exchange", "_label", "_opening", "_version", "size_bytes")

    def __init__(self, opening: Opening, label: str, version: Version, exchange: Exchange) -> None:
        self._opening = opening
        self._label = label
        self._version = version
        self._exchange = exchange
        self.size_bytes = version.size_bytes

    def read_at(self, offset: int, buffer: memoryview) -> None:
        tries = Tries(self._opening, self._label)
        progress = [0]
        refreshed = False
        while progress[0] < len(buffer):
            self._opening.check_cancelled()
            before = progress[0]
            try:
                self._read_once(offset, buffer, progress, refreshed)
            except Passing as failure:
                tries.arrived(progress[0] - before)
                tries.again(failure)
            except Expired as expired:
                if refreshed:
                    raise expired.error from None
                refreshed = True

    def _read_once(self, offset: int, buffer: memoryview, progress: list[int], fresh: bool) -> None:
        start = offset + progress[0]
        wanted = buffer[progress[0] :]
        headers = {"Range": f"bytes={start}-{start + len(wanted) - 1}", "Accept-Encoding": "identity"}
        if self._version.etag:
            headers["If-Match"] = self._version.etag
        with answered(self._exchange, headers, fresh, self._label) as response:
            self._check(response, start, len(wanted))
            pace = Pace(self._opening.limits)
            body = body_of(response)
            done = 0
            while done < len(wanted):
                began = time.monotonic()
                got = body.take(wanted[done:])
                if not got:
                    raise Passing(f"the answer ended {len(wanted) - done} bytes early")
                done += got
                progress[0] += got
                pace.add(got, time.monotonic() - began)
                self._opening.check_cancelled()

    def _check(self, response: urllib3.BaseHTTPResponse, start: int, length: int) -> None:
        status = response.status
        size = self.size_bytes
        if status not in (200, 206):
            refuse(response, self._label, in_midway=True)
        # The version first: a changed object explains every other contradiction.
        check_version(response, self._version, self._label)
        if status == 206:
            check_content_range(response, start, length, size, self._label)
        elif length != size:
            raise SourceCorrupt(
                f"{self._label}: the server ignored the range that was asked for (it answered 200, not 206); "
                "it cannot be used as a source in this way"
            )
        said = response.headers.get("Content-Length")
        if said is not None and said != str(length):
            raise SourceCorrupt(f"{self._label}: {said} bytes were announced where {length} were asked for")


def check_version(response: urllib3.BaseHTTPResponse, version: Version, label: str) -> None:
    """Raise :class:`~ckptfs.errors.SourceChanged` when the answer is of another version."""
    for header, pinned in (("ETag", version.etag), ("Last-Modified", version.last_modified)):
        if not pinned:
            continue
        got = response.headers.get(header, "")
        if got and got != pinned:
            raise changed(label, f"its {header} is another one now")
        if not got and header == "ETag":
            raise SourceCorrupt(f"{label}: an answer came without the ETag, so its version cannot be told")
        if got:
            return
    total = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if total and total[3] != "*" and int(total[3]) != version.size_bytes:
        raise changed(label, f"it has {total[3]} bytes now where it had {version.size_bytes}")


CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)


def check_content_range(
    response: urllib3.BaseHTTPResponse, start: int, length: int, size: int, label: str
) -> None:
    said = response.headers.get("Content-Range", "")
    match = CONTENT_RANGE.fullmatch(said.strip())
    if match is None or (int(match[1]), int(match[2])) != (start, start + length - 1):
        raise SourceCorrupt(
            f"{label}: bytes {start}-{start + length - 1} were asked for and the server answered "
            f"with {said[:60]!r}"
        )
    if match[3] != "*" and int(match[3]) != size:
        raise changed(label, f"it has {match[3]} bytes now where it had {size}")


def changed(label: str, how: str) -> SourceChanged:
    return SourceChanged(
        f"{label} changed while the checkpoint was being made of it: {how}; "
        "create it again when nothing writes there"
    )


class Expired(Exception):
    """Access was refused in mid-way; a new signature may help, once."""

    def __init__(self, error: SourceError) -> None:
        super().__init__(str(error))
        self.error = error


class answered:
    """An exchange whose connection goes back to the pool if the body was read, or is closed if not;
    foreign errors become ours on the way out."""

    def __init__(self, exchange: Exchange, headers: dict[str, str], fresh: bool, label: str) -> None:
        self._make: Callable[[], urllib3.BaseHTTPResponse] = partial(exchange, headers, fresh)
        self._label = label
        self._response: urllib3.BaseHTTPResponse | None = None

    def __enter__(self) -> urllib3.BaseHTTPResponse:
        try:
            self._response = self._make()
        except NETWORK_ERRORS as error:
            raise self._ours(error) from None
        return self._response

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        give_back(self._response)
        if isinstance(error, NETWORK_ERRORS):
            raise self._ours(error) from None

    def _ours(self, error: Exception) -> Passing | CkptfsError:
        return passing(error, host_of(self._label))


def give_back(response: urllib3.BaseHTTPResponse | None) -> None:
    """Return an answer's connection to the pool, or close it when its body was not read to the end."""
    if response is None:
        return
    if not body_of(response).isclosed():
        response.close()
    response.release_conn()


def host_of(label: str) -> str:
    """The host in a label, or the label itself (``s3://bucket`` has none: the endpoint is in the label)."""
    return urlsplit(label).hostname or label if label.startswith("http") else label


def body_of(response: urllib3.BaseHTTPResponse) -> Answer:
    body = getattr(response, "_fp", None)
    assert isinstance(body, Answer)
    return body


def refuse(response: urllib3.BaseHTTPResponse, label: str, *, in_midway: bool) -> NoReturn:
    """Raise what a status other than success means."""
    status = response.status
    code = error_code(response)
    said = f"{status} {code}".strip()
    if status in _AGAIN_STATUSES or code in _AGAIN_CODES:
        raise Passing(f"the server answered {said}", retry_after_seconds(response.headers.get("Retry-After")))
    if status in (401, 403, 407) or code in _EXPIRED_CODES:
        if in_midway:
            raise Expired(
                SourceUnavailable(
                    f"{label}: access ended in mid-way (the server answered {said}); what arrived is kept: "
                    "create the checkpoint again with fresh credentials"
                )
            )
        raise SourceDenied(f"{label}: access denied (the server answered {said}); check the credentials")
    if status in (404, 410):
        if in_midway:
            raise changed(label, f"it is gone (the server answered {said})")
        raise SourceNotFound(f"{label} does not exist (the server answered {said})")
    if status == 412:
        raise changed(label, "the server has another version now")
    if status == 416:
        raise changed(label, "it is shorter now")
    if 300 <= status < 400:
        raise SourceError(
            f"{label}: the server answered {said} and points elsewhere; check the endpoint and the region"
        )
    raise SourceError(f"{label}: the server answered {said}, which ckptfs cannot use")


def read_head(
    response: urllib3.BaseHTTPResponse, count_bytes: int, limits: Limits, *, exactly: bool
) -> bytes:
    """The first bytes of an answer's body; fewer, unless ``exactly``, where the body ends."""
    head = bytearray(count_bytes)
    pace = Pace(limits)
    done = 0
    while done < count_bytes:
        began = time.monotonic()
        got = body_of(response).take(memoryview(head)[done:])
        if not got and exactly:
            raise Passing(f"the answer ended {count_bytes - done} bytes early")
        if not got:
            break
        done += got
        pace.add(got, time.monotonic() - began)
    return bytes(head[:done])


def error_code(response: urllib3.BaseHTTPResponse) -> str:
    """The code in an S3 error document. Nothing else of the body is used: it can quote signatures."""
    body = body_of(response)
    room = memoryview(bytearray(_ERROR_BODY_BYTES))
    filled = 0
    until = time.monotonic() + _ERROR_BODY_SECONDS
    try:
        while filled < len(room) and (got := body.take(room[filled:])):
            filled += got
            if time.monotonic() > until:
                break
    except NETWORK_ERRORS:
        return ""
    match = re.search(rb"<Code>([A-Za-z0-9.]{1,64})</Code>", bytes(room[:filled]))
    return match[1].decode() if match else ""
