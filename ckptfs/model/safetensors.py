"""The directory of a safetensors file: 8 bytes of length, a JSON header, then the tensors.

Format: https://huggingface.co/docs/safetensors/index#format. As there, tensors leave no holes and do
not overlap; unlike there, dtype and shape are not looked at, so that new dtypes change no cuts.
"""

from __future__ import annotations

import msgspec

from ckptfs.model.prefix import DIRECTORY_LIMIT_BYTES, SEGMENTS_LIMIT, Read

_LENGTH_BYTES = 8
_METADATA = "__metadata__"

#: A header nests three deep: the object, a tensor, its shape. The bound is far below the depth at which
#: a parser gives up, which depends on the machine, and ids must not.
_DEPTH_LIMIT = 8

#: Ten quotes make a tensor's entry.
_QUOTES_LIMIT = 16 * SEGMENTS_LIMIT


class _Entry(msgspec.Struct):
    # The metadata are an object of strings, so a string can come by here.
    data_offsets: tuple[int, int] | str | None = None


_decoder = msgspec.json.Decoder(dict[str, _Entry])
_not_brackets = bytes(set(range(256)) - set(b"[]{}"))


def looks_like(head: bytes, size_bytes: int) -> bool:
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return (
        head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"
        and length <= DIRECTORY_LIMIT_BYTES
        and _LENGTH_BYTES + length <= size_bytes
    )


def segments(size_bytes: int, read: Read) -> list[int] | None:
    """Borders of the header and the tensors, from 0 to the size; None when the header lies."""
    length = int.from_bytes(read(0, _LENGTH_BYTES), "little")
    data_start = _LENGTH_BYTES + length
    if length > DIRECTORY_LIMIT_BYTES or data_start > size_bytes:
        return None
    header = read(_LENGTH_BYTES, length)
    if not _is_modest(header):
        return None
    try:
        entries = _decoder.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    spans: list[tuple[int, int]] = []
    for name, entry in entries.items():
        if name == _METADATA:
            continue
        if not isinstance(entry.data_offsets, tuple):
            return None
        spans.append(entry.data_offsets)
    spans.sort()
    cuts = [0, data_start]
    end = 0
    for begin, end_of_tensor in spans:
        if begin != end or end_of_tensor < begin:
            return None
        if end_of_tensor > end:
            end = end_of_tensor
            cuts.append(data_start + end)
    return cuts if cuts[-1] == size_bytes else None


def _is_modest(header: bytes) -> bool:
    """Whether decoding it takes bounded memory and depth, and all of it is text."""
    if header.count(b"{") > SEGMENTS_LIMIT or header.count(b'"') > _QUOTES_LIMIT:
        return False
    if not header.isascii():
        try:
            header.decode()
        except UnicodeDecodeError:
            return False
    outside_strings = header.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside_strings).translate(None, delete=_not_brackets)
    for _ in range(_DEPTH_LIMIT):
        # the innermost pairs only: the dot keeps those around them apart until all are found
        brackets = brackets.replace(b"[]", b".").replace(b"{}", b".").replace(b".", b"")
    return not brackets
