"""What the user wrote as a source, taken apart; and how it may be shown.

A URI can hold secrets: a password before the host, a signature in the query. :func:`shown` and
:func:`key_of` are the only forms of it that may reach a message, a record or a log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit, urlunsplit

from blake3 import blake3

from ckptfs.errors import SpecificationError

#: source_type words of the service that ckptfs follows, and the kind of source that each means.
KIND_OF_TYPE = {"local": "local", "s3": "s3", "aws": "s3", "wasabi": "s3", "web": "web"}
_KIND_OF_SCHEME = {"": "local", "file": "local", "s3": "s3", "http": "web", "https": "web"}

#: Query parameters that sign or authorise a request. They change with every signing, so they are left
#: out of a source's key too: a re-signed URL is still the same source.
_SECRET_PARAMETERS = frozenset(
    [
        "signature",
        "sig",
        "se",
        "sp",
        "sv",
        "sr",
        "st",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "spr",
        "awsaccesskeyid",
        "googleaccessid",
        "expires",
        "policy",
        "key-pair-id",
        "token",
        "access_token",
        "auth",
        "key",
        "apikey",
        "api_key",
        "password",
        "secret",
        "credential",
    ]
)
_SECRET_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-ms-", "response-")


@dataclass(frozen=True, slots=True)
class Uri:
    """``kind`` and the part that it needs: ``path`` (local), ``bucket`` and ``key`` (s3), ``url`` (web)."""

    kind: str
    path: bytes = b""
    bucket: str = ""
    key: str = ""
    url: str = ""


def parse(uri: str, source_type: str = "") -> Uri:
    """Tell what kind of source a URI names.

    Raises :class:`~ckptfs.errors.SpecificationError` for a form that is not understood.
    """
    if source_type and source_type not in KIND_OF_TYPE:
        raise SpecificationError(
            "source_type", f"no source type {source_type!r}; known are {', '.join(KIND_OF_TYPE)}"
        )
    if not uri or "\0" in uri:
        raise SpecificationError("source_uri", "the source is missing; name a path, s3://… or http(s)://…")
    parts = _split(uri)
    scheme = parts.scheme.lower() if "://" in uri else ""
    kind = _KIND_OF_SCHEME.get(scheme)
    if kind is None:
        raise SpecificationError(
            "source_uri",
            f"{scheme}:// is not a kind of source; known are a path, s3://bucket/prefix/, http(s)://…",
        )
    if source_type and KIND_OF_TYPE[source_type] != kind:
        raise SpecificationError(
            "source_type", f"source type {source_type!r} does not fit {shown(uri)}, which is of kind {kind!r}"
        )
    if kind == "local":
        return Uri("local", path=_local_path(uri, parts, scheme))
    if kind == "web":
        if not parts.hostname:
            raise SpecificationError("source_uri", f"{shown(uri)} names no host")
        return Uri("web", url=uri)
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not bucket or "@" in bucket:
        raise SpecificationError(
            "source_uri",
            "an S3 source is s3://bucket/prefix/ or s3://bucket/object; credentials go elsewhere",
        )
    return Uri("s3", bucket=bucket, key=key)


def _local_path(uri: str, parts: SplitResult, scheme: str) -> bytes:
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise SpecificationError("source_uri", f"{shown(uri)} is on another host; use file:///path")
        path = unquote_to_bytes(parts.path)
    else:
        path = os.fsencode(uri)
    if not path.startswith(b"/"):
        raise SpecificationError(
            "source_uri",
            f"{shown(uri)} is not a whole path: the daemon reads it and has another working directory; "
            "begin it with /",
        )
    return path


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        if "://" not in uri:  # a path may look like anything
            return SplitResult("", "", uri, "", "")
        raise SpecificationError("source_uri", f"the source is not a valid URL: {error}") from None
    return parts


def shown(uri: str) -> str:
    """The URI without passwords, query and fragment, safe for terminals, messages and records."""
    if "://" in uri and not uri.lower().startswith("s3://"):
        try:
            parts = urlsplit(uri)
            host = parts.netloc.rpartition("@")[2]
            uri = urlunsplit((parts.scheme, host, parts.path, "", ""))
        except ValueError:
            uri = uri.split("://", 1)[0] + "://…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in uri)


def key_of(url: str) -> str:
    """A web address as part of a source's key: the query counts, but only as a digest without secrets."""
    kept = [
        (name, value)
        for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)
        if name.lower() not in _SECRET_PARAMETERS and not name.lower().startswith(_SECRET_PREFIXES)
    ]
    if not kept:
        return shown(url)
    return f"{shown(url)}?{blake3(repr(sorted(kept)).encode()).hexdigest(16)}"
