"""A file behind http(s): what it is, pinned by its strong ETag, or else by its time and length.

One probe of the first kilobyte tells everything: whether ranges work, the size, the version, and
whether this is a web page where a file was expected. Without ranges, or without anything to pin by, the
file is read as one stream: one answer is one version.

Redirects are followed by hand: a few, never from https to http, never to an address that the guard
refuses (:mod:`ckptfs.source.connection`), and with credentials only to the host that they are for.
"""

from __future__ import annotations

import email.message
import re
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from functools import partial
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import urllib3

from ckptfs.errors import SourceCorrupt, SourceError, SourceNotFound, SourceRefused
from ckptfs.source.archive.detect import HEAD_BYTES, ends_as_compressed
from ckptfs.source.base import SourceFile
from ckptfs.source.connection import Connections
from ckptfs.source.http_bytes import (
    CONTENT_RANGE,
    HttpRanged,
    Version,
    answered,
    body_of,
    read_head,
    refuse,
)
from ckptfs.source.http_stream import HttpStream
from ckptfs.source.limits import Opening
from ckptfs.source.place import PlacedFile
from ckptfs.source.tries import Passing, Tries
from ckptfs.source.uri import key_of, shown

MOST_REDIRECTS = 8
_REDIRECTS = (301, 302, 303, 307, 308)
#: HTTP times have a resolution of a second: one that is younger than this may yet stand for two versions.
_SETTLED_SECONDS = 2.0


