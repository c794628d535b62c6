"""A prefix or an object of an S3-compatible store: what is there, pinned by version or ETag.

boto3 lists, looks and signs (:mod:`~ckptfs.source.s3_client`); the bytes come by
:mod:`ckptfs.source.s3_bytes`.

``s3://bucket/prefix/`` is everything below the prefix, with paths that begin after it. Without the
slash at the end it is the object of exactly that key, else everything below ``prefix/``. A key that
ends in ``/`` and holds nothing is a directory, as consoles make them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptfs.errors import SourceDenied, SourceNotFound, SourceRefused
from ckptfs.model.names import show_path
from ckptfs.source.base import SourceDirectory, SourceFile
from ckptfs.source.limits import Opening
from ckptfs.source.listing import Listing
from ckptfs.source.place import PlacedFile
from ckptfs.source.s3_bytes import S3Object, S3Objects, S3Ranged
from ckptfs.source.s3_client import S3Client
from ckptfs.source.s3_connect import connect


def open_s3(opening: Opening, bucket: str, key: str, *, wasabi: bool = False) -> Listing | PlacedFile:
    """List a prefix, or pin one object (which may be an archive: the caller decides)."""
    client = connect(opening, bucket, wasabi=wasabi)
    objects = S3Objects(opening, client)
    source_key = f"s3:{client.label(key)}"
    try:
        if key and not key.endswith("/"):
            file = _exact_object(client, objects, key)
            if file is not None:
                return PlacedFile("s3", source_key, client.label(key), file, objects.close)
        prefix = key if not key or key.endswith("/") else key + "/"
        return _list(opening, client, objects, prefix, source_key)
    except BaseException:
        objects.close()
        raise


def _exact_object(client: S3Client, objects: S3Objects, key: str) -> SourceFile | None:
    try:
        head = client.head(key)
    except SourceNotFound:
        return None
    except SourceDenied:
        # Without the right to list, a store answers 403 for what is not there; the listing will tell.
        if any(True for _ in client.pages(key + "/", most=1)):
            return None
        raise
    item = S3Object(
        key=key,
        size_bytes=head["ContentLength"],
        etag=head.get("ETag", ""),
        version=_version(head),
    )
    name = key.rpartition("/")[2].encode("utf-8", "surrogateescape")
    return SourceFile(name, item.size_bytes, False, item.pin, ranged=S3Ranged(objects, item))


def _version(head: dict[str, Any]) -> str:
    version = str(head.get("VersionId") or "")
    return "" if version == "null" else version


def _list(opening: Opening, client: S3Client, objects: S3Objects, prefix: str, source_key: str) -> Listing:
    label = client.label(prefix)
    listing = Listing("s3", source_key, label, opening.limits, objects.close)
    for entry in _entries(client, objects, prefix):
        listing.add(entry)
    if not len(listing):
        raise SourceNotFound(
            f"{label} holds nothing: there is no object of that name and none below it; "
            "check the bucket, the prefix (upper and lower case count) and the endpoint"
        )
    return listing


def _entries(client: S3Client, objects: S3Objects, prefix: str) -> Iterator[SourceDirectory | SourceFile]:
    for page in client.pages(prefix):
        for item in page:
            key: str = item["Key"]
            path = key[len(prefix) :].encode("utf-8", "surrogateescape")
            size: int = item["Size"]
            if key.endswith("/") or not path:
                if size:
                    raise SourceRefused(
                        f"{client.label(key)} holds {size} bytes and its key ends in '/': it cannot be a "
                        "file; rename or remove that object"
                    )
                if path:
                    yield SourceDirectory(path)
                continue
            if item.get("StorageClass") in _ASLEEP:
                raise SourceDenied(
                    f"{client.label(key)} is archived ({item['StorageClass']}) and cannot be read now; "
                    f"restore it first ({show_path(path)})"
                )
            pinned = S3Object(key=key, size_bytes=size, etag=item.get("ETag", ""), version="")
            yield SourceFile(path, size, False, pinned.pin, ranged=S3Ranged(objects, pinned))


_ASLEEP = frozenset({"GLACIER", "DEEP_ARCHIVE"})
