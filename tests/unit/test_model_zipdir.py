"""Real zip files of every make are cut where the bodies of their members lie."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import NoSeek, Reader, cut, npz_bytes, random_array, starts

from ckptfs.model.boundaries import grid
from ckptfs.model.chunking import HEAD_BYTES, Container, lengths, sniff
from ckptfs.model.zipdir import segments

A, B, C = (random.Random(i).randbytes(n) for i, n in enumerate((100_000, 30_000, 5_000_000)))
MEMBERS = {
    "m/data/0": A,
    "m/small": b"x" * 100,
    "m/data/1": B,
    "m/empty": b"",
    "m/data/2": C,
    "m/version": b"3\n",
}


def archive(
    members: dict[str, bytes] = MEMBERS, *, method: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
        file.comment = comment
    return buffer.getvalue()


def streamed(*, force_zip64: bool = False) -> bytes:
    stream = NoSeek()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in MEMBERS.items():
            with file.open(name, "w", force_zip64=force_zip64) as member:
                member.write(data)
    return bytes(stream.buffer)


def padded() -> bytes:
    """Extra fields in the local header alone, as torch pads to 64 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in MEMBERS.items():
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<2H", 0x4246, 40) + b"Z" * 40
            file.writestr(info, data)
            info.extra = b""
    return buffer.getvalue()


def appended() -> bytes:
    """Members added later: the old central directory is overwritten."""
    buffer = io.BytesIO()
    for name, data in MEMBERS.items():
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr(name, data)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[], bytes]] = {
    "plain": archive,
    "with a comment": lambda: archive(comment=b"a comment"),
    "with the longest comment": lambda: archive(comment=b"c" * 65535),
    "streamed": streamed,
    "padded": padded,
    "appended": appended,
}


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the bodies lie by their local headers, which our own rules never read."""
    result = {}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for info in file.infolist():
            name_bytes, extra_bytes = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name_bytes + extra_bytes
            result[info.filename] = (start, start + info.compress_size)
    return result


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_cuts_lie_where_large_bodies_begin_and_end(make: Callable[[], bytes]) -> None:
    data = make()
    assert sniff(data[:HEAD_BYTES], len(data)) is Container.ZIP
    borders = starts(data)
    for name in ("m/data/0", "m/data/1", "m/data/2"):
        assert set(places(data)[name]) <= borders, name


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_bodies_are_cut_apart_too(method: int) -> None:
    data = archive(method=method)
    borders = starts(data)
    for name in ("m/data/0", "m/data/1", "m/data/2"):
        assert set(places(data)[name]) <= borders


def test_a_comment_that_looks_like_the_end_of_an_archive() -> None:
    """The end record is the one whose comment reaches to the end of the file (zipfile is led astray)."""
    borders = starts(archive(comment=b"PK\x05\x06" * 100 + b" a comment"))
    for place in places(archive()).values():
        if place[1] - place[0] > 30_000:
            assert set(place) <= borders


def test_something_in_front_of_the_archive() -> None:
    """A second archive behind a first one: all offsets are off by the length of the first."""
    front = archive({"other": B})
    data = front + archive()
    borders = starts(data)
    for name in ("m/data/0", "m/data/1", "m/data/2"):
        assert set(places(data)[name]) <= borders


def test_a_self_extracting_program_is_an_ordinary_file() -> None:
    data = b"#!/bin/sh\nexit\n" + archive()
    assert cut(data) == grid(len(data))


def test_descriptors_of_another_size_shift_all_bodies_alike() -> None:
    """zipfile writes 24 bytes where the directory gives no reason to: equal bodies are still cut alike."""
    data = streamed(force_zip64=True)
    borders = starts(data)
    for name in ("m/data/0", "m/data/1", "m/data/2"):
        begin, end = places(data)[name]
        assert {begin + 8, end + 8} <= borders


def test_zip64_directory_and_records() -> None:
    """More than 65,535 members make zipfile write the zip64 end record."""
    members = {f"{i:x}": b"" for i in range(65_600)} | {"last": A}
    data = archive(members)
    assert data.rfind(b"PK\x06\x06") > 0
    assert set(places(data)["last"]) <= starts(data)


def test_zip64_sizes_and_offsets_in_extra_fields() -> None:
    """A member of over 4 GiB, laid out but never made: only the directory is read."""
    size = 5 << 30
    header = struct.Struct("<4s4xHH8xLLHHH8xL")
    full = 0xFFFFFFFF
    directory = b""
    offset = 0
    for name, body, descriptor in ((b"big", size, 0), (b"next", 50_000, 0), (b"streamed", 50_000, 24)):
        wide = [
            struct.pack("<Q", n)
            for n in ((body, body) if body > full else ()) + ((offset,) if offset > full else ())
        ]
        extra = struct.pack("<2H", 0x9999, 3) + b"abc" + struct.pack("<2H", 1, 8 * len(wide)) + b"".join(wide)
        small = min(body, full)
        flags = 8 if descriptor else 0
        fields = (b"PK\x01\x02", flags, 0, small, small, len(name), len(extra), 0, min(offset, full))
        directory += header.pack(*fields) + name + extra
        offset += 30 + len(name) + 20 + body + descriptor
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(directory), offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, full, full, 0)
    tail = directory + end64 + locator + end
    total = offset + len(tail)

    def read(at: int, length: int) -> bytes:
        assert 0 <= at <= at + length <= total
        return (bytes(length) + tail[max(0, at - offset) : max(0, at + length - offset)])[-length:]

    second = 53 + size + 54
    third = second + 50_000 + 58
    expected = {0, 53, 53 + size, second, second + 50_000, third, third + 50_000, offset, total}
    assert set(segments(total, read) or []) - {second - 54, third - 58} == expected - {
        second - 54,
        third - 58,
    }


def test_what_is_read_is_the_head_and_the_tail() -> None:
    data = archive()
    reader = Reader(data)
    lengths(len(data), reader)
    assert reader.reads == [(0, HEAD_BYTES), (len(data) - 65633, 65633)]


def test_an_array_is_cut_behind_its_header() -> None:
    data = npz_bytes({"w": random_array(1, 500, 100), "v": random_array(2, 300, 100)})
    borders = starts(data)
    for begin, end in places(data).values():
        assert {begin + 128, end} <= borders


def test_an_array_and_the_same_array_reshaped_share_their_chunks() -> None:
    array = random_array(1, 500, 1000)
    one, other = (npz_bytes({"w": a}) for a in (array, array.reshape(1000, 500)))
    (a, _), (b, _) = places(one)["w.npy"], places(other)["w.npy"]
    assert {n - a for n in starts(one)} & {n - b for n in starts(other)} >= {128}


def test_compressed_arrays() -> None:
    buffer = io.BytesIO()
    numpy.savez_compressed(buffer, w=random_array(1, 500, 100))
    data = buffer.getvalue()
    assert set(places(data)["w.npy"]) <= starts(data)


def test_a_file_of_no_members() -> None:
    assert cut(archive({})) == [22]


def damaged(data: bytes, needle: bytes, shift: int, value: bytes) -> bytes:
    at = data.rfind(needle) + shift
    return data[:at] + value + data[at + len(value) :]


LIES: dict[str, Callable[[bytes], bytes]] = {
    "no end": lambda d: d[:-22],
    "cut short": lambda d: d[: len(d) // 2],
    "something behind": lambda d: d + b"tail",
    "the directory begins before the file": lambda d: damaged(d, b"PK\x05\x06", 12, b"\xff\xff\xff\x7f"),
    "the directory is elsewhere": lambda d: damaged(d, b"PK\x05\x06", 16, b"\xff\xff\xff\x7f"),
    "the directory has a wrong length": lambda d: damaged(d, b"PK\x05\x06", 12, b"\x01\x00\x00\x00"),
    "a header points behind the directory": lambda d: damaged(d, b"PK\x01\x02", 42, b"\xff\xff\xff\x7f"),
    "a header points into the directory": lambda d: damaged(
        d, b"PK\x01\x02", 42, struct.pack("<L", d.find(b"PK\x01\x02") + 10)
    ),
    "two headers in one place": lambda d: damaged(d, b"PK\x01\x02", 42, b"\x00\x00\x00\x00"),
    "a name that reaches over the end": lambda d: damaged(d, b"PK\x01\x02", 28, b"\xff\xff"),
    "another signature": lambda d: damaged(d, b"PK\x01\x02", 0, b"PK\x01\x03"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_directory_that_lies_makes_an_ordinary_file(lie: Callable[[bytes], bytes]) -> None:
    data = lie(archive())
    assert cut(data) == grid(len(data))


def test_a_size_that_lies_is_not_cut_inside() -> None:
    """The others are cut as ever: the place of each follows from its neighbour's header."""
    data = archive({"a": A, "b": B})
    lying = damaged(data, b"PK\x01\x02", 20, b"\xff\xff\xff\x7f")
    (begin_a, end_a), (begin_b, _) = places(data).values()
    borders = starts(lying)
    assert {begin_a, end_a} <= borders
    assert begin_b not in borders