class _Walk:
    """Leads from the URL that was given to the one that answers, and remembers it."""

    def __init__(self, opening: Opening, url: str, label: str) -> None:
        parts = urlsplit(url)
        self._authorization = _authorization(parts.username, parts.password, opening.credentials)
        self._start = _clean(url)
        self._label = label
        self._lock = threading.Lock()
        self._found = ""
        self.connections = Connections(opening, label)

    @property
    def found(self) -> str:
        return self._found or self._start

    def exchange(self, headers: dict[str, str], fresh: bool) -> urllib3.BaseHTTPResponse:
        """One request for the file; ``fresh`` walks through the redirects again (they may be signed)."""
        with self._lock:
            url = self._start if fresh or not self._found else self._found
        for _ in range(MOST_REDIRECTS + 1):
            sent = {**headers, "User-Agent": "ckptfs", "Accept": "*/*"}
            if self._authorization and _origin(url) == _origin(self._start):
                sent["Authorization"] = self._authorization
            response = self.connections.request("GET", url, sent)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                with self._lock:
                    self._found = url
                return response
            location = response.headers["Location"]
            response.close()
            response.release_conn()
            url = self._next(url, location)
        raise SourceError(
            f"{self._label} redirects more than {MOST_REDIRECTS} times; it likely goes in circles"
        )

    def _next(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            _ = parts.port
        except ValueError:
            raise SourceError(f"{self._label} redirects to something that is not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceRefused(
                f"{self._label} redirects to {parts.scheme or 'no'}://, which is not followed"
            )
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            raise SourceRefused(
                f"{self._label} redirects from https to http ({parts.hostname}), where anybody on the "
                "way could "
                "change the bytes; name that address itself if you accept it"
            )
        return _clean(target)


def _clean(url: str) -> str:
    """The address as it is sent: without password and fragment, odd characters encoded."""
    return urllib3.util.parse_url(url)._replace(auth=None, fragment=None).url


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _authorization(username: str | None, password: str | None, credentials: Mapping[str, str]) -> str:
    if credentials.get("token"):
        return f"Bearer {credentials['token']}"
    if username is None:
        username, password = credentials.get("username"), credentials.get("password")
    else:
        username, password = unquote(username), unquote(password or "")
    if username is None:
        return ""
    return "Basic " + b64encode(f"{username}:{password or ''}".encode()).decode()


def open_web(opening: Opening, url: str) -> PlacedFile:
    """Find out what lies at a URL and pin it."""
    label = shown(url)
    walk = _Walk(opening, url, label)
    try:
        tries = Tries(opening, label)
        while True:
            opening.check_cancelled()
            try:
                return _probe(opening, walk, url, label)
            except Passing as failure:
                tries.again(failure)
    except BaseException:
        walk.connections.close()
        raise


def _probe(opening: Opening, walk: _Walk, url: str, label: str) -> PlacedFile:
    headers = {"Range": f"bytes=0-{HEAD_BYTES - 1}", "Accept-Encoding": "identity"}
    with answered(walk.exchange, headers, True, label) as response:
        if response.status == 416 and response.headers.get("Content-Range", "").strip() == "bytes */0":
            raise SourceNotFound(f"{label} is empty: there is nothing to make a checkpoint of")
        if response.status not in (200, 206):
            refuse(response, label, in_midway=False)
        name = _name(response, url, walk.found)
        _check_encoding(response, name, label)
        size, ranges = _size(response, label)
        wanted = HEAD_BYTES if size is None else min(HEAD_BYTES, size)
        head = read_head(response, wanted, opening.limits, exactly=size is not None)
        _check_not_a_page(response, name, head, label)
        version = _version(response, size)
    pinned = size is not None and bool(version.etag or version.last_modified)
    pin = f"web:{version.etag or version.last_modified}" if pinned else f"once:{secrets.token_hex(16)}"
    if pinned and ranges:
        ranged = HttpRanged(opening, label, version, walk.exchange)
        file = SourceFile(name, size, False, pin, ranged=ranged)
    else:
        stream = partial(HttpStream, opening, label, version if pinned else None, size, walk.exchange)
        file = SourceFile(name, size, False, pin, stream=stream)
    return PlacedFile("web", f"web:{key_of(url)}", label, file, walk.connections.close, head)


def _size(response: urllib3.BaseHTTPResponse, label: str) -> tuple[int | None, bool]:
    """The file's size, if the server says it, and whether it answers ranges."""
    if response.status == 206:
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if match is None or match[1] != "0":
            raise SourceCorrupt(f"{label}: the server's Content-Range makes no sense; it cannot be a source")
        if match[3] == "*":
            return None, False
        if int(match[2]) + 1 != min(HEAD_BYTES, int(match[3])):
            raise SourceCorrupt(f"{label}: the server's Content-Range makes no sense; it cannot be a source")
        return int(match[3]), True
    said = response.headers.get("Content-Length")
    if said is None:
        if not body_of(response).chunked:
            raise SourceRefused(
                f"{label}: the server says neither the file's length nor where it ends, so a download "
                "that was "
                "cut off could not be noticed; download it by other means"
            )
        return None, False
    if not re.fullmatch(r"\d{1,18}", said):
        raise SourceCorrupt(f"{label}: the server's Content-Length makes no sense")
    if said == "0":
        raise SourceNotFound(f"{label} is empty: there is nothing to make a checkpoint of")
    return int(said), False


def _version(response: urllib3.BaseHTTPResponse, size: int | None) -> Version:
    etag = response.headers.get("ETag", "").strip()
    modified = response.headers.get("Last-Modified", "").strip()
    if etag.startswith("W/"):
        etag = ""  # weak: not a promise of equal bytes
    if not etag and not _settled(modified, response.headers.get("Date", "")):
        modified = ""
    return Version(size or 0, etag, "" if etag else modified)


def _settled(modified: str, date: str) -> bool:
    try:
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        return now - parsedate_to_datetime(modified).timestamp() >= _SETTLED_SECONDS
    except (ValueError, TypeError):
        return False


def _name(response: urllib3.BaseHTTPResponse, url: str, found: str) -> bytes:
    """The file's name: as the server suggests it, else as the address ends."""
    suggested = _suggested_name(response.headers.get("Content-Disposition", ""))
    name = re.split(r"[/\\]", suggested)[-1].encode("utf-8", "surrogateescape")
    if name not in (b"", b".", b".."):
        return name
    for address in (url, found):
        name = unquote_to_bytes(urlsplit(address).path.rpartition("/")[2])
        if name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name:
            return name
    return b"download"


def _suggested_name(disposition: str) -> str:
    """The file name in a Content-Disposition header; its extended form (RFC 6266) before the plain one."""
    message = email.message.Message()
    message["Content-Disposition"] = disposition
    names = [v for k, v in message.get_params([], "Content-Disposition") if k.lower() == "filename"]
    extended = [name for name in names if isinstance(name, tuple)]
    return collapse_rfc2231_value((extended or names or [""])[0])


def _check_encoding(response: urllib3.BaseHTTPResponse, name: bytes, label: str) -> None:
    """Servers mark ``.gz`` files as encoded; then the bytes are the file. Otherwise they are not."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity") and not ends_as_compressed(name):
        raise SourceCorrupt(
            f"{label}: the server compresses its answer ({encoding[:20]}) although it was asked not to, "
            "so what "
            "arrives is not the file; download it by other means"
        )


def _check_not_a_page(response: urllib3.BaseHTTPResponse, name: bytes, head: bytes, label: str) -> None:
    if name.lower().endswith((b".html", b".htm", b".xhtml")):
        return
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower()
    if kind in ("text/html", "application/xhtml+xml") or start.startswith((b"<!doctype html", b"<html")):
        raise SourceCorrupt(
            f"{label} answers with a web page, not a file (a login or error page, or a listing?); "
            "give the address of the file itself"
        )
