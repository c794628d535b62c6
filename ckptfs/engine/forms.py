"""In which form each file of a checkpoint lies in the store: can the kernel read it without us?"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from enum import StrEnum

from ckptfs.engine.reader import Extent, extents_of
from ckptfs.errors import StoreDamaged
from ckptfs.model.manifest import DIGEST_BYTES, File, Manifest
from ckptfs.store import SMALL_FILE_BYTES, Store


class Form(StrEnum):
    WHOLE = "whole"  # all in its own blob, at its own offsets
    DERIVED = "derived"  # has a derived copy
    SHARED = "shared"  # has chunks elsewhere
    SMALL = "small"  # in a pack, or empty: read in one request
    DAMAGED = "damaged"  # a chunk is missing or known to be wrong

    @property
    def native(self) -> bool:
        """Whether one file of the store is, byte for byte, this file."""
        return self in (Form.WHOLE, Form.DERIVED)


def forms_of(
    store: Store,
    ordinal: int,
    manifest: Manifest,
    check: Callable[[], None] = lambda: None,
    *,
    wanted: Container[int] | None = None,
) -> Iterator[tuple[int, File, Form]]:
    """Each file with its entry index and form. Looks up every chunk of all but small files: blocks.

    ``check`` is called between files, and may raise. ``wanted``: entry indices; None for all.
    """
    own = store.own_blobs(ordinal)
    copied = store.copied_entries(ordinal)
    damaged = store.quarantined()
    for index, file in manifest.files():
        check()
        if wanted is not None and index not in wanted:
            continue
        yield index, file, _form(store, file, own.get(index, 0), index in copied, damaged)


def _form(store: Store, file: File, own_blob: int, copied: bool, damaged: frozenset[bytes]) -> Form:
    if not own_blob and file.size_bytes <= SMALL_FILE_BYTES and not copied:
        digests = file.digests
        hurt = damaged and any(
            digests[at : at + DIGEST_BYTES] in damaged for at in range(0, len(digests), DIGEST_BYTES)
        )
        return Form.DAMAGED if hurt else Form.SMALL
    try:
        extents = extents_of(store, file, own_blob)
    except StoreDamaged:
        return Form.DAMAGED
    if own_blob and extents == [Extent(0, file.size_bytes, own_blob, 0)]:
        return Form.WHOLE
    return Form.DERIVED if copied else Form.SHARED
