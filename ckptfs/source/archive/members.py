"""What tar headers mean, for plain and compressed tars alike.

tarfile parses; this module walks it, bounds it, and finds out how the listing ended: tarfile takes a
tar that is cut off between two members, or whose next header is damaged, for a complete one.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from ckptfs.errors import CkptfsError, SourceCorrupt, SourceRefused
from ckptfs.source.base import (
    SourceDirectory,
    SourceEntry,
    SourceHardlink,
    SourceLink,
    SourceSpecial,
)
from ckptfs.source.seekable import SeekableView

#: The longest header (pax records, a GNU long name) that is read into memory.
LONGEST_HEADER_BYTES = 1 << 20
_END_MARK = bytes(tarfile.BLOCKSIZE)


def walk(view: SeekableView, label: str) -> Iterator[tarfile.TarInfo]:
    """The members in order. Raises SourceCorrupt unless they end with an end mark."""
    tar = _guarded(lambda: _open(view), label)
    while True:
        # Not kept: a million members would be a gigabyte.
        tar.members = []
        member = _guarded(tar.next, label)
        if member is None:
            break
        if member.size < 0 or member.offset_data < 0:
            raise SourceCorrupt(f"{label}: {member.name!r} has a negative size; the archive is damaged")
        yield member
    if view.last != _END_MARK:
        how = "ends without an end mark: it is truncated" if len(view.last) < 512 else "has a damaged header"
        raise SourceCorrupt(f"{label} {how} (after {tar.offset:,} bytes)")


def check_rest(rest: memoryview, label: str) -> None:
    """After the end mark there is padding only. What tar itself would ignore silently, another tar that
    was appended, say, must not be missing from a checkpoint silently."""
    if bytes(rest).strip(b"\0"):
        raise SourceCorrupt(
            f"{label}: there is something after the tar's end mark, another tar perhaps; unpack it yourself, "
            "or keep the file as it is with --no-extract"
        )


def _open(view: SeekableView) -> tarfile.TarFile:
    return tarfile.TarFile(
        fileobj=cast("IO[bytes]", view), mode="r", encoding="utf-8", errors="surrogateescape", errorlevel=2
    )


def _guarded(call: Any, label: str) -> Any:
    try:
        return call()
    except CkptfsError:
        raise
    except Exception as error:
        # Hostile headers make tarfile raise nearly anything (ValueError, KeyError, RecursionError).
        raise SourceCorrupt(f"{label} is damaged: its headers do not make sense ({error})") from error


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def without_content(member: tarfile.TarInfo) -> SourceEntry | None:
    """The entry of a member that is not a regular file; None for one that is."""
    path = raw(member.name)
    if member.isdir():
        return SourceDirectory(path)
    if member.issym():
        return SourceLink(path, raw(member.linkname))
    if member.islnk():
        return SourceHardlink(path, raw(member.linkname))
    if member.isfifo():
        return SourceSpecial(path, "a fifo")
    if member.ischr() or member.isblk():
        return SourceSpecial(path, "a device")
    if member.type not in _REGULAR:
        return SourceSpecial(path, f"an entry of the unknown type {member.type!r}")
    if member.mode & 0o4000:
        return SourceSpecial(path, "a set-uid file")
    if member.mode & 0o2000:
        return SourceSpecial(path, "a set-gid file")
    return None


_REGULAR = (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE)


def is_root(path: bytes) -> bool:
    """Whether a path is the archive's own top ("./"), which is no entry of a checkpoint."""
    return not path.startswith(b"/") and all(part in (b"", b".") for part in path.split(b"/"))


def runs_of(member: tarfile.TarInfo, label: str) -> list[tuple[int, int]] | None:
    """A sparse member's runs of data as (offset, length) in ascending order; None if it is not sparse."""
    sparse = cast("list[tuple[int, int]] | None", member.sparse)
    if sparse is None:
        return None
    end = 0
    runs = [(offset, length) for offset, length in sparse if length]
    for offset, length in runs:
        if offset < end or length < 0 or offset + length > member.size:
            raise SourceRefused(f"{label}: the map of the sparse file {member.name!r} does not make sense")
        end = offset + length
    return runs
