"""Opens at the same moment, with registrations that take time, fail or are cancelled.

No kernel is here to be answered, so nothing is released that was promised to be native: that an OPEN was
not answered by the extension would be noticed (tests/fuse/test_passthrough.py has both)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import pytest
import trio

from ckptfs.fuse import channel
from ckptfs.fuse.mode_table import ModeTable, new_table
from ckptfs.fuse.modes import Held, Mode, Modes
from ckptfs.fuse.passthrough import Passthrough

pytestmark = pytest.mark.skipif(bool(channel.missing()), reason=channel.missing() or "-")

INODE = 77


class SlowRegistrar:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self.go = trio.Event()
        self.error = 0
        self.opened = 0
        self.closed: list[int] = []

    async def open(self, fd: int) -> int:
        os.fstat(fd)
        self.waiting.set()
        await self.go.wait()
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.opened += 1
        return self.opened

    def close(self, backing_id: int) -> None:
        self.closed.append(backing_id)


@contextlib.contextmanager
def native() -> Iterator[int]:
    with open("/dev/null") as file:
        yield file.fileno()


@pytest.fixture
def registrar() -> SlowRegistrar:
    return SlowRegistrar()


@pytest.fixture
def modes() -> Iterator[Modes]:
    fd = new_table(slots=8)
    yield Modes(ModeTable(fd))
    os.close(fd)
    channel.clear()


async def test_two_first_opens_register_once(registrar: SlowRegistrar, modes: Modes) -> None:
    passthrough = Passthrough(modes, registrar)
    got: list[Mode] = []

    async def open_one() -> None:
        got.append(await passthrough.open(INODE, native))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(open_one)
        await registrar.waiting.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        registrar.go.set()
    assert got == [Mode.PASSTHROUGH] * 5
    assert registrar.opened == 1
    assert modes.held(INODE) == Held(Mode.PASSTHROUGH, 5, 1)
    assert channel.statistics()["table_used"] == 1


async def test_a_refusal_leaves_this_open_to_the_daemon_and_the_waiting_ones_with_it(
    registrar: SlowRegistrar, modes: Modes
) -> None:
    passthrough = Passthrough(modes, registrar)
    registrar.error = errno.ENFILE
    registrar.go.set()
    assert await passthrough.open(INODE, native) is Mode.CACHED
    registrar.error = 0
    assert await passthrough.open(INODE, native) is Mode.CACHED, "one mode at a time"
    passthrough.release(INODE)
    passthrough.release(INODE)
    await trio.testing.wait_all_tasks_blocked()
    assert await passthrough.open(INODE, native) is Mode.PASSTHROUGH
    assert passthrough.statistics()["native_opens_refused"] == 1
    assert passthrough.why_not == ""


@pytest.mark.parametrize("number", [errno.EPERM, errno.ELOOP, errno.ENOTTY])
async def test_a_refusal_that_will_not_change_ends_all_tries(
    registrar: SlowRegistrar, modes: Modes, number: int
) -> None:
    passthrough = Passthrough(modes, registrar)
    registrar.error = number
    registrar.go.set()
    assert await passthrough.open(INODE, native) is Mode.CACHED
    assert os.strerror(number) in passthrough.why_not
    registrar.error = 0
    assert await passthrough.open(INODE + 1, native) is Mode.CACHED
    assert registrar.opened == 0


async def test_whoever_waits_for_a_cancelled_open_takes_its_place(
    registrar: SlowRegistrar, modes: Modes
) -> None:
    passthrough = Passthrough(modes, registrar)
    got: list[Mode] = []

    async def wait_for_it() -> None:
        got.append(await passthrough.open(INODE, native))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as inner:
                inner.start_soon(passthrough.open, INODE, native)
                await registrar.waiting.wait()
                nursery.start_soon(wait_for_it)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
        registrar.go.set()
    assert got == [Mode.PASSTHROUGH]
    assert modes.held(INODE) == Held(Mode.PASSTHROUGH, 1, 1)


async def test_where_no_room_is_left_the_open_fails_and_nothing_stays(
    registrar: SlowRegistrar, modes: Modes
) -> None:
    passthrough = Passthrough(modes, registrar)
    registrar.go.set()
    for inode in range(1, 9):
        await passthrough.open(inode, None)
    with pytest.raises(OSError) as refused:
        await passthrough.open(INODE, native)
    assert refused.value.errno == errno.ENFILE
    assert registrar.closed == [1]
    assert channel.statistics()["table_used"] == 0


async def test_the_next_process_grants_what_was_open(registrar: SlowRegistrar, modes: Modes) -> None:
    passthrough = Passthrough(modes, registrar)
    registrar.go.set()
    await passthrough.open(INODE, native)
    await passthrough.open(INODE + 1, None)
    channel.clear()
    successor = Passthrough(modes, registrar)
    assert successor.restore() == [1]
    assert channel.statistics()["table_used"] == 1
    assert successor.handles() == {INODE: 1, INODE + 1: 1}
    assert await successor.open(INODE, None) is Mode.PASSTHROUGH
