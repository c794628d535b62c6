"""The modes' state table, row by row; then against the kernel's rules under random histories, with
restarts at every moment."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator

import pytest

from ckptfs.fuse.mode_table import ModeTable, new_table
from ckptfs.fuse.modes import Held, Mode, Modes, Step

INODE, OTHER = (7 << 32) + 1, (7 << 32) + 2


@pytest.fixture
def table_fd() -> Iterator[int]:
    fd = new_table(slots=64)
    yield fd
    os.close(fd)


@pytest.fixture
def modes(table_fd: int) -> Modes:
    made = Modes(ModeTable(table_fd))
    made.restore()
    return made


def bring(modes: Modes, state: str) -> None:
    """Put INODE into a state of the table."""
    if state == "registering":
        assert modes.next_step(INODE, native=True) is Step.REGISTER
    elif state.startswith("cached"):
        for _ in range(int(state[-1])):
            modes.opened(INODE)
    elif state.startswith("passthrough"):
        modes.next_step(INODE, native=True)
        modes.registered(INODE, 5)
        for _ in range(int(state[-1]) - 1):
            modes.opened(INODE)


@pytest.mark.parametrize(
    ("state", "native", "step"),
    [
        ("closed", True, Step.REGISTER),
        ("closed", False, Step.CACHED),
        ("registering", True, Step.WAIT),
        ("registering", False, Step.WAIT),
        ("cached 1", True, Step.CACHED),
        ("cached 1", False, Step.CACHED),
        ("cached 2", True, Step.CACHED),
        ("passthrough 1", True, Step.PASSTHROUGH),
        ("passthrough 1", False, Step.PASSTHROUGH),
        ("passthrough 2", False, Step.PASSTHROUGH),
    ],
)
def test_what_an_open_does(modes: Modes, state: str, native: bool, step: Step) -> None:
    bring(modes, state)
    assert modes.next_step(INODE, native=native) is step


@pytest.mark.parametrize(
    ("state", "after", "freed"),
    [
        ("closed", None, 0),
        ("cached 1", None, 0),
        ("cached 2", Held(Mode.CACHED, 1), 0),
        ("passthrough 1", None, 5),
        ("passthrough 2", Held(Mode.PASSTHROUGH, 1, 5), 0),
    ],
)
def test_what_a_release_does(modes: Modes, state: str, after: Held | None, freed: int) -> None:
    bring(modes, state)
    assert modes.released(INODE) == freed
    assert modes.held(INODE) == after


def test_a_registration_that_fails_leaves_the_file_to_the_daemon_and_the_next_open_tries_again(
    modes: Modes,
) -> None:
    bring(modes, "registering")
    modes.not_registered(INODE)
    assert modes.next_step(INODE, native=False) is Step.CACHED
    assert modes.opened(INODE) == Held(Mode.CACHED, 1)
    modes.released(INODE)
    assert modes.next_step(INODE, native=True) is Step.REGISTER


def test_inodes_do_not_know_of_each_other(modes: Modes) -> None:
    bring(modes, "passthrough 2")
    modes.opened(OTHER)
    assert modes.passthrough_inodes() == {INODE: 5}
    assert modes.statistics() == {"files_open_native": 1, "files_open_served": 1}
    modes.released(OTHER)
    assert modes.held(OTHER) is None
    assert modes.held(INODE) == Held(Mode.PASSTHROUGH, 2, 5)


def test_backing_ids_are_bounded(table_fd: int) -> None:
    modes = Modes(ModeTable(table_fd), max_registered=2)
    assert modes.next_step(1, native=True) is Step.REGISTER
    modes.registered(1, 1)
    assert modes.next_step(2, native=True) is Step.REGISTER
    assert modes.next_step(3, native=True) is Step.CACHED, "one is registered, one on its way"
    modes.not_registered(2)
    assert modes.next_step(3, native=True) is Step.REGISTER
    modes.registered(3, 2)
    assert modes.released(1) == 1
    assert modes.next_step(2, native=True) is Step.REGISTER


def test_open_files_are_bounded_and_their_slots_used_again(table_fd: int) -> None:
    modes = Modes(ModeTable(table_fd))
    for inode in range(1, 65):
        modes.opened(inode)
    with pytest.raises(OSError) as refused:
        modes.opened(65)
    assert refused.value.errno == errno.ENFILE
    assert modes.held(65) is None
    modes.opened(64)  # one more handle of an open file always fits
    modes.released(17)
    modes.opened(65)
    for _ in range(10_000):
        modes.released(65)
        modes.opened(65)


def test_nothing_grows_when_many_files_are_opened_once(table_fd: int) -> None:
    modes = Modes(ModeTable(table_fd))
    for inode in range(1, 100_001):
        assert modes.next_step(inode, native=True) is Step.REGISTER
        modes.registered(inode, inode)
        assert modes.released(inode) == inode
    assert modes.statistics() == {"files_open_native": 0, "files_open_served": 0}
    assert ModeTable(table_fd).load() == {}


def test_the_next_process_finds_modes_ids_and_counts(table_fd: int) -> None:
    first = Modes(ModeTable(table_fd))
    bring(first, "passthrough 2")
    first.opened(OTHER)
    first.opened(OTHER + 1)
    first.released(OTHER + 1)
    second = Modes(ModeTable(table_fd))
    assert second.restore() == [5]
    assert second.held(INODE) == Held(Mode.PASSTHROUGH, 2, 5)
    assert second.held(OTHER) == Held(Mode.CACHED, 1)
    assert second.held(OTHER + 1) is None
    assert second.next_step(INODE, native=False) is Step.PASSTHROUGH, "rule 2, whatever the file is now"
    assert second.next_step(OTHER, native=True) is Step.CACHED, "rule 1"
    second.opened(OTHER + 2)
    assert set(ModeTable(table_fd).load()) == {INODE, OTHER, OTHER + 2}
    assert second.released(INODE) == 0
    assert second.released(INODE) == 5


def test_a_registration_that_was_under_way_is_forgotten(table_fd: int) -> None:
    first = Modes(ModeTable(table_fd))
    bring(first, "registering")
    second = Modes(ModeTable(table_fd))
    assert second.restore() == []
    assert second.next_step(INODE, native=True) is Step.REGISTER


def test_a_table_of_another_format_is_begun_anew(table_fd: int) -> None:
    bring(Modes(ModeTable(table_fd)), "cached 1")
    os.pwrite(table_fd, b"another!", 0)
    assert ModeTable(table_fd).load() == {}
    bring(Modes(ModeTable(table_fd)), "cached 2")
    assert ModeTable(table_fd).load() == {INODE: Held(Mode.CACHED, 2)}


def test_a_slot_that_was_not_finished_is_no_slot(table_fd: int) -> None:
    """Killed between the two words of a slot, in either direction."""
    table = ModeTable(table_fd)
    table.load()
    table.put(1, Held(Mode.CACHED, 1))
    table.put(2, Held(Mode.PASSTHROUGH, 1, 9))
    os.pwrite(table_fd, bytes(8), 8 * 5)  # the inode of slot 0: its second word still there
    os.pwrite(table_fd, (3).to_bytes(8, "little"), 8 * 2)  # a slot is used of which nothing is written
    assert ModeTable(table_fd).load() == {2: Held(Mode.PASSTHROUGH, 1, 9)}


class Kernel:
    """The three rules, as fs/fuse/iomode.c has them."""

    def __init__(self) -> None:
        self.open: dict[int, list[tuple[Mode, int]]] = {}

    def opened(self, inode: int, mode: Mode, backing_id: int) -> None:
        for other in self.open.setdefault(inode, []):
            assert other == (mode, backing_id), "EIO"
        self.open[inode].append((mode, backing_id))

    def close_one(self, inode: int) -> None:
        self.open[inode].pop()
        if not self.open[inode]:
            del self.open[inode]


@pytest.mark.parametrize("seed", range(20))
def test_the_kernel_is_never_told_two_modes_and_no_id_is_freed_in_use(seed: int, table_fd: int) -> None:
    """Random opens, closes and deaths. A death falls between two steps of an open or of a release, and
    the request that was not answered comes again, as the resend brings it."""
    random_ = random.Random(seed)
    kernel = Kernel()
    modes = Modes(ModeTable(table_fd))
    modes.restore()
    registered: set[int] = set()
    last_id = deaths = 0

    def die() -> None:
        nonlocal modes, deaths
        deaths += 1
        modes = Modes(ModeTable(table_fd))
        registered.intersection_update(modes.restore())  # the holder frees the others

    def open_one(inode: int) -> None:
        nonlocal last_id
        death = random_.choice(["", "", "", "registering", "counted", "answered"])
        step = modes.next_step(inode, native=random_.random() < 0.7)
        assert step is not Step.WAIT
        if step is Step.REGISTER:
            last_id += 1
            registered.add(last_id)
            if death == "registering":
                die()
                return open_one(inode)
            modes.registered(inode, last_id)
            held = modes.held(inode)
        else:
            held = modes.opened(inode)
        assert held is not None
        if death == "counted":
            die()
            return open_one(inode)
        kernel.opened(inode, held.mode, held.backing_id)
        if held.mode is Mode.PASSTHROUGH:
            assert held.backing_id in registered
        if death == "answered":
            die()
        return None

    def release_one(inode: int) -> None:
        kernel.close_one(inode)
        death = random_.choice(["", "", "", "before", "answered"])
        if death == "before":
            die()  # and the successor is told again
        if death == "answered":
            die()
            return
        freed = modes.released(inode)
        if freed:
            assert (Mode.PASSTHROUGH, freed) not in kernel.open.get(inode, [])
            registered.remove(freed)

    for _ in range(400):
        if kernel.open and random_.random() < 0.55:
            release_one(random_.choice(list(kernel.open)))
        else:
            open_one(random_.randrange(1, 6))
        for inode, handles in kernel.open.items():
            held = modes.held(inode)
            assert held is not None
            assert len(handles) <= held.handles <= len(handles) + deaths
    assert deaths > 20


def test_the_holder_makes_the_table_that_a_worker_expects() -> None:
    """It does not import the module, to stay small."""
    from ckptfs.fuse.connection import MODES_BYTES
    from ckptfs.fuse.mode_table import table_bytes

    assert table_bytes() == MODES_BYTES


def test_the_store_that_is_shown_is_kept_beside_the_modes(table_fd: int) -> None:
    first = ModeTable(table_fd)
    assert first.store == (0, 0)
    first.store = (7, 1 << 63)
    bring(Modes(first), "cached 1")
    again = ModeTable(table_fd)
    assert again.store == (7, 1 << 63)
    assert set(again.load()) == {INODE}
