"""The INIT exchange, against what a real kernel sent and took (Linux 6.18, protocol 7.45)."""

from __future__ import annotations

import struct

import pytest

from ckptfs.fuse.init_reply import Flag, NotInit, Wishes, build, parse

# As read from /dev/fuse.
LINUX_6_18 = bytes.fromhex(
    "680000001a00000002000000000000000000000000000000000000000000000000000000000000000700"
    "00002d00000000000200fbffff73fd050000" + "00" * 44
)
# What it was answered with the defaults; passthrough and resend worked on that connection.
ANSWER = bytes.fromhex(
    "5000000000000000020000000000000007000000280000000000020039a0e4400010000c001000000100"
    "0000fc0000 00a0000000 01000000".replace(" ", "")
    + "00" * 24
)


def fields(answer: bytes) -> tuple[int, ...]:
    return struct.unpack("=IiQIIIIHHIIHHIIH22x", answer)


def test_what_the_kernel_sent_is_understood() -> None:
    request = parse(LINUX_6_18)
    assert len(LINUX_6_18) == 104
    assert (request.major, request.minor) == (7, 45)
    assert request.unique == 2
    assert request.max_readahead_bytes == 128 * 1024
    assert request.has_passthrough
    assert request.has_resend
    assert request.raw == LINUX_6_18


def test_what_the_kernel_took_is_what_we_send() -> None:
    assert build(parse(LINUX_6_18)) == ANSWER


def test_the_answer_says_what_was_wished() -> None:
    wishes = Wishes(max_background=100, max_pages=256, max_stack_depth=2)
    length, error, unique, major, _minor, readahead, flags, background, congestion, *rest = fields(
        build(parse(LINUX_6_18), wishes)
    )
    max_write, _granularity, max_pages, _, flags2, depth, timeout = rest
    assert (length, error, unique, major, readahead) == (80, 0, 2, 7, 131072)
    assert (background, congestion, max_pages, depth, timeout) == (100, 75, 256, 2, 0)
    assert max_write == 4096
    both = Flag(flags | flags2 << 32)
    assert Flag.PASSTHROUGH | Flag.HAS_RESEND | Flag.INIT_EXT in both
    assert Flag.DO_READDIRPLUS in both, "pyfuse3 has no plain readdir"
    assert not both & (1 << 14), "nor does it want READDIRPLUS_AUTO"
    assert not both & (1 << 16), "writeback cache and passthrough exclude each other"


def test_only_what_is_offered_is_asked_for() -> None:
    """A kernel of 6.1: no second word of flags that we know, protocol 7.37."""
    flags = Flag.ASYNC_READ | Flag.INIT_EXT | Flag.MAX_PAGES
    old = LINUX_6_18[:40] + struct.pack("=IIIII44x", 7, 37, 65536, flags, 0)
    request = parse(old)
    assert not request.has_passthrough
    assert not request.has_resend
    answer = fields(build(request))
    assert answer[4] == 37
    assert answer[6] == flags
    assert answer[13:15] == (0, 0), "neither flags2 nor a stack depth"


def test_a_request_without_the_extension_is_read_without_it() -> None:
    """A kernel before 5.17 sends 16 bytes; what follows them is not flags."""
    head = struct.pack("=IIQQIIIHH", 56, 26, 2, 0, 0, 0, 0, 0, 0)
    request = parse(head + struct.pack("=IIII", 7, 35, 131072, Flag.ASYNC_READ | Flag.PARALLEL_DIROPS))
    assert request.flags == Flag.ASYNC_READ | Flag.PARALLEL_DIROPS


def test_passthrough_can_be_left_out() -> None:
    answer = fields(build(parse(LINUX_6_18), Wishes(passthrough=False)))
    assert not Flag(answer[13] << 32) & Flag.PASSTHROUGH
    assert answer[14] == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        LINUX_6_18[:50],
        LINUX_6_18 + b"\0",
        LINUX_6_18[:4] + struct.pack("=I", 15) + LINUX_6_18[8:],
    ],
    ids=["empty", "short", "long", "a READ"],
)
def test_what_is_no_init_request_is_refused(request_bytes: bytes) -> None:
    with pytest.raises(NotInit):
        parse(request_bytes)


@pytest.mark.parametrize(("major", "minor"), [(8, 0), (7, 22), (6, 99)])
def test_a_protocol_that_we_do_not_speak_is_refused(major: int, minor: int) -> None:
    request = parse(LINUX_6_18)._replace(major=major, minor=minor)
    with pytest.raises(NotInit, match=f"{major}.{minor}"):
        build(request)
