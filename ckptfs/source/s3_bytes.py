"""The bytes of S3 objects: urllib3 on URLs that boto3 signed, into the caller's buffer.

Measured on loopback against boto3's own bodies: a fifth more bytes per second for two thirds of the
CPU. ``Range`` and ``If-Match`` need not be signed, so one URL serves all ranges of an object.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial

import urllib3

from ckptfs.source.connection import Connections, environment_ca_bundle
from ckptfs.source.http_bytes import HttpRanged, Version
from ckptfs.source.limits import Opening
from ckptfs.source.s3_client import S3Client


@dataclass(frozen=True, slots=True)
class S3Object:
    """One object as it was listed. ``version`` is empty in an unversioned bucket and from listings."""

    key: str
    size_bytes: int
    etag: str
    version: str

    @property
    def pin(self) -> str:
        return f"s3:{self.etag}:{self.version}"


class S3Objects:
    """Reads the objects of one source over one pool of connections."""

    def __init__(self, opening: Opening, client: S3Client) -> None:
        self._opening = opening
        self._client = client
        self._connections = Connections(opening, client.label(""), environment_ca_bundle())

    def ranged(self, item: S3Object) -> HttpRanged:
        return HttpRanged(
            self._opening,
            self._client.label(item.key),
            Version(item.size_bytes, item.etag),
            partial(self._exchange, _Signed(self._client, item)),
        )

    def _exchange(self, signed: _Signed, headers: dict[str, str], fresh: bool) -> urllib3.BaseHTTPResponse:
        return self._connections.request("GET", signed.url(fresh), headers)

    def close(self) -> None:
        self._connections.close()
        self._client.close()


class _Signed:
    """An object's signed URL, made when it is first needed and again before it grows old."""

    __slots__ = ("_client", "_item", "_lock", "_until", "_url")

    def __init__(self, client: S3Client, item: S3Object) -> None:
        self._client = client
        self._item = item
        self._lock = threading.Lock()
        self._url = ""
        self._until = 0.0

    def url(self, fresh: bool) -> str:
        with self._lock:
            if fresh or time.monotonic() >= self._until:
                self._url, self._until = self._client.sign(self._item.key, self._item.version)
            return self._url
