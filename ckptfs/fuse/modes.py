"""How each inode is open: through the daemon (cached) or past it (passthrough). The rules, all of them.

The kernel's rules (Linux 6.9 to 6.18, fs/fuse/iomode.c):

1. while a file is open in one mode, opening it in the other gives EIO, in either order;
2. all passthrough opens of an inode at one time must name the same backing id;
3. both last from the first OPEN until the last handle is closed, whatever becomes of the daemon.

So an inode changes its mode only when it has no open handle, and a daemon must know the modes of inodes
that were opened before it started. What follows is one state per inode:

=================  ===========  ================================================  ======================
state              open         a handle is opened                                the last one is closed
=================  ===========  ================================================  ======================
closed             0            native file: ``register`` -> registering          -
                                other: ``cached`` -> cached(1)
registering        0            ``wait`` until it is over, then ask again         -
cached(n)          n >= 1       ``cached`` -> cached(n + 1), also when the file   -> closed
                                has become native meanwhile
passthrough(b, n)  n >= 1       ``passthrough`` with the same b -> (b, n + 1),    -> closed, b is freed
                                also when the file is native no longer
=================  ===========  ================================================  ======================

registering becomes passthrough(b, 1) when the backing id arrives, and cached(1) when there is none: that
open is then served through the daemon, the next first open tries again.

"Native" means that the file's bytes all lie in one file of their own, on a file system whose stack depth
the connection allows; who finds out is channel.py and the store, not this module.

After a restart. Each change is written to a journal (mode_table.py) that outlives the process, in this
order: a handle is counted before its OPEN is answered, and taken off after its RELEASE was. A process
that dies between the two is told the request again by its successor's resend, and counts it twice or
takes it off once: the count that is restored is never below the truth, and above it by one at most for
each death. So a mode is never left too early, which would be an EIO for a job. Left too late it costs no
more than this: a file stays in the slower mode, or a backing id stays registered (and its disk space
taken), until the mount goes.

Nothing here waits, reads or writes: it is called from one thread, and what lies between two calls is
atomic for its caller (operations answer OPEN in the same step in which they count it).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Mode(Enum):
    CACHED = 1
    PASSTHROUGH = 2


class Step(Enum):
    """What whoever opens a handle has to do."""

    CACHED = "cached"  # open it through the daemon: call opened()
    PASSTHROUGH = "passthrough"  # open it past the daemon: call opened()
    REGISTER = "register"  # get a backing id, then call registered() or not_registered()
    WAIT = "wait"  # somebody else is getting one; ask again after that


@dataclass(frozen=True, slots=True)
class Held:
    """An inode that has open handles. ``backing_id`` is 0 in cached mode."""

    mode: Mode
    handles: int
    backing_id: int = 0


class Journal(Protocol):
    """Where the modes are kept for the next process. Keeps what was put even if the process is killed
    at any moment; never half of it."""

    def put(self, inode: int, held: Held) -> None:
        """Raises OSError (ENFILE) when there is no room for another inode."""

    def remove(self, inode: int) -> None: ...

    def load(self) -> Mapping[int, Held]: ...


class Modes:
    """The state of every inode that is open. ``max_registered`` bounds the backing ids: a file more is
    opened in cached mode."""

    def __init__(self, journal: Journal, *, max_registered: int = 16_384) -> None:
        self._journal = journal
        self._held: dict[int, Held] = {}
        self._registering: set[int] = set()
        self._max_registered = max_registered
        self._registered = 0

    def restore(self) -> list[int]:
        """Take over what the process before us had open. Answers the backing ids that are in use; all
        others of this connection can be freed."""
        self._held = dict(self._journal.load())
        in_use = [held.backing_id for held in self._held.values() if held.mode is Mode.PASSTHROUGH]
        self._registered = len(in_use)
        return in_use

    def demote(self) -> list[int]:
        """The extension turned out to be without effect: what was taken for passthrough is open in cached
        mode. Answers the backing ids to free."""
        ids = []
        for inode, held in list(self._held.items()):
            if held.mode is Mode.PASSTHROUGH:
                ids.append(held.backing_id)
                self._set(inode, Held(Mode.CACHED, held.handles))
        self._registered = 0
        return ids

    def held(self, inode: int) -> Held | None:
        return self._held.get(inode)

    def handles(self) -> dict[int, int]:
        """inode -> how many handles are open, at most."""
        return {inode: held.handles for inode, held in self._held.items()}

    def passthrough_inodes(self) -> dict[int, int]:
        """inode -> backing id, of all that are open so."""
        return {i: held.backing_id for i, held in self._held.items() if held.mode is Mode.PASSTHROUGH}

    def next_step(self, inode: int, *, native: bool) -> Step:
        """Somebody opens a handle. After REGISTER the inode is registering until the caller says how it
        went; after the other steps nothing has changed yet."""
        if inode in self._registering:
            return Step.WAIT
        held = self._held.get(inode)
        if held is not None:
            return Step.PASSTHROUGH if held.mode is Mode.PASSTHROUGH else Step.CACHED
        if not native or self._registered + len(self._registering) >= self._max_registered:
            return Step.CACHED
        self._registering.add(inode)
        return Step.REGISTER

    def registered(self, inode: int, backing_id: int) -> None:
        """The backing id is there, and the first handle is opened with it. On OSError the caller frees
        the id and refuses the open."""
        self._registering.remove(inode)
        if backing_id <= 0:
            raise ValueError("a backing id is a positive number")
        self._set(inode, Held(Mode.PASSTHROUGH, 1, backing_id))
        self._registered += 1

    def not_registered(self, inode: int) -> None:
        """There is no backing id. The caller goes on with :meth:`opened`, or gives up."""
        self._registering.remove(inode)

    def opened(self, inode: int) -> Held:
        """One more handle, in the mode in which the inode is, or in cached mode if it is closed. Raises
        OSError (ENFILE) when more inodes are open than can be kept track of."""
        held = self._held.get(inode)
        held = Held(held.mode, held.handles + 1, held.backing_id) if held else Held(Mode.CACHED, 1)
        self._set(inode, held)
        return held

    def released(self, inode: int) -> int:
        """One handle less. Answers the backing id to free, if that was the last, else 0."""
        held = self._held.get(inode)
        if held is None:
            return 0  # opened before the table was begun, or answered twice: not ours to count
        if held.handles > 1:
            self._set(inode, Held(held.mode, held.handles - 1, held.backing_id))
            return 0
        del self._held[inode]
        self._journal.remove(inode)
        if held.mode is Mode.PASSTHROUGH:
            self._registered -= 1
        return held.backing_id

    def statistics(self) -> dict[str, int]:
        passthrough = [held for held in self._held.values() if held.mode is Mode.PASSTHROUGH]
        cached_files = len(self._held) - len(passthrough)
        return {"files_open_native": len(passthrough), "files_open_served": cached_files}

    def _set(self, inode: int, held: Held) -> None:
        self._journal.put(inode, held)
        self._held[inode] = held


def no_room() -> OSError:
    return OSError(errno.ENFILE, os.strerror(errno.ENFILE))
