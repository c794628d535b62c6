"""The journal of modes.py: a table in memory that outlives the process.

It lies in a memfd that the holder keeps together with the /dev/fuse descriptor and hands to each worker:
so it lives exactly as long as the connection, and what a process wrote is there whenever it is killed.
Nothing is ever written to a disk.

Format (native byte order; never leaves the machine, nor the connection):

- word 0: the magic "ckptfsm" and version 2; word 1: how many slots there are; word 2: how many of them
  were ever used, raised before the first use of a slot (so a start need not look at the others); words 3
  and 4: which store the inodes are of (two numbers of the store's; 0 and 0: nobody has served yet);
- then the slots, two words of 8 bytes each: the inode (0: free), and ``mode << 62 | handles << 32 |
  backing id``.

A word is written by one store of 8 aligned bytes, so no word is ever half written. A new slot gets its
second word first and its inode last; a slot is freed by clearing its inode: so no slot is either.
"""

from __future__ import annotations

import mmap
import os

from ckptfs.fuse.modes import Held, Mode, no_room

_MAGIC = int.from_bytes(b"ckptfsm\x02", "little")
_HEADER_WORDS = 5
_SLOT_WORDS = 2
_USED, _STORE = 2, 3

# Files open at a time, of all checkpoints; one more gets ENFILE. 4 MiB, of which only what was used once
# takes memory.
SLOTS = 262_144

_HANDLES_MAX = (1 << 30) - 1


def table_bytes(slots: int = SLOTS) -> int:
    return 8 * (_HEADER_WORDS + _SLOT_WORDS * slots)


def new_table(slots: int = SLOTS) -> int:
    """A descriptor of an empty table. For a process that serves alone, and for tests; with a holder it
    comes from there."""
    fd = os.memfd_create("ckptfs-modes", os.MFD_CLOEXEC)
    os.ftruncate(fd, table_bytes(slots))
    return fd


class ModeTable:
    """The table in ``fd`` (which stays the caller's). An empty one is begun; one of another format is
    begun anew: it is not older than its connection, so only a change of version can do that."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._words = memoryview(self._map).cast("Q")
        slots = (len(self._words) - _HEADER_WORDS) // _SLOT_WORDS
        if self._words[0] != _MAGIC or self._words[1] != slots:
            os.ftruncate(fd, 0)  # gives the pages back; all zeros again
            os.ftruncate(fd, 8 * len(self._words))
            self._words[1] = slots
            self._words[0] = _MAGIC
        self._slots = slots
        self._at: dict[int, int] = {}
        self._free: list[int] = []

    def load(self) -> dict[int, Held]:
        found: dict[int, Held] = {}
        self._at.clear()
        self._free.clear()
        for slot in range(min(self._words[_USED], self._slots)):
            word = _HEADER_WORDS + slot * _SLOT_WORDS
            inode = self._words[word]
            held = _unpack(self._words[word + 1]) if inode and inode not in found else None
            if held is None:
                self._words[word] = 0
                self._free.append(slot)
            else:
                found[inode] = held
                self._at[inode] = slot
        return found

    @property
    def store(self) -> tuple[int, int]:
        """Which store the connection's inodes are of; (0, 0): nobody has served yet."""
        return self._words[_STORE], self._words[_STORE + 1]

    @store.setter
    def store(self, numbers: tuple[int, int]) -> None:
        self._words[_STORE], self._words[_STORE + 1] = numbers

    def put(self, inode: int, held: Held) -> None:
        slot = self._at.get(inode)
        word = _pack(held)
        if slot is not None:
            self._words[_HEADER_WORDS + slot * _SLOT_WORDS + 1] = word
            return
        if self._free:
            slot = self._free.pop()
        elif self._words[_USED] < self._slots:
            slot = self._words[_USED]
            self._words[_USED] = slot + 1
        else:
            raise no_room()
        at = _HEADER_WORDS + slot * _SLOT_WORDS
        self._words[at + 1] = word
        self._words[at] = inode
        self._at[inode] = slot

    def remove(self, inode: int) -> None:
        slot = self._at.pop(inode)
        self._words[_HEADER_WORDS + slot * _SLOT_WORDS] = 0
        self._free.append(slot)

    def close(self) -> None:
        self._words.release()
        self._map.close()


def _pack(held: Held) -> int:
    if held.handles > _HANDLES_MAX:
        raise no_room()
    return held.mode.value << 62 | held.handles << 32 | held.backing_id


def _unpack(word: int) -> Held | None:
    mode = word >> 62
    handles = word >> 32 & _HANDLES_MAX
    if mode not in (Mode.CACHED.value, Mode.PASSTHROUGH.value) or not handles:
        return None
    return Held(Mode(mode), handles, word & 0xFFFFFFFF)
