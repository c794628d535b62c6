"""Compressed bytes as a stream of plain ones: bounded in memory, in output, and exact at the end.

All decoders have the face of the standard library's (``decompress(data, max_length)``, ``eof``,
``needs_input``, ``unused_data``), so one loop serves them all: files of several members, padding,
truncation and trailing garbage are treated alike. (python-zstandard's stream reader is not used: it
takes a truncated frame for a complete one.)
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

from isal import igzip_lib

from ckptfs.errors import SourceCorrupt, SourceRefused
from ckptfs.source.archive.detect import HEAD_BYTES, Form, form_of
from ckptfs.source.base import ByteStream
from ckptfs.source.limits import Limits
from ckptfs.source.listing import check_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What a decoder is asked for at once: stays in the CPU's cache until it is copied on.
_OUTPUT_BYTES = 512 << 10
#: What is read of the compressed bytes at once.
INPUT_BYTES = 256 << 10
#: The most memory that a stream's own window may ask for: xz -9 needs 65 MiB, zstd --long=27 128 MiB.
WINDOW_BYTES = 192 << 20
ZSTD_WINDOW_LOG = 27


class Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


def _gzip() -> Decoder:
    return cast("Decoder", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))


def _inflate() -> Decoder:
    return cast("Decoder", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE))


def _bz2() -> Decoder:
    return cast("Decoder", bz2.BZ2Decompressor())


def _xz() -> Decoder:
    return cast("Decoder", lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_BYTES))


def _zstd() -> Decoder:
    return cast(
        "Decoder",
        zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}),
    )


DECODERS: dict[Form, Callable[[], Decoder]] = {
    Form.GZIP: _gzip,
    Form.BZ2: _bz2,
    Form.XZ: _xz,
    Form.ZSTD: _zstd,
}


class _ZipLzma:
    """LZMA as zips have it: a header of their own, from which the decoder's usual one is made."""

    def __init__(self, size_bytes: int, has_end_mark: bool) -> None:
        self._lzma = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=WINDOW_BYTES)
        self._head = b""
        self._size = b"\xff" * 8 if has_end_mark else size_bytes.to_bytes(8, "little")

    @property
    def eof(self) -> bool:
        return self._lzma.eof

    @property
    def needs_input(self) -> bool:
        return self._lzma.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._lzma.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        if self._size:
            self._head += bytes(data)
            if len(self._head) < 9:  # version (2), length of the properties (2), properties (5)
                return b""
            if self._head[2:4] != b"\5\0":
                raise ValueError("LZMA properties of an unknown length")
            data = self._head[4:9] + self._size + self._head[9:]
            self._size = b""
        return self._lzma.decompress(data, max_length)


def zip_decoder(info: zipfile.ZipInfo) -> Callable[[], Decoder] | None:
    """What decodes a zip's member; None for a method that is not supported."""
    if info.compress_type == zipfile.ZIP_LZMA:
        return partial(_ZipLzma, info.file_size, bool(info.flag_bits & 0x2))
    return {zipfile.ZIP_DEFLATED: _inflate, zipfile.ZIP_BZIP2: _bz2, ZIP_ZSTD: _zstd}.get(info.compress_type)


#: The number of Zstandard in zips (APPNOTE 4.4.5); zipfile knows it since Python 3.14.
ZIP_ZSTD = 93

#: What decoders raise for bad input. OSError is bz2's; nothing here does I/O.
_DECODER_ERRORS: tuple[type[Exception], ...] = (
    cast("type[Exception]", igzip_lib.IsalError),
    lzma.LZMAError,
    zstd.ZstdError,
    OSError,
    EOFError,
    ValueError,
)


class Expansion:
    """Bounds what an archive grows to: absolutely, and in proportion to what was read of it."""

    def __init__(self, label: str, limits: Limits) -> None:
        self.label = label
        self._limits = limits
        self._in = 0
        self._out = 0

    def add(self, in_bytes: int, out_bytes: int) -> None:
        self._in += in_bytes
        self._out += out_bytes
        self.check(self._in, self._out)

    def check(self, in_bytes: int, out_bytes: int) -> None:
        limits = self._limits
        check_size(self.label, out_bytes, limits)
        if out_bytes > limits.expansion_floor_bytes and out_bytes > limits.max_expansion * in_bytes:
            raise SourceRefused(
                f"{self.label} is a decompression bomb: {in_bytes:,} bytes became {out_bytes:,}, more than "
                f"{limits.max_expansion} times as many; unpack it yourself if you trust it"
            )


class Decompressing:
    """The plain bytes of a compressed stream (:class:`~ckptfs.source.base.ByteStream`).

    ``form`` given: members of that form may follow each other, and zeros may pad the end. None: one
    member and nothing after it, as in a zip.
    """

    def __init__(
        self,
        source: ByteStream,
        make: Callable[[], Decoder],
        expansion: Expansion,
        *,
        form: Form | None = None,
        input_bytes: int = INPUT_BYTES,
    ) -> None:
        self._source = source
        self._make = make
        self._decoder = make()
        self._expansion = expansion
        self._form = form
        self._input = memoryview(bytearray(max(input_bytes, 16)))
        self._waiting = b""  # read already, not yet given to the decoder
        self._started = False
        self._ended = False

    def readinto(self, buffer: memoryview, /) -> int:
        while buffer and not self._ended:
            if self._decoder.eof:
                self._next_member()
                continue
            data = self._more() if self._decoder.needs_input else memoryview(b"")
            try:
                plain = self._decoder.decompress(data, min(len(buffer), _OUTPUT_BYTES))
            except _DECODER_ERRORS as error:
                raise self._corrupt(error) from error
            self._expansion.add(len(data), len(plain))
            if plain:
                buffer[: len(plain)] = plain
                return len(plain)
        return 0

    def _more(self) -> memoryview:
        if self._waiting:
            data, self._waiting = memoryview(self._waiting), b""
            return data
        got = self._source.readinto(self._input)
        if not got:
            raise SourceCorrupt(f"{self._expansion.label} is truncated: its compressed data ends in mid-way")
        return self._input[:got]

    def _next_member(self) -> None:
        """After a member: another one, padding, or the end. Anything else is damage."""
        rest = self._decoder.unused_data
        if self._form is None:
            if rest or self._source.readinto(self._input[:1]):
                raise SourceCorrupt(f"{self._expansion.label}: there is data after its end")
            self._ended = True
            return
        rest = self._rest(rest)
        if not rest:
            self._ended = True
        elif form_of(rest.ljust(HEAD_BYTES, b"\1")) is self._form:
            self._decoder = self._make()
            self._waiting = rest
        else:
            raise SourceCorrupt(f"{self._expansion.label}: there is something else after its compressed data")

    def _rest(self, rest: bytes) -> bytes:
        """What follows, without padding: enough to tell whether it is another member."""
        while True:
            rest = rest.lstrip(b"\0")
            if len(rest) >= 16:
                return rest
            got = self._source.readinto(self._input)
            if not got:
                return rest
            rest += bytes(self._input[:got])

    def _corrupt(self, error: Exception) -> SourceCorrupt | SourceRefused:
        text = str(error)
        if "emory usage limit" in text or "window" in text.lower() or "memory" in text.lower():
            return SourceRefused(
                f"{self._expansion.label} wants more than {WINDOW_BYTES >> 20} MiB of memory to be "
                "decompressed "
                "(a very long window); compress it with ordinary settings"
            )
        return SourceCorrupt(
            f"{self._expansion.label} is damaged: its compressed data does not decode ({text})"
        )

    def close(self) -> None:
        self._source.close()
