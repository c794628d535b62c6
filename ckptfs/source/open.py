"""The door: a URI and its options become an opened, pinned source.

A place (a path, a bucket, a web address) yields either a listing of files or one file. One file may be
an archive, wherever it lies; then its members are the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from ckptfs.errors import SourceNotFound, SpecificationError
from ckptfs.model.records import SourceType
from ckptfs.source import s3_options
from ckptfs.source.archive.open import open_file
from ckptfs.source.base import FetchProgress, Source
from ckptfs.source.limits import Extract, Limits, Opening
from ckptfs.source.listing import Listing
from ckptfs.source.local import open_local
from ckptfs.source.uri import Uri, parse, shown
from ckptfs.source.web import open_web

__all__ = ["Limits", "check_request", "open_source", "public_uri", "source_type_of"]


def source_type_of(uri: str, source_type: str = "") -> str:
    """The source type of a request: what it says, else what the URI says."""
    return source_type or cast("SourceType", parse(uri).kind)


def public_uri(uri: str) -> str:
    """The URI as it may be recorded and shown: without passwords and signatures."""
    return shown(uri)


def check_request(uri: str, source_type: str = "", options: Mapping[str, str] | None = None) -> None:
    """Raise :class:`~ckptfs.errors.SpecificationError` for what can be seen to be wrong at once."""
    _check_options(parse(uri, source_type), options or {})


def _check_options(place: Uri, options: Mapping[str, str]) -> None:
    if place.kind == "s3":
        s3_options.check_options(options)
    elif options:
        raise SpecificationError(
            "source_options",
            f"a {place.kind} source has no options, so not {', '.join(sorted(options))}",
        )


def open_source(
    uri: str,
    *,
    source_type: str = "",
    options: Mapping[str, str] | None = None,
    credentials: Mapping[str, str] | None = None,
    extract: Extract = "auto",
    spool: str | None = None,
    limits: Limits | None = None,
    report: FetchProgress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Source:
    """Open and pin a source. Blocks: lists everything that is there.

    ``spool`` is a directory for what must be fetched before it can be read (a remote compressed
    archive); a later opening with the same directory goes on from what is in it.

    Raises :class:`~ckptfs.errors.SpecificationError` for a request that makes no sense, else a
    :class:`~ckptfs.errors.SourceError` or :class:`~ckptfs.errors.Interrupted`.
    """
    opening = Opening(
        uri=uri,
        options=dict(options or {}),
        credentials=dict(credentials or {}),
        extract=extract,
        spool=spool,
        limits=limits or Limits(),
        report=report,
        cancelled=cancelled,
    )
    where = parse(uri, source_type)
    _check_options(where, opening.options)
    opening.check_cancelled()
    if where.kind == "s3":
        # Here, because boto3 takes longer to import than all the rest of a source's modules: a worker that
        # follows a dead one has readers waiting for it.
        from ckptfs.source.s3 import open_s3

        found = open_s3(opening, where.bucket, where.key, wasabi=source_type == "wasabi")
    elif where.kind == "web":
        found = open_web(opening, where.url)
    else:
        found = open_local(opening, where.path)
    if isinstance(found, Listing):
        return found
    if found.file.size_bytes == 0:
        found.close()
        raise SourceNotFound(f"{found.label} is empty: there is nothing to make a checkpoint of")
    return open_file(opening, found)
