"""A stream that is read ahead by a thread."""

from __future__ import annotations

import random
import threading

import pytest

from ckptfs.errors import Interrupted, SourceCorrupt
from ckptfs.source.archive.ahead import PIECE_BYTES, PIECES, Ahead
from ckptfs.testing import maker

BODY = maker.noise("ahead", 5_000_003)


class Pieces:
    """Gives BODY in pieces of odd sizes; fails after ``fail_after`` bytes, waits at ``hold_at``."""

    def __init__(self, fail_after: int | None = None, hold_at: int | None = None) -> None:
        self.given = 0
        self.go_on = threading.Event()
        self._fail_after = fail_after
        self._hold_at = hold_at
        self._dice = random.Random(1)

    def readinto(self, buffer: memoryview, /) -> int:
        if self._fail_after is not None and self.given >= self._fail_after:
            raise SourceCorrupt("damaged")
        if self._hold_at is not None and self.given >= self._hold_at:
            self.go_on.wait()
        count = min(len(buffer), self._dice.randrange(1, 700_000), len(BODY) - self.given)
        buffer[:count] = BODY[self.given : self.given + count]
        self.given += count
        return count

    def close(self) -> None:
        return None


def drained(stream: Ahead, step: int) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(step))
    while got := stream.readinto(buffer):
        out += buffer[:got]
    return bytes(out)


@pytest.mark.parametrize("step", [999, 70_001, PIECE_BYTES, 5_000_000])
def test_the_bytes_are_the_same(step: int) -> None:
    stream = Ahead(Pieces())
    assert drained(stream, step) == BODY
    assert stream.readinto(memoryview(bytearray(10))) == 0
    stream.join()


def test_an_error_comes_when_the_reader_is_there_and_stays() -> None:
    stream = Ahead(Pieces(fail_after=3_000_000))
    out = bytearray()
    buffer = memoryview(bytearray(100_000))
    with pytest.raises(SourceCorrupt):
        while got := stream.readinto(buffer):
            out += buffer[:got]
    assert BODY.startswith(out) and len(out) >= 2 * PIECE_BYTES
    with pytest.raises(SourceCorrupt):
        stream.readinto(buffer)
    stream.join()


def test_only_a_few_pieces_are_read_ahead() -> None:
    pieces = Pieces()
    stream = Ahead(pieces)
    stream.readinto(memoryview(bytearray(1)))
    stream.join()
    assert pieces.given <= PIECES * PIECE_BYTES


def test_closing_lets_a_waiting_reader_go() -> None:
    pieces = Pieces(hold_at=0)
    stream = Ahead(pieces)
    timer = threading.Timer(0.1, stream.close)
    timer.start()
    with pytest.raises(Interrupted):
        stream.readinto(memoryview(bytearray(10)))
    timer.join()
    pieces.go_on.set()
    stream.join()
    assert not [each for each in threading.enumerate() if each.name == "source-ahead"]


def test_a_stream_that_is_never_read_has_no_thread() -> None:
    before = threading.active_count()
    stream = Ahead(Pieces())
    assert threading.active_count() == before
    stream.join()
