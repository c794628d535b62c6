"""The directory of a GGUF file: key-value metadata and tensor infos in front, then aligned tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, either byte order.
Tensor sizes would need the table of ggml types, which grows: only the offsets are used, so a tensor's
segment reaches to the next one and includes its padding.
"""

from __future__ import annotations

import struct

from ckptfs.model.prefix import SEGMENTS_LIMIT, Lie, Prefix, Read

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 8  # ggml has 4

_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def looks_like(head: bytes) -> bool:
    return head[:4] == _MAGIC


def segments(size_bytes: int, read: Read) -> list[int] | None:
    """Borders of the header and the tensors, from 0 to the size; None when the header lies."""
    try:
        return _Header(size_bytes, read).segments(size_bytes)
    except Lie:
        return None


class _Header:
    """Walks the header once. Keeps nothing but the alignment and the tensors' offsets."""

    def __init__(self, size_bytes: int, read: Read) -> None:
        self._prefix = prefix = Prefix(size_bytes, read)
        prefix.need(8)
        little, big = (int.from_bytes(prefix.buffer[4:8], order) for order in ("little", "big"))
        if little not in _VERSIONS and big not in _VERSIONS:
            raise Lie("an unknown version")
        order = "<" if little in _VERSIONS else ">"
        self._u32 = struct.Struct(order + "I")
        self._u64 = struct.Struct(order + "Q")

    def segments(self, size_bytes: int) -> list[int]:
        tensors, pairs = self._int64(), self._int64()
        if tensors > SEGMENTS_LIMIT:
            raise Lie("too many tensors")
        alignment = self._alignment(pairs)
        offsets = [self._tensor_offset() for _ in range(tensors)]
        data_start = -(-self._prefix.position // alignment) * alignment
        if data_start > size_bytes:
            raise Lie("the file ends in its header")
        if any(offset % alignment or data_start + offset > size_bytes for offset in offsets):
            raise Lie("a tensor lies outside the file or out of line")
        return sorted({0, data_start, size_bytes, *(data_start + offset for offset in offsets)})

    def _alignment(self, pairs: int) -> int:
        alignment = _DEFAULT_ALIGNMENT
        prefix = self._prefix
        for _ in range(pairs):
            key_length = self._int64()
            key_start = prefix.need(key_length)
            key = bytes(prefix.buffer[key_start : key_start + key_length])
            kind = self._int32()
            if key == b"general.alignment":
                if kind != _UINT32:
                    raise Lie("the alignment is not a uint32")
                alignment = self._int32()
                if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
                    raise Lie("the alignment is not a power of two")
            else:
                self._skip_value(kind)
        return alignment

    def _skip_value(self, kind: int) -> None:
        if kind == _ARRAY:
            kind = self._int32()
            count = self._int64()
        else:
            count = 1
        if kind == _STRING:
            self._skip_strings(count)
        elif kind in _SCALAR_BYTES:
            self._prefix.need(_SCALAR_BYTES[kind] * count)
        else:
            raise Lie("an unknown or nested type")

    def _skip_strings(self, count: int) -> None:
        # A tokenizer has 150,000 or more: this is the loop that counts.
        need = self._prefix.need
        buffer = self._prefix.buffer
        unpack_from = self._u64.unpack_from
        for _ in range(count):
            need(unpack_from(buffer, need(8))[0])

    def _tensor_offset(self) -> int:
        self._prefix.need(self._int64())  # the name
        dimensions = self._int32()
        if dimensions > _MAX_DIMENSIONS:
            raise Lie("too many dimensions")
        self._prefix.need(8 * dimensions + 4)  # the shape and the type
        return self._int64()

    def _int32(self) -> int:
        return int(self._u32.unpack_from(self._prefix.buffer, self._prefix.need(4))[0])

    def _int64(self) -> int:
        return int(self._u64.unpack_from(self._prefix.buffer, self._prefix.need(8))[0])
