"""A directory or a file of this node.

Symbolic links inside the tree are kept as links and never followed; the path that the user gave may
itself be one. Each file is pinned by (device, inode, size, mtime, ctime) when it is listed. A read
opens the file, compares the pin before and after, and closes it: no descriptor is held between reads,
however many files there are, and a file that was swapped for another (or for a link) is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from ckptfs.errors import SourceChanged, SourceDenied, SourceError, SourceNotFound, SourceUnavailable
from ckptfs.model.names import show_path
from ckptfs.source.base import (
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
    SourceSpecial,
)
from ckptfs.source.limits import Opening
from ckptfs.source.listing import Listing
from ckptfs.source.place import PlacedFile

#: File times advance with the kernel's tick (at most 10 ms). Two writes within one tick can leave the
#: same ctime, so a read waits until the pinned ctime is older than a tick: a later write then shows.
TICK_SECONDS = 0.02

#: How much one read takes. A kernel that does not preempt itself (PREEMPT_NONE) lets nobody else have the
#: core until the copy is done: beside three threads that read in calls of 8 MiB, the 99th percentile of
#: waking another process was 6.3 ms; in calls of 256 KiB 0.08 ms (2 cores, Linux 6.18).
_PIECE_BYTES = 256 << 10


class LocalFile:
    """The bytes of one regular file, pinned (:class:`~ckptfs.source.base.Ranged`)."""

    # There may be a million of these: the root is shared, the pin is the entry's own string.
    __slots__ = ("_path", "_root", "pin", "size_bytes")

    def __init__(self, root: bytes, path: bytes, status: os.stat_result) -> None:
        self._root = root
        self._path = path
        self.pin = _pin(status)
        self.size_bytes = status.st_size

    def read_at(self, offset: int, buffer: memoryview) -> None:
        path = os.path.join(self._root, self._path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._changed("is gone") if error.errno in _GONE else at_door(error, path) from error
        try:
            status = os.fstat(descriptor)
            self._check(status)
            age_seconds = time.time() - status.st_ctime_ns / 1e9
            if 0 <= age_seconds < TICK_SECONDS:
                time.sleep(TICK_SECONDS - age_seconds)
            done = 0
            while done < len(buffer):
                got = os.preadv(descriptor, [buffer[done : done + _PIECE_BYTES]], offset + done)
                if not got:
                    raise self._changed("became shorter")
                done += got
            self._check(os.fstat(descriptor))
        except OSError as error:
            raise at_door(error, path) from error
        finally:
            os.close(descriptor)

    def _check(self, status: os.stat_result) -> None:
        if _pin(status) != self.pin:
            raise self._changed("was changed")

    def _changed(self, what: str) -> SourceChanged:
        return _changed(os.path.join(self._root, self._path), what)


def _changed(path: bytes, what: str) -> SourceChanged:
    return SourceChanged(
        f"{show_path(path)} {what} while the checkpoint was being made of it; "
        "create it again when nothing writes there"
    )


_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _pin(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def at_door(error: OSError, path: bytes) -> SourceError:
    """Say an operating system's error in our words."""
    shown = show_path(path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return SourceNotFound(f"{shown} does not exist on the node where the daemon runs")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourceDenied(f"{shown} may not be read by the daemon; give its user read access")
    if error.errno == errno.ELOOP:
        return SourceNotFound(f"{shown} is a symbolic link that leads nowhere (a loop)")
    if error.errno == errno.ENAMETOOLONG:
        return SourceNotFound(f"{shown} is longer than a path may be")
    return SourceUnavailable(f"{shown} cannot be read: {os.strerror(error.errno or errno.EIO)}")


def open_local(opening: Opening, path: bytes) -> Listing | PlacedFile:
    """List a directory, or pin one file (which may be an archive: the caller decides)."""
    try:
        path = os.path.realpath(path, strict=True)
        status = os.stat(path)
    except OSError as error:
        raise at_door(error, path) from error
    if not stat.S_ISDIR(status.st_mode):
        entry = _entry(os.path.dirname(path), os.path.basename(path), status)
        if isinstance(entry, SourceSpecial):
            raise SourceDenied(f"{show_path(path)} is {entry.what}; a checkpoint is made of files")
        if not isinstance(entry, SourceFile):
            raise SourceNotFound(f"{show_path(path)} is not a file")
        return PlacedFile("local", f"local:{show_path(path)}", show_path(path), entry, _nothing_to_close)
    listing = Listing("local", f"local:{show_path(path)}", show_path(path), opening.limits)
    for number, entry in enumerate(_walk(path)):
        if number % 1024 == 0:
            opening.check_cancelled()
        listing.add(entry)
    listing.check_not_empty()
    return listing


def _nothing_to_close() -> None:
    return None


def _walk(root: bytes) -> Iterator[SourceEntry]:
    """All entries below ``root``, directories before what they hold, names in byte order.

    Each directory is opened without following links and must be the one that its parent showed. So
    whoever may write to a part of the tree cannot lead the daemon, which may read more, out of it.
    """
    pending: list[tuple[bytes, os.stat_result | None]] = [(b"", None)]
    while pending:
        relative, shown = pending.pop()
        below: list[tuple[bytes, os.stat_result | None]] = []
        with _opened(os.path.join(root, relative) if relative else root, shown) as descriptor:
            for name, item in _scan(descriptor, os.path.join(root, relative)):
                path = relative + b"/" + name if relative else name
                try:
                    status = item.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        below.append((path, status))
                        yield SourceDirectory(path)
                    else:
                        yield _entry(root, path, status, descriptor)
                except OSError as error:
                    raise at_door(error, os.path.join(root, path)) from error
        pending.extend(reversed(below))


@contextlib.contextmanager
def _opened(directory: bytes, shown: os.stat_result | None) -> Iterator[int]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if shown is not None and error.errno in _GONE:
            raise _changed(directory, "is another directory now") from error
        raise at_door(error, directory) from error
    try:
        if shown is not None and not os.path.samestat(os.fstat(descriptor), shown):
            raise _changed(directory, "is another directory now")
        yield descriptor
    finally:
        os.close(descriptor)


def _scan(descriptor: int, directory: bytes) -> list[tuple[bytes, os.DirEntry[str]]]:
    try:
        with os.scandir(descriptor) as scan:
            return sorted(((os.fsencode(each.name), each) for each in scan), key=lambda pair: pair[0])
    except OSError as error:
        raise at_door(error, directory) from error


def _entry(root: bytes, path: bytes, status: os.stat_result, directory: int | None = None) -> SourceEntry:
    """``directory``: a descriptor of the directory that holds it, which nobody can swap."""
    full = os.path.join(root, path)
    name = full if directory is None else os.path.basename(path)
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return SourceLink(path, os.readlink(name, dir_fd=directory))
    what = what_is_special(mode)
    if what:
        return SourceSpecial(path, what)
    if not os.access(name, os.R_OK, dir_fd=directory, effective_ids=True):
        raise at_door(PermissionError(errno.EACCES, ""), full)
    file = LocalFile(root, path, status)
    return SourceFile(path, status.st_size, bool(mode & 0o111), file.pin, ranged=file)


def what_is_special(mode: int) -> str:
    """What a checkpoint may not hold, by its mode bits; empty for an ordinary file."""
    if stat.S_ISFIFO(mode):
        return "a fifo"
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if mode & stat.S_ISUID:
        return "a set-uid file"
    if mode & stat.S_ISGID:
        return "a set-gid file"
    return ""
