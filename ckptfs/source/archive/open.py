"""From one placed file to the source of what is in it."""

from __future__ import annotations

from ckptfs.errors import SourceCorrupt
from ckptfs.source.archive.codec import DECODERS, Decompressing, Expansion
from ckptfs.source.archive.detect import HEAD_BYTES, Form, choose, is_tar
from ckptfs.source.archive.single import single_file
from ckptfs.source.archive.tar import list_tar
from ckptfs.source.archive.tar_stream import TarStream
from ckptfs.source.archive.zip import list_zip
from ckptfs.source.base import Ranged, Source
from ckptfs.source.blocks import Blocks
from ckptfs.source.limits import Opening
from ckptfs.source.listing import Listing
from ckptfs.source.place import PlacedFile
from ckptfs.source.seekable import RangedStream
from ckptfs.source.spool import Spool, SpooledStream, spooled


def open_file(opening: Opening, place: PlacedFile) -> Source:
    """The source of a placed file: its members if it is an archive to be opened, else itself.

    Takes over ``place.close``: it is called when the source is closed, or now if this fails.
    """
    spool: Spool | SpooledStream | None = None

    def close() -> None:
        opening.ended.set()
        place.close()  # first: what the spool waits for ends with its connections
        if spool is not None:
            spool.close()

    try:
        form = choose(place.file.path, place.beginning(HEAD_BYTES), opening.extract, place.label)
        if form is None:
            listing = Listing(place.kind, place.key, place.label, opening.limits, close)
            listing.add(place.file)
            return listing
        if place.file.ranged is None or (form.compressed and place.remote):
            spool = spooled(opening, place.file, place.label)
        ranged = spool or place.file.ranged
        assert ranged is not None
        source = _compressed(opening, place, form, ranged) if form.compressed else None
        if source is None:
            source = _listed(opening, place, form, ranged)
        source.on_close = close
        return source
    except BaseException:
        close()
        raise


def _listed(opening: Opening, place: PlacedFile, form: Form, ranged: Ranged) -> Listing:
    listing = Listing(place.kind, place.key, place.label, opening.limits)
    blocks = Blocks(ranged, place.block_bytes)
    fill = list_zip if form is Form.ZIP else list_tar
    fill(opening, blocks, place.file.pin, listing, place.label)
    listing.check_not_empty()
    return listing


def _compressed(opening: Opening, place: PlacedFile, form: Form, ranged: Ranged) -> Listing | TarStream:
    """A tar inside makes a source of its members, anything else one file."""

    def begin() -> Decompressing:
        expansion = Expansion(place.label, opening.limits)
        return Decompressing(RangedStream(ranged), DECODERS[form], expansion, form=form)

    head = memoryview(bytearray(HEAD_BYTES))
    done = 0
    peek = begin()
    while done < len(head) and (got := peek.readinto(head[done:])):
        done += got
    inside = bytes(head[:done])
    tar_by_name = _promises_tar(place.file.path)
    if is_tar(inside) or (tar_by_name and done == HEAD_BYTES and not any(inside)):
        return TarStream(opening, place.kind, place.key, place.label, place.file.pin, begin())
    if tar_by_name and opening.extract == "auto":
        raise SourceCorrupt(
            f"{place.label}: the name promises a tar and there is none in it: it is damaged or something "
            "else "
            "(--no-extract keeps the file as it is)"
        )
    listing = Listing(place.kind, place.key, place.label, opening.limits)
    listing.add(single_file(place.file, begin))
    return listing


def _promises_tar(name: bytes) -> bool:
    lower = name.lower()
    return lower.endswith((b".tgz", b".tbz", b".tbz2", b".txz", b".tzst")) or b".tar." in lower[-9:]
