"""Which processes get bare names, and the object whose memory is written to."""

from __future__ import annotations

from ckptfs.fuse import listing
from ckptfs.fuse.listing import Listers, bare_entry


def test_who_looks_at_what_it_listed_gets_attributes() -> None:
    listers = Listers()
    listers.listed_bare(10, 7)
    for _ in range(listing._LOOKUPS):
        assert not listers.wants_attributes(10)
        listers.looked_up(10, 7)
    assert listers.wants_attributes(10)
    assert not listers.wants_attributes(11)


def test_other_lookups_say_nothing() -> None:
    """A job that opens files by name, or another process than the one that lists."""
    listers = Listers()
    listers.listed_bare(10, 7)
    for _ in range(1000):
        listers.looked_up(10, 8)
        listers.looked_up(11, 7)
    assert not listers.wants_attributes(10)
    assert not listers.wants_attributes(11)


def test_memory_is_bounded() -> None:
    listers = Listers()
    for process in range(5 * listing._PROCESSES):
        listers.listed_bare(process, 1)
        for _ in range(listing._LOOKUPS):
            listers.looked_up(process, 1)
    for directory in range(5 * listing._DIRECTORIES):
        listers.listed_bare(1, directory)
    assert len(listers._listed) == len(listers._lookups) + 1 == listing._PROCESSES
    assert len(listers._listed[1]) == listing._DIRECTORIES


def test_a_bare_entry_has_a_number_and_no_node() -> None:
    """The layout of pyfuse3's object is as we know it, here and now: if a new version changes that, this
    says so, and listings go on with attributes."""
    bare = bare_entry()
    assert bare is not None
    bare.entry.st_mode = 0o100444
    bare.inode.value = 123456789
    assert bare.entry.st_ino == 0
    assert list(listing._words(bare.entry)) == [0, 0, 0, 123456789]
    assert (bare.entry.st_mode, bare.entry.st_nlink, bare.entry.st_size) == (0o100444, 1, 0)
