"""The first exchange on a FUSE connection: the kernel's INIT request, and what we answer to it.

Pure functions from bytes to bytes. libfuse does not send this answer for us, because whoever mounts
does: so it can ask for what libfuse 3.14 knows nothing of (passthrough, resend) and need not ask for
what it would (splice). libfuse is shown the same request later (takeover.py) and believes that its own
answer was heard, so both must agree on everything that changes the form of a request: that is why
READDIRPLUS is asked for without "auto", as pyfuse3 does.

Layout and numbers: include/uapi/linux/fuse.h of Linux 6.18 (protocol 7.45), little endian as the
machine; all fields of both messages are native-endian in the kernel.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

OPCODE_INIT = 26

# len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
REQUEST_HEADER = struct.Struct("=IIQQIIIHH")
# len, error, unique
REPLY_HEADER = struct.Struct("=IiQ")

# major, minor, max_readahead, flags, flags2; the rest (44 bytes) is reserved
_INIT_IN = struct.Struct("=IIIII")
_INIT_IN_SHORT = struct.Struct("=IIII")  # before 7.36
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, request_timeout, and 22 bytes reserved
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")

# The version that we speak: the first with passthrough and resend.
_MAJOR, _MINOR = 7, 40

# A request must fit the reader's buffer together with this much data. Nothing is ever written to the
# mount, so we take the kernel's minimum and whoever reads the device needs 8 KiB.
_MAX_WRITE_BYTES = 4096
# The smallest buffer that the kernel lets read(2) on /dev/fuse use, with that.
READ_BUFFER_BYTES = 8192

_U16 = 0xFFFF


class Flag(IntFlag):
    """The bits of INIT that we use or look at."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


# What we ask for wherever the kernel offers it. Not AUTO_INVAL_DATA: nothing ever changes. ABORT_ERROR
# makes an abort through fusectl (ECONNABORTED) look different from an unmount (ENODEV).
_WANTED = (
    Flag.ASYNC_READ
    | Flag.ATOMIC_O_TRUNC
    | Flag.EXPORT_SUPPORT
    | Flag.BIG_WRITES
    | Flag.DO_READDIRPLUS
    | Flag.ASYNC_DIO
    | Flag.PARALLEL_DIROPS
    | Flag.ABORT_ERROR
    | Flag.MAX_PAGES
    | Flag.CACHE_SYMLINKS
    | Flag.INIT_EXT
)


class InitRequest(NamedTuple):
    """What the kernel offers. ``raw`` is the request as it was read."""

    raw: bytes
    unique: int
    major: int
    minor: int
    max_readahead_bytes: int
    flags: Flag

    @property
    def has_passthrough(self) -> bool:
        """Linux >= 6.9 with CONFIG_FUSE_PASSTHROUGH."""
        return bool(self.flags & Flag.PASSTHROUGH)

    @property
    def has_resend(self) -> bool:
        """Linux >= 6.9."""
        return bool(self.flags & Flag.HAS_RESEND)


class Wishes(NamedTuple):
    """What may be chosen in the answer. The kernel lowers what is too much."""

    # Requests in the background at a time (readahead, releases). The kernel's default of 12 lets twelve
    # slow reads stop the readahead of every other file.
    max_background: int = 4096
    # Pages a request may carry. With the reply's header and the odd page of bytes that do not begin with
    # one, it fits into a pipe of 256 pages (_splice.c), the largest that everybody may have. Twice as many
    # (max_pages_limit raised) made no read faster.
    max_pages: int = 252
    passthrough: bool = True
    # 1: backing files lie on a plain file system, and an overlay may be stacked on the mount. 2: backing
    # files may lie on an overlay themselves, and nothing can be stacked on the mount.
    max_stack_depth: int = 1


class NotInit(ValueError):
    """The bytes are no INIT request that we understand."""


def parse(request: bytes) -> InitRequest:
    if len(request) < REQUEST_HEADER.size + _INIT_IN_SHORT.size:
        raise NotInit(f"an INIT request of {len(request)} bytes is too short")
    length, opcode, unique = REQUEST_HEADER.unpack_from(request)[:3]
    if opcode != OPCODE_INIT or length != len(request):
        raise NotInit(f"not an INIT request: opcode {opcode}, length {length} of {len(request)} bytes")
    major, minor, max_readahead, flags = _INIT_IN_SHORT.unpack_from(request, REQUEST_HEADER.size)
    if flags & Flag.INIT_EXT and len(request) >= REQUEST_HEADER.size + _INIT_IN.size:
        flags |= _INIT_IN.unpack_from(request, REQUEST_HEADER.size)[4] << 32
    return InitRequest(request, unique, major, minor, max_readahead, Flag(flags))


def build(request: InitRequest, wishes: Wishes | None = None) -> bytes:
    """The answer, ready to be written to /dev/fuse. Raises :class:`NotInit` for a protocol before 7.23
    (Linux 3.15) or after major 7."""
    if request.major != _MAJOR or request.minor < 23:
        raise NotInit(f"the kernel speaks FUSE {request.major}.{request.minor}; 7.23 or newer is needed")
    wishes = wishes or Wishes()
    wanted = _WANTED | Flag.HAS_RESEND
    if wishes.passthrough:
        wanted |= Flag.PASSTHROUGH
    flags = int(wanted & request.flags)
    background = min(wishes.max_background, _U16)
    body = _INIT_OUT.pack(
        _MAJOR,
        min(request.minor, _MINOR),
        request.max_readahead_bytes,
        flags & 0xFFFFFFFF,
        background,
        background * 3 // 4,  # only matters to writeback; must not be more than max_background
        _MAX_WRITE_BYTES,
        1,  # ns: the granularity of times
        min(wishes.max_pages, _U16),
        0,
        flags >> 32,
        wishes.max_stack_depth if flags & Flag.PASSTHROUGH else 0,
        0,  # no request timeout: a request may wait for a worker that is being started
    )
    return REPLY_HEADER.pack(REPLY_HEADER.size + len(body), 0, request.unique) + body
