"""Small reads from whole blocks, and a Ranged as a seekable file."""

from __future__ import annotations

import io
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptfs.errors import SourceCorrupt, SourceRefused, SourceUnavailable
from ckptfs.source.blocks import KEPT_BLOCKS, Blocks
from ckptfs.source.seekable import RangedStream, SeekableView, SubRange
from ckptfs.testing import maker

BODY = maker.noise("blocks", 1_000_003)


class Counted:
    """A Ranged in memory that records what is asked of it."""

    size_bytes = len(BODY)

    def __init__(self, pause_seconds: float = 0.0) -> None:
        self.reads: list[tuple[int, int]] = []
        self.broken = False
        self._pause = pause_seconds
        self._lock = threading.Lock()

    def read_at(self, offset: int, buffer: memoryview) -> None:
        with self._lock:
            self.reads.append((offset, len(buffer)))
        time.sleep(self._pause)
        if self.broken:
            raise SourceUnavailable("broken")
        assert offset + len(buffer) <= len(BODY)
        buffer[:] = BODY[offset : offset + len(buffer)]


def read(ranged: Counted | Blocks | SubRange, offset: int, length: int) -> bytes:
    data = bytearray(length)
    ranged.read_at(offset, memoryview(data))
    return bytes(data)


def test_reads_are_right_wherever_they_lie() -> None:
    blocks = Blocks(Counted(), 4096)
    dice = random.Random(1)
    for _ in range(500):
        start = dice.randrange(len(BODY))
        length = dice.randrange(min(9000, len(BODY) - start) + 1)
        assert read(blocks, start, length) == BODY[start : start + length]
    assert read(blocks, len(BODY) - 3, 3) == BODY[-3:]


def test_small_reads_of_one_block_are_one_fetch_and_large_ones_go_through() -> None:
    counted = Counted()
    blocks = Blocks(counted, 64 << 10)
    for start in range(0, 60_000, 100):
        read(blocks, start, 100)
    assert counted.reads == [(0, 64 << 10)]
    read(blocks, 10, 50_000)
    assert counted.reads[1:] == [(10, 50_000)]


def test_readers_of_one_block_share_one_fetch() -> None:
    counted = Counted(pause_seconds=0.05)
    blocks = Blocks(counted, 64 << 10)
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda at: read(blocks, at, 10), range(0, 160, 10)))
    assert b"".join(parts) == BODY[:160]
    assert len(counted.reads) == 1


def test_blocks_that_are_kept_are_bounded() -> None:
    counted = Counted()
    blocks = Blocks(counted, 1024)
    for start in range(0, len(BODY) - 10, 1024):
        read(blocks, start, 10)
    before = len(counted.reads)
    read(blocks, 0, 10)
    assert len(counted.reads) == before + 1  # it was dropped
    assert len(blocks._blocks) == KEPT_BLOCKS


def test_a_failed_fetch_is_not_kept() -> None:
    counted = Counted()
    blocks = Blocks(counted, 1024)
    counted.broken = True
    with pytest.raises(SourceUnavailable):
        read(blocks, 0, 10)
    counted.broken = False
    assert read(blocks, 0, 10) == BODY[:10]


def test_a_view_reads_as_a_file_does() -> None:
    view, file = SeekableView(Counted(), "x", 1 << 20), io.BytesIO(BODY)
    dice = random.Random(2)
    for _ in range(300):
        whence = dice.choice((io.SEEK_SET, io.SEEK_END, io.SEEK_SET))
        offset = dice.randrange(len(BODY)) if whence == io.SEEK_SET else -dice.randrange(len(BODY))
        assert view.seek(offset, whence) == file.seek(offset, whence)
        count = dice.randrange(5000)
        assert view.read(count) == file.read(count)
        assert view.tell() == file.tell()
    view.seek(0, io.SEEK_END)
    assert view.read(1) == b"" == view.last
    with pytest.raises(OSError, match="before the beginning"):
        view.seek(-1)


def test_a_view_does_not_read_what_a_lying_header_claims() -> None:
    view = SeekableView(Counted(), "a.tar", 1000)
    assert len(view.read(1000)) == 1000
    with pytest.raises(SourceRefused, match=r"a\.tar: a header claims 1,001 bytes"):
        view.read(1001)


def test_a_part_cannot_be_read_beyond_its_end() -> None:
    part = SubRange(Counted(), 100, 50)
    assert read(part, 10, 40) == BODY[110:150]
    with pytest.raises(SourceCorrupt, match="outside of its member"):
        read(part, 11, 40)


def test_a_stream_over_a_ranged_is_its_bytes() -> None:
    stream, out, buffer = RangedStream(Counted()), bytearray(), memoryview(bytearray(70_001))
    while got := stream.readinto(buffer):
        out += buffer[:got]
    assert out == BODY
