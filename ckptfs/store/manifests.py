"""Manifests as files of the store: read with their digest checked, and what they name."""

from __future__ import annotations

from ckptfs.errors import StoreDamaged
from ckptfs.model import manifest as model
from ckptfs.model.digest import text_id
from ckptfs.store import layout
from ckptfs.store.index import REMEDY
from ckptfs.store.layout import Layout


def read(place: Layout, digest: bytes) -> bytes:
    data = layout.read(place.manifest(digest))
    if model.identity(data) != digest:
        raise StoreDamaged(f"the manifest {text_id(digest)} is damaged on the disk: {REMEDY}")
    return data


def write(place: Layout, digest: bytes, data: bytes) -> None:
    """Publish a manifest; one that is there and sound is left alone."""
    try:
        with open(place.manifest(digest), "rb") as file:
            if file.read() == data:
                return
    except OSError:
        pass
    layout.publish(place.manifest(digest), data)


def distinct(manifest: model.Manifest) -> list[bytes]:
    """Every chunk that the manifest names, once, in the order of first mention."""
    found: dict[bytes, None] = {}
    width = model.DIGEST_BYTES
    for _, file in manifest.files():
        digests = file.digests
        if len(digests) == width:
            found[digests] = None
        else:
            for at in range(0, len(digests), width):
                found[digests[at : at + width]] = None
    return list(found)
