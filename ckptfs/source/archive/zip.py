"""A zip: stored members are ranges of it, deflated and otherwise compressed ones are streams.

The directory at the end is read by the standard library's zipfile and checked here: members must not
overlap (a bomb that counts the same bytes many times), sizes must add up, nothing may be encrypted.
Every member's CRC is checked, of ranges too (:mod:`ckptfs.source.archive.crc`).
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from typing import IO, cast

from ckptfs.errors import CkptfsError, SourceCorrupt, SourceRefused
from ckptfs.model.names import show_path
from ckptfs.source.archive.codec import Decoder, Decompressing, Expansion, zip_decoder
from ckptfs.source.archive.crc import CheckedRange, CheckedStream
from ckptfs.source.archive.members import is_root
from ckptfs.source.base import ByteStream, SourceDirectory, SourceEntry, SourceFile, SourceLink, SourceSpecial
from ckptfs.source.blocks import Blocks
from ckptfs.source.limits import Opening
from ckptfs.source.listing import Listing, check_entries
from ckptfs.source.local import what_is_special
from ckptfs.source.seekable import RangedStream, SeekableView, SubRange

#: The longest central directory that is read into memory: some 300,000 members. zipfile takes about ten
#: times as much memory for them, and a creation must stay within 300 MB.
LONGEST_DIRECTORY_BYTES = 16 << 20
#: The longest path that a system takes is 4096 bytes; a link's target is read while listing.
_LONGEST_TARGET_BYTES = 4096
_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_UNIX, _DARWIN = 3, 19


def list_zip(opening: Opening, blocks: Blocks, pin: str, listing: Listing, label: str) -> None:
    """Put the members of the zip in ``blocks`` into the listing."""
    members = _directory(blocks, label)
    check_entries(label, len(members), opening.limits)
    _check_overlap(members, blocks, label)
    Expansion(label, opening.limits).check(blocks.size_bytes, sum(each.file_size for each in members))
    for number, info in enumerate(members):
        if number % 256 == 0:
            opening.check_cancelled()
        entry = _Member(opening, blocks, pin, info, label).entry()
        if entry is not None:
            listing.add(entry)


def _directory(blocks: Blocks, label: str) -> list[zipfile.ZipInfo]:
    view = SeekableView(blocks, label, LONGEST_DIRECTORY_BYTES)
    try:
        with zipfile.ZipFile(cast("IO[bytes]", view)) as archive:
            return archive.infolist()
    except CkptfsError:
        raise
    except Exception as error:
        # A hostile directory makes zipfile raise nearly anything (struct.error, NotImplementedError).
        raise SourceCorrupt(
            f"{label} is truncated or damaged: its directory does not make sense ({error})"
        ) from error
    finally:
        view.close()


def _check_overlap(members: list[zipfile.ZipInfo], blocks: Blocks, label: str) -> None:
    end = 0
    for info in sorted(members, key=lambda each: each.header_offset):
        if info.header_offset < end or info.compress_size < 0:
            raise SourceRefused(f"{label}: its members overlap: it is damaged, or a decompression bomb")
        end = info.header_offset + _LOCAL_HEADER.size + info.compress_size
    if end > blocks.size_bytes:
        raise SourceCorrupt(f"{label} is truncated: its members reach beyond its end")


def raw_name(info: zipfile.ZipInfo) -> bytes:
    """A member's name as bytes: what is not marked as UTF-8 is often UTF-8 all the same."""
    if info.flag_bits & _UTF8:
        return info.orig_filename.encode("utf-8", "surrogateescape")
    name = info.orig_filename.encode("cp437")
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return info.orig_filename.encode("utf-8")
    return name


