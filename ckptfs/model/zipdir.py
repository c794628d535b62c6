"""The directory of a zip file (`torch.save`, `.npz`): its central directory, at the end.

Format: APPNOTE.TXT 6.3 (zip64 included). Local headers lie among the bodies, so they are not read:
where a member's data begins is computed backwards from the next member's header. Where that is not
quite so (a descriptor of an unusual size, a gap) the cut is off by a few bytes in the same way for
equal members, and costs nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.model.prefix import DIRECTORY_LIMIT_BYTES, SEGMENTS_LIMIT, Lie, Read

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
# signature, flags, method, compressed and full size, lengths of name, extra and comment, header offset
_CENTRAL = struct.Struct("<4s4xHH8xLLHHH8xL")
_LOCAL_BYTES = 30
_MAX_COMMENT_BYTES = 0xFFFF
_FULL32 = 0xFFFFFFFF

_HAS_DESCRIPTOR = 0x0008
_STORED = 0

#: A `.npy` member opens with a header of 128 bytes that names the shape: cut there, the rows of an array
#: that has grown keep their chunks. (numpy pads it to a multiple of 64; 128 is what it comes to.)
_NPY_HEADER_BYTES = 128


@dataclass(slots=True, order=True)
class _Member:
    header_offset: int
    name: bytes
    flags: int
    method: int
    compressed_bytes: int
    size_bytes: int


def looks_like(head: bytes) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def segments(size_bytes: int, read: Read) -> list[int] | None:
    """Borders of local headers, bodies and the central directory; None when the directory lies."""
    try:
        directory_start, directory, shift = _central_directory(size_bytes, read)
        return _cuts(sorted(_members(directory)), shift, directory_start, size_bytes)
    except Lie:
        return None


def _central_directory(size_bytes: int, read: Read) -> tuple[int, bytes, int]:
    """Where it starts, its bytes, and how many bytes were put in front of the archive."""
    tail_bytes = min(size_bytes, _LOCATOR.size + _END64.size + _END.size + _MAX_COMMENT_BYTES)
    tail_start = size_bytes - tail_bytes
    tail = read(tail_start, tail_bytes)
    end = _end_record(tail)
    *_, length, offset, _comment = _END.unpack_from(tail, end)
    directory_end = end
    locator = end - _LOCATOR.size
    end64 = locator - _END64.size
    if end64 >= 0 and tail.startswith(b"PK\x06\x07", locator) and tail.startswith(b"PK\x06\x06", end64):
        *_, length, offset = _END64.unpack_from(tail, end64)
        directory_end = end64
    directory_start = tail_start + directory_end - length
    shift = directory_start - offset
    if length > DIRECTORY_LIMIT_BYTES or directory_start < 0 or shift < 0:
        raise Lie("the central directory is not where it should be")
    if directory_start >= tail_start:
        return directory_start, tail[directory_end - length : directory_end], shift
    return directory_start, read(directory_start, length), shift


def _end_record(tail: bytes) -> int:
    """The last place that holds an end record whose comment reaches to the end of the file."""
    position = len(tail)
    while True:
        position = tail.rfind(b"PK\x05\x06", 0, position)
        if position < 0:
            raise Lie("no end of central directory")
        if position + _END.size <= len(tail):
            comment_bytes = _END.unpack_from(tail, position)[-1]
            if position + _END.size + comment_bytes == len(tail):
                return position


def _members(directory: bytes) -> Iterator[_Member]:
    position = count = 0
    while position < len(directory):
        count += 1
        if position + _CENTRAL.size > len(directory) or count > SEGMENTS_LIMIT:
            raise Lie("the central directory is cut short or too long")
        fields = _CENTRAL.unpack_from(directory, position)
        signature, flags, method, compressed, size, name_bytes, extra_bytes, comment_bytes, offset = fields
        if signature != b"PK\x01\x02":
            raise Lie("not a central header")
        name_start = position + _CENTRAL.size
        extra_start = name_start + name_bytes
        position = extra_start + extra_bytes + comment_bytes
        if position > len(directory):
            raise Lie("a central header reaches beyond the directory")
        if _FULL32 in (size, compressed, offset):
            extra = directory[extra_start : extra_start + extra_bytes]
            size, compressed, offset = _zip64(extra, size, compressed, offset)
        name = directory[name_start:extra_start]
        yield _Member(offset, name, flags, method, compressed, size)


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Fill in the values that did not fit into 32 bits, in the order that the format fixes."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            wide = iter(struct.iter_unpack("<Q", extra[position : position + length // 8 * 8]))
            return [next(wide, (value,))[0] if value == _FULL32 else value for value in values]
        position += length
    return list(values)


def _cuts(members: list[_Member], shift: int, directory_start: int, size_bytes: int) -> list[int]:
    cuts = {0, directory_start, size_bytes}
    starts = [member.header_offset + shift for member in members]
    for member, start, following in zip(members, starts, [*starts, directory_start][1:], strict=True):
        if following <= start:
            raise Lie("members overlap each other or the directory")
        cuts.add(start)
        descriptor_bytes = 0
        if member.flags & _HAS_DESCRIPTOR:
            wide = member.size_bytes >= _FULL32 or member.header_offset >= _FULL32
            descriptor_bytes = 24 if wide else 16
        data_end = following - descriptor_bytes
        data_start = data_end - member.compressed_bytes
        if data_start < start + _LOCAL_BYTES + len(member.name):
            continue
        cuts.add(data_start)
        cuts.add(data_end)
        if (
            member.method == _STORED
            and member.name.endswith(b".npy")
            and member.compressed_bytes > _NPY_HEADER_BYTES
        ):
            cuts.add(data_start + _NPY_HEADER_BYTES)
    return sorted(cuts)
