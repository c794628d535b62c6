"""One value has one encoding, and nothing else is read."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import StoreDamaged
from ckptfs.model.manifest import MAGIC, VERSION, Directory, Entry, File, Link, decode, encode, identity, of

D = b"d" * 32
GOOD: list[Entry] = [
    Directory(b"a"),
    File(b"a/x", True, 5, [2, 3], D + D),
    File(b"empty", False, 0, [], b""),
    Link(b"l", b"a/x"),
]


def test_there_and_back() -> None:
    manifest = of(list(reversed(GOOD)))
    data = encode(manifest)
    assert decode(data) == manifest
    assert manifest.entries == GOOD
    assert manifest.size_bytes == 5
    assert manifest.file_count == 2
    assert [index for index, _ in manifest.files()] == [1, 2]
    assert list(GOOD[1].recipe()) == [(0, 2, D), (2, 3, D)]  # type: ignore[union-attr]


def test_the_identity_covers_what_it_should() -> None:
    ids = {identity(encode(of(GOOD)))}
    for changed in (
        File(b"a/x", False, 5, [2, 3], D + D),
        File(b"a/x", True, 5, [3, 2], D + D),
        File(b"a/x", True, 5, [2, 3], D + b"e" * 32),
        File(b"a/y", True, 5, [2, 3], D + D),
        Link(b"a/x", b"5"),
        Directory(b"a/x"),
    ):
        ids.add(identity(encode(of([GOOD[0], changed, *GOOD[2:]]))))
    ids.add(identity(encode(of([*GOOD[:3], Link(b"l", b"a")]))))
    assert len(ids) == 8


BAD: dict[str, list[Entry]] = {
    "no parent": [Directory(b"a/b")],
    "below a file": [File(b"a", False, 0, [], b""), Directory(b"a/b")],
    "below a link": [Link(b"a", b"b"), Directory(b"a/b")],
    "twice": [Directory(b"a"), Directory(b"a")],
    "empty": [Directory(b"")],
    "absolute": [Directory(b"/a")],
    "the root of all": [Directory(b"/")],
    "dot": [Directory(b".")],
    "up": [Directory(b"..")],
    "up below": [Directory(b"a"), Directory(b"a/..")],
    "slash at the end": [Directory(b"a"), Directory(b"a/")],
    "NUL": [Directory(b"a\0")],
    "a long name": [Directory(b"x" * 256)],
    "no target": [Link(b"a", b"")],
    "NUL in a target": [Link(b"a", b"\0")],
    "sizes that do not add up": [File(b"a", False, 5, [2, 2], D + D)],
    "a digest too few": [File(b"a", False, 5, [2, 3], D)],
    "half a digest": [File(b"a", False, 5, [5], D[:16])],
    "an empty chunk": [File(b"a", False, 5, [5, 0], D + D)],
    "a negative chunk": [File(b"a", False, 5, [6, -1], D + D)],
    "a negative size": [File(b"a", False, -1, [-1], D)],
    "a size beyond all offsets": [File(b"a", False, 2**63, [2**63], D)],
}


@pytest.mark.parametrize("entries", BAD.values(), ids=BAD)
def test_what_is_no_tree_is_neither_made_nor_read(entries: list[Entry]) -> None:
    with pytest.raises(ValueError):
        of(entries)
    with pytest.raises(StoreDamaged):
        decode(msgspec.msgpack.encode([MAGIC, VERSION, entries]))


def test_another_order_is_not_read() -> None:
    with pytest.raises(StoreDamaged, match="out of order"):
        decode(msgspec.msgpack.encode([MAGIC, VERSION, [Directory(b"b"), Directory(b"a")]]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"not a manifest",
        msgspec.msgpack.encode(["another", VERSION, []]),
        msgspec.msgpack.encode([MAGIC, 2, []]),
        msgspec.msgpack.encode([MAGIC, VERSION]),
        msgspec.msgpack.encode([MAGIC, VERSION, [], 1]),
        msgspec.msgpack.encode([MAGIC, VERSION, [["x", b"a"]]]),
        msgspec.msgpack.encode([MAGIC, VERSION, [["d", "a"]]]),
        msgspec.msgpack.encode([MAGIC, VERSION, [["d", b"a", 1]]]),
        msgspec.msgpack.encode([MAGIC, VERSION, [["f", b"a", 1, 0, [], b""]]]),
        msgspec.msgpack.encode([MAGIC, VERSION, []]) + b"\0",
        b"\x93\xaf\xff" + b"\xff" * 14 + b"\x01\x90",
        b"\x91" * 100_000,
    ],
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(StoreDamaged):
        decode(data)


def test_a_longer_encoding_of_the_same_value_is_not_read() -> None:
    data = encode(of([Directory(b"a")]))
    at = data.index(b"\xc4\x01a")  # bin 8, one byte
    longer = data[:at] + b"\xc5\x00\x01a" + data[at + 3 :]  # bin 16
    assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(data)
    with pytest.raises(StoreDamaged, match="canonical"):
        decode(longer)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for candidate in (data, b"\x93\xafckptfs-manifest\x01" + data):
        with contextlib.suppress(StoreDamaged):
            decode(candidate)


@given(st.data())
def test_a_flipped_bit_is_refused_or_another_manifest(choice: st.DataObject) -> None:
    good = encode(of(GOOD))
    data = bytearray(good)
    at = choice.draw(st.integers(0, len(data) - 1))
    data[at] ^= 1 << choice.draw(st.integers(0, 7))
    try:
        manifest = decode(bytes(data))
    except StoreDamaged:
        return
    assert encode(manifest) == bytes(data) != good