class _Member:
    """One entry of the directory, and where its bytes lie."""

    def __init__(self, opening: Opening, blocks: Blocks, pin: str, info: zipfile.ZipInfo, label: str) -> None:
        self._opening = opening
        self._blocks = blocks
        self._info = info
        self._path = raw_name(info)
        self._label = f"{label}: {show_path(self._path)}"
        self._pin = f"{pin}@{info.header_offset}:{info.CRC:08x}"
        self._data_start: int | None = None

    def entry(self) -> SourceEntry | None:
        info = self._info
        mode = info.external_attr >> 16 if info.create_system in (_UNIX, _DARWIN) else 0
        if self._path.endswith(b"/") or stat.S_ISDIR(mode):
            return None if is_root(self._path) else SourceDirectory(self._path)
        if info.flag_bits & _ENCRYPTED:
            raise SourceRefused(f"{self._label} is encrypted; decrypt the archive first")
        if stat.S_ISLNK(mode):
            return SourceLink(self._path, self._target())
        # Many writers leave the type bits out; then it is an ordinary file.
        what = what_is_special(mode if stat.S_IFMT(mode) else mode | stat.S_IFREG)
        if what:
            return SourceSpecial(self._path, what)
        executable = bool(mode & 0o111)
        if info.compress_type == zipfile.ZIP_STORED:
            if info.compress_size != info.file_size:
                raise SourceCorrupt(
                    f"{self._label} is stored in {info.compress_size} bytes and says it has {info.file_size}"
                )
            ranged = CheckedRange(self._content, info.file_size, info.CRC, self._label)
            return SourceFile(self._path, info.file_size, executable, self._pin, ranged=ranged)
        make = zip_decoder(info)
        if make is None:
            raise SourceRefused(
                f"{self._label} is compressed by method {info.compress_type} "
                f"({zipfile.compressor_names.get(info.compress_type, 'unknown')}), "  # type: ignore[attr-defined]
                "which is not supported; compress the archive again with deflate or zstd"
            )
        stream = partial(self._stream, make)
        return SourceFile(self._path, info.file_size, executable, self._pin, stream=stream)

    def _stream(self, make: Callable[[], Decoder]) -> ByteStream:
        info = self._info
        plain = Decompressing(
            RangedStream(self._content()),
            make,
            Expansion(self._label, self._opening.limits),
            input_bytes=max(16, min(info.compress_size, self._blocks.block_bytes)),
        )
        return CheckedStream(plain, info.file_size, info.CRC, self._label)

    def _content(self) -> SubRange:
        """The member's bytes as they are stored. The local header says where they begin."""
        if self._data_start is None:
            self._data_start = self._find_data()
        return SubRange(self._blocks, self._data_start, self._info.compress_size)

    def _find_data(self) -> int:
        info = self._info
        head = bytearray(_LOCAL_HEADER.size)
        self._blocks.read_at(info.header_offset, memoryview(head))
        fields = _LOCAL_HEADER.unpack(head)
        magic, flags, name_length, extra_length = fields[0], fields[2], fields[9], fields[10]
        start: int = info.header_offset + len(head) + name_length + extra_length
        end = start + info.compress_size
        if magic != b"PK\x03\x04" or flags & _ENCRYPTED or end > self._blocks.size_bytes:
            raise SourceCorrupt(f"{self._label}: its own header and the archive's directory disagree")
        return start

    def _target(self) -> bytes:
        if not 0 < self._info.file_size <= _LONGEST_TARGET_BYTES:
            raise SourceRefused(f"{self._label}: a symbolic link of {self._info.file_size} bytes")
        make = zip_decoder(self._info)
        target = memoryview(bytearray(self._info.file_size))
        if self._info.compress_type == zipfile.ZIP_STORED:
            stream: ByteStream = CheckedStream(
                RangedStream(self._content()), self._info.file_size, self._info.CRC, self._label
            )
        elif make is not None:
            stream = self._stream(make)
        else:
            raise SourceRefused(f"{self._label} is compressed by a method that is not supported")
        done = 0
        while done < len(target) and (got := stream.readinto(target[done:])):
            done += got
        stream.readinto(memoryview(bytearray(1)))  # the end: where the CRC is compared
        return bytes(target)
