"""A remote file as one stream, for servers that cannot answer ranges.

A broken answer is asked for again and skipped up to where it broke, if the version can be told;
otherwise the stream fails, because the second answer might be of another version.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from ckptfs.errors import SourceCorrupt, SourceUnavailable
from ckptfs.source.connection import Answer
from ckptfs.source.http_bytes import Exchange, Expired, Version, answered, body_of, check_version, refuse
from ckptfs.source.limits import Opening
from ckptfs.source.tries import NETWORK_ERRORS, Pace, Passing, Tries, passing

_SKIP_BYTES = 1 << 20


class HttpStream:
    """(:class:`~ckptfs.source.base.ByteStream`.) ``version`` is None when it cannot be told."""

    def __init__(
        self, opening: Opening, label: str, version: Version | None, size: int | None, exchange: Exchange
    ) -> None:
        self._opening = opening
        self._label = label
        self._version = version
        self._size = size
        self._exchange = exchange
        self._tries = Tries(opening, label)
        self._pace = Pace(opening.limits)
        self._open = ExitStack()
        self._body: Answer | None = None
        self._position = 0
        self._fresh = False

    def readinto(self, buffer: memoryview, /) -> int:
        if not buffer or self._position == self._size:
            return 0
        while True:
            self._opening.check_cancelled()
            try:
                if self._body is None:
                    self._begin()
                got = self._take(buffer)
                self._position += got
                return got
            except Passing as failure:
                self._end()
                if self._position and self._version is None:
                    raise SourceUnavailable(
                        f"{self._label}: {failure.reason} after {self._position:,} bytes, and the server "
                        "gives no "
                        "means to go on from there (no ranges, no ETag); create the checkpoint again"
                    ) from None
                self._tries.again(failure)
            except Expired as expired:
                self._end()
                if self._fresh:
                    raise expired.error from None
                self._fresh = True

    def _begin(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        response = self._open.enter_context(answered(self._exchange, headers, self._fresh, self._label))
        if response.status != 200:
            refuse(response, self._label, in_midway=True)
        if self._version is not None:
            check_version(response, self._version, self._label)
        said = response.headers.get("Content-Length")
        if said is not None and self._size is not None and int(said) != self._size:
            raise SourceCorrupt(f"{self._label}: {said} bytes are announced now, {self._size} were before")
        self._body = body_of(response)
        skipped = 0
        scratch = memoryview(bytearray(min(_SKIP_BYTES, max(self._position, 1))))
        while skipped < self._position:
            skipped += self._take(scratch[: self._position - skipped])

    def _take(self, buffer: memoryview) -> int:
        assert self._body is not None
        began = time.monotonic()
        try:
            got = self._body.take(buffer)
        except NETWORK_ERRORS as error:
            raise passing(error, self._label) from None
        if not got and self._size is not None:
            raise Passing("the answer ended early")
        self._pace.add(got, time.monotonic() - began)
        return got

    def _end(self) -> None:
        self._body = None
        self._open.close()

    def close(self) -> None:
        self._end()