def test_overlapping_members_as_bombs_have_them() -> None:
    """Many central headers for one body."""
    data = archive({"a": A})
    at = data.rfind(b"PK\x01\x02")
    entry, end = data[at:-22], data[-22:]
    directory = entry * 1000
    bomb = data[:at] + directory + end[:8] + struct.pack("<2H2L", 1000, 1000, len(directory), at) + end[20:]
    assert cut(bomb) == grid(len(bomb))


def test_a_directory_of_too_many_members() -> None:
    entry = struct.pack("<4s4xHH8xLLHHH8xL", b"PK\x01\x02", 0, 0, 0, 0, 0, 0, 0, 0)
    directory = entry * ((1 << 18) + 1)
    data = (
        b"PK\x03\x04" + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, len(directory), 4, 0)
    )
    assert cut(data) == grid(len(data))


@given(st.data())
def test_any_damage_to_a_directory_gives_chunks_that_add_up(choice: st.DataObject) -> None:
    data = bytearray(archive({"a/0": A, "b": B, "c": b"", "d": b"xx"}))
    first = data.find(b"PK\x01\x02")
    for _ in range(choice.draw(st.integers(1, 6))):
        at = choice.draw(st.integers(first, len(data) - 1))
        data[at] = choice.draw(st.integers(0, 255))
    cut(bytes(data[: choice.draw(st.integers(0, len(data)))] if choice.draw(st.booleans()) else data))
