"""Listing a directory, for those who want names and for those who look at the files too.

pyfuse3 knows only READDIRPLUS: with every name the kernel gets the file's attributes and makes an inode
of it. For `ls -l` or rsync that saves a request per file; for `find` or `os.listdir`, which want names
and types, making 100,000 inodes takes three times as long as all the rest.

An entry whose node id is 0 is a name without attributes: the kernel makes nothing of it and asks when
somebody looks. So a process begins with bare names. One that then looks at files of a directory that it
has listed gets attributes from its next directory on. What that costs is bounded: directories with more
entries than LARGE_DIRECTORY always come with attributes, so a wrong guess is that many look-ups, once
(the kernel remembers what it looked up). Directories within a directory always have attributes, because
who lists a tree goes there next.

pyfuse3 cannot express "this inode number, node id 0": its one property sets both. :func:`bare_entry`
writes the number where it lies in the object, after it has made sure that it lies there; if not, all
entries have attributes.
"""

from __future__ import annotations

import ctypes
import functools
from collections import OrderedDict

from pyfuse3 import EntryAttributes

#: With more entries than this a directory always has attributes: 4096 look-ups take about 0.3 s.
LARGE_DIRECTORY = 4096

# Look-ups of listed files that show that a process wants more than names. One or two are somebody who
# lists a checkpoint and opens what was found.
_LOOKUPS = 16
_PROCESSES = 256  # that are remembered
_DIRECTORIES = 1024  # that are remembered of each

_PROBE = 0x1122_3344_5566_7788


class Listers:
    """Which processes look at what they have listed."""

    def __init__(self) -> None:
        # process -> directories that it got bare, in the order of listing
        self._listed: OrderedDict[int, OrderedDict[int, None]] = OrderedDict()
        self._lookups: dict[int, int] = {}

    def listed_bare(self, process: int, directory: int) -> None:
        directories = self._listed.setdefault(process, OrderedDict())
        self._listed.move_to_end(process)
        directories[directory] = None
        if len(directories) > _DIRECTORIES:
            directories.popitem(last=False)
        if len(self._listed) > _PROCESSES:
            forgotten, _ = self._listed.popitem(last=False)
            self._lookups.pop(forgotten, None)

    def looked_up(self, process: int, directory: int) -> None:
        directories = self._listed.get(process)
        if directories is not None and directory in directories:
            self._lookups[process] = self._lookups.get(process, 0) + 1

    def wants_attributes(self, process: int) -> bool:
        return self._lookups.get(process, 0) >= _LOOKUPS


class BareEntry:
    """An entry with an inode number and a type for the one who lists, and a node id of 0."""

    def __init__(self, entry: EntryAttributes, inode: ctypes.c_uint64) -> None:
        self.entry = entry
        self.inode = inode


def bare_entry() -> BareEntry | None:
    """None where pyfuse3's object is not laid out as we know it."""
    return _new_bare_entry() if _layout_is_known() else None


def _words(entry: EntryAttributes) -> ctypes.Array[ctypes.c_uint64]:
    """The start of the object's ``fuse_entry_param``: node id, generation, then a ``struct stat`` that
    begins with device and inode number."""
    return (ctypes.c_uint64 * 4).from_address(id(entry) + object.__basicsize__)


def _new_bare_entry() -> BareEntry:
    entry = EntryAttributes()
    return BareEntry(entry, ctypes.c_uint64.from_address(ctypes.addressof(_words(entry)) + 24))


@functools.cache
def _layout_is_known() -> bool:
    # 16 bytes of node id and generation, and at least 144 of struct stat
    if EntryAttributes.__basicsize__ < object.__basicsize__ + 16 + 144:
        return False
    entry = EntryAttributes()
    entry.st_ino = _PROBE
    entry.generation = 7
    words = _words(entry)
    if list(words) != [_PROBE, 7, 0, _PROBE]:
        return False
    words[0] = 0
    return entry.st_ino == 0
