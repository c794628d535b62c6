"""From one placed file to the source of what is in it."""

from __future__ import annotations

from functools import partial

from ckptfs.errors import SourceCorrupt
from ckptfs.source.archive.ahead import Ahead
from ckptfs.source.archive.codec import DECODERS, Decompressing, Expansion
from ckptfs.source.archive.detect import HEAD_BYTES, TAR_SUFFIXES, Form, choose, is_tar
from ckptfs.source.archive.single import single_file
from ckptfs.source.archive.tar import list_tar
from ckptfs.source.archive.tar_stream import TarStream
from ckptfs.source.archive.zip import list_zip
from ckptfs.source.base import ByteStream, Ranged, Source, SourceFile
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
    opened = _Opened(opening, place)
    try:
        return opened.source()
    except BaseException:
        opened.close()
        raise


class _Opened:
    """A placed file, and what reads it: a spool, streams with threads. They end together."""

    def __init__(self, opening: Opening, place: PlacedFile) -> None:
        self._opening = opening
        self._place = place
        self._spool: Spool | SpooledStream | None = None
        self._streams: list[Ahead] = []

    def source(self) -> Source:
        opening, place = self._opening, self._place
        form = choose(place.file.path, place.beginning(HEAD_BYTES), opening.extract, place.label)
        if form is None:
            return self._listing_of(place.file)
        if place.file.ranged is None or (form.compressed and place.remote):
            self._spool = spooled(opening, place.file, place.label)
        ranged = self._spool or place.file.ranged
        assert ranged is not None
        return self._compressed(form, ranged) if form.compressed else self._listed(form, ranged)

    def close(self) -> None:
        """In this order: whatever waits is let go before it is waited for."""
        self._opening.ended.set()
        self._place.close()
        if self._spool is not None:
            self._spool.stop()
        for stream in self._streams:
            stream.join()
        if self._spool is not None:
            self._spool.close()

    def _listing(self) -> Listing:
        place = self._place
        return Listing(place.kind, place.key, place.label, self._opening.limits, self.close)

    def _listing_of(self, file: SourceFile) -> Listing:
        listing = self._listing()
        listing.add(file)
        return listing

    def _listed(self, form: Form, ranged: Ranged) -> Listing:
        place, listing = self._place, self._listing()
        fill = list_zip if form is Form.ZIP else list_tar
        fill(self._opening, Blocks(ranged, place.block_bytes), place.file.pin, listing, place.label)
        listing.check_not_empty()
        return listing

    def _compressed(self, form: Form, ranged: Ranged) -> Listing | TarStream:
        """A tar inside makes a source of its members, anything else one file."""
        opening, place = self._opening, self._place
        inside = _beginning(self._plain(form, ranged))
        promises = _promises_tar(place.file.path)
        if is_tar(inside) or (promises and len(inside) == HEAD_BYTES and not any(inside)):
            return TarStream(opening, place, self._ahead(form, ranged), self.close)
        if promises and opening.extract == "auto":
            raise SourceCorrupt(
                f"{place.label}: the name promises a tar and there is none in it: it is damaged or "
                "something else (--no-extract keeps the file as it is)"
            )
        return self._listing_of(single_file(place.file, partial(self._ahead, form, ranged)))

    def _plain(self, form: Form, ranged: Ranged) -> Decompressing:
        expansion = Expansion(self._place.label, self._opening.limits)
        return Decompressing(RangedStream(ranged), DECODERS[form], expansion, form=form)

    def _ahead(self, form: Form, ranged: Ranged) -> Ahead:
        stream = Ahead(self._plain(form, ranged))
        self._streams.append(stream)
        return stream


def _beginning(stream: ByteStream) -> bytes:
    head = memoryview(bytearray(HEAD_BYTES))
    done = 0
    while done < len(head) and (got := stream.readinto(head[done:])):
        done += got
    return bytes(head[:done])


def _promises_tar(name: bytes) -> bool:
    lower = name.lower()
    return lower.endswith(TAR_SUFFIXES) or b".tar." in lower[-9:]
