"""Extents over a real store, and reads of every range through them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.engine.reader import Extent, FileReader, extents_of
from ckptfs.engine.warm import WarmReads
from ckptfs.errors import StoreDamaged
from ckptfs.model import manifest as manifests
from ckptfs.model.manifest import File
from ckptfs.store import Checkpoint, Store
from ckptfs.testing.checkpoints import make_checkpoint, noise

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "store"))
    yield store
    store.close()


def files_of(store: Store, checkpoint: Checkpoint) -> dict[bytes, tuple[File, int]]:
    """path -> (manifest entry, own blob or 0)"""
    own = store.own_blobs(checkpoint.ordinal)
    manifest = manifests.decode(store.manifest(checkpoint.digest))
    return {file.path: (file, own.get(index, 0)) for index, file in manifest.files()}


def test_a_file_of_its_own_is_one_extent(store: Store) -> None:
    checkpoint = make_checkpoint(store, "c", {b"f": noise(1, 11 * MIB), b"empty": b""})
    files = files_of(store, checkpoint)
    file, own = files[b"f"]
    assert own
    assert extents_of(store, file, own) == [Extent(0, 11 * MIB, own, 0)]
    assert extents_of(store, *files[b"empty"]) == []


def test_zeros_are_holes_of_the_own_blob(store: Store) -> None:
    """A file with zeros is whole too: what its blob does not hold reads as zeros."""
    content = noise(1, 4 * MIB) + bytes(4 * MIB) + noise(2, 4 * MIB)
    file, own = files_of(store, make_checkpoint(store, "c", {b"f": content}))[b"f"]
    assert extents_of(store, file, own) == [Extent(0, len(content), own, 0)]
    assert [(e.start, e.blob != 0) for e in extents_of(store, file)] == [
        (0, True),
        (4 * MIB, False),
        (8 * MIB, True),
    ]
    for at in (own, 0):
        assert FileReader(store, file, at).read_blocking(0, len(content)) == content


def test_shared_chunks_point_to_where_they_are(store: Store) -> None:
    a, b, c = noise(1, 4 * MIB), noise(2, 4 * MIB), noise(3, 4 * MIB)
    first, first_blob = files_of(store, make_checkpoint(store, "one", {b"f": a + b}))[b"f"]
    second, own = files_of(store, make_checkpoint(store, "two", {b"f": b + a + c + c}))[b"f"]
    assert extents_of(store, first, first_blob) == [Extent(0, 8 * MIB, first_blob, 0)]
    assert own != first_blob
    assert extents_of(store, second, own) == [
        Extent(0, 4 * MIB, first_blob, 4 * MIB),
        Extent(4 * MIB, 4 * MIB, first_blob, 0),
        Extent(8 * MIB, 4 * MIB, own, 8 * MIB),
        Extent(12 * MIB, 4 * MIB, own, 8 * MIB),
    ]
    assert FileReader(store, second, own).read_blocking(0, 16 * MIB) == b + a + c + c


async def test_every_range_reads_as_in_memory(store: Store) -> None:
    a, b = noise(1, 4 * MIB), noise(2, 4 * MIB)
    make_checkpoint(store, "base", {b"f": a + b})
    content = b + bytes(5 * MIB) + a + noise(9, 12345)
    made = make_checkpoint(store, "c", {b"f": content, b"small": b"tiny"})
    reads = WarmReads()
    rng = random.Random(1)
    for path, expected in ((b"f", content), (b"small", b"tiny")):
        file, own = files_of(store, made)[path]
        reader = FileReader(store, file, own)
        size = len(expected)
        ranges = [(rng.randrange(size + 2), rng.choice([0, 1, 4096, MIB, 3 * MIB])) for _ in range(150)]
        ranges += [(at * MIB - 1, 2) for at in range(1, size // MIB)] + [(0, size), (size, 1), (size + 9, 9)]
        for offset, length in ranges:
            assert (
                await reads.read(reader, offset, length, checkpoint=1) == expected[offset : offset + length]
            )
            assert reader.read_blocking(offset, length) == expected[offset : offset + length]


async def test_what_is_not_cached_is_read_in_a_thread(store: Store) -> None:
    content = noise(1, 3 * MIB)
    file, own = files_of(store, make_checkpoint(store, "c", {b"f": content}))[b"f"]
    reader, reads = FileReader(store, file, own), WarmReads()
    reader.read_blocking(0, len(content))
    assert await reads.read(reader, 0, MIB, checkpoint=1) == content[:MIB]
    assert reads.counters["reads_inline"] == 1
    with store.blob(own) as handle:
        os.fsync(handle.fd)
        os.posix_fadvise(handle.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert await reads.read(reader, MIB, MIB, checkpoint=1) == content[MIB : 2 * MIB]
    assert reads.counters["reads_in_thread"] == 1
    assert reads.counters["read_bytes"] == 2 * MIB


async def test_a_short_blob_is_damage_told_by_path_and_offset(store: Store) -> None:
    file, own = files_of(store, make_checkpoint(store, "c", {b"dir/f": noise(1, 3 * MIB)}))[b"dir/f"]
    reader = FileReader(store, file, own)
    with store.blob(own) as handle:
        os.truncate(f"/proc/self/fd/{handle.fd}", 2 * MIB)
    assert len(await WarmReads().read(reader, 0, 2 * MIB, checkpoint=1)) == 2 * MIB
    for read in (reader.read_blocking, lambda o, n: reader.read_into(o, memoryview(bytearray(n)))):
        with pytest.raises(StoreDamaged, match=r"dir/f .offset 2097152"):
            read(MIB, 2 * MIB)
    with pytest.raises(StoreDamaged):
        await WarmReads().read(reader, MIB, 2 * MIB, checkpoint=1)


def test_a_lost_chunk_is_damage(store: Store) -> None:
    file, own = files_of(store, make_checkpoint(store, "c", {b"f": b"here"}))[b"f"]
    lost = File(file.path, False, 4, [4], bytes(32))
    with pytest.raises(StoreDamaged, match="offset 0 of f is not in the store"):
        extents_of(store, lost, own)
