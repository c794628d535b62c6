"""FUSE passthrough as far as it is not pyfuse3's: the extension, who registers files, whether it works.

The extension (_channel.c) must be in the process before pyfuse3 is: ckptfs/fuse/__init__.py sees to that. It
may be absent, or ineffective, or the kernel, our privileges or the store's file system may not allow
passthrough: each has its sentence, and reads then go through the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ckptfs.fuse import device

if TYPE_CHECKING:
    from ckptfs.fuse.init_reply import InitRequest


class Backings(Protocol):
    """Who registers backing files with the kernel: this process (:class:`OwnBackings`), or the holder on
    behalf of a worker without CAP_SYS_ADMIN."""

    async def open(self, fd: int) -> int:
        """Register the file behind ``fd``; the backing id. Raises OSError."""

    async def keep(self, backing_ids: Sequence[int]) -> None:
        """These are in use, all others of the connection are to be freed. To be called before anything is
        registered for a request: that would be one of the others."""

    def close(self, backing_id: int) -> None:
        """Free an id that no handle uses. Does not wait, and never raises: an id that stays registered
        costs disk space of a deleted file at most."""


class OwnBackings:
    """Registers backing files itself. Needs CAP_SYS_ADMIN. ``fd`` is of /dev/fuse and stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._device = fd

    async def open(self, fd: int) -> int:
        return device.backing_open(self._device, fd)

    async def keep(self, backing_ids: Sequence[int]) -> None:
        """A connection that had nobody before us has no others."""

    def close(self, backing_id: int) -> None:
        with contextlib.suppress(OSError):
            device.backing_close(self._device, backing_id)


def grant(handle: int, backing_id: int) -> bool:
    """Answer OPENs that give this handle with passthrough to this file. False: the table is full."""
    return _extension is not None and _extension.grant(handle, backing_id)


def revoke(handle: int) -> None:
    if _extension is not None:
        _extension.revoke(handle)


def clear() -> None:
    """Forget all handles: for another connection."""
    if _extension is not None:
        _extension.clear()


def statistics() -> dict[str, int]:
    """``answered``: OPENs that came through the extension; ``granted``: of these, with passthrough."""
    return _extension.statistics() if _extension is not None else {}


def reads_keep(handle: int, size_bytes: int, extents: bytes, fds: bytes) -> bool:
    """Answer READs of this handle from these descriptors, without Python. False: these cannot be read so."""
    return _extension is not None and _extension.reads_keep(handle, size_bytes, extents, fds)


def reads_drop(handle: int) -> None:
    if _extension is not None:
        _extension.reads_drop(handle)


def reads_clear() -> None:
    """Forget all handles: for another connection."""
    if _extension is not None:
        _extension.reads_clear()


def reads_statistics() -> dict[str, int]:
    """``received``: requests that came through the extension; ``answered``, ``answered_bytes``: READs
    without Python; ``handed_up``: other READs; ``kept``: handles."""
    return _extension.reads_statistics() if _extension is not None else {}


def missing() -> str:
    """Why this process cannot answer OPEN with passthrough; empty when it can."""
    if _extension is None:
        return f"the extension ckptfs.fuse._channel is not here ({_why_absent})"
    if not _extension.is_first():
        return "another library answers OPEN before the extension does"
    return ""


def missing_in_kernel(offered: InitRequest) -> str:
    """Why the kernel of this connection cannot do passthrough; empty when it can."""
    if offered.has_passthrough:
        return ""
    return (
        f"the kernel ({os.uname().release}) does not offer passthrough: "
        "Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH is needed"
    )


async def missing_in_store(backings: Backings, directory: str) -> str:
    """Why a file in ``directory`` cannot be a backing file; empty when it can. Tries it, with a file that
    has no name."""
    try:
        with _nameless_file(directory) as fd:
            backing_id = await backings.open(fd)
    except OSError as error:
        return _refusals.get(error.errno or 0, f"the kernel refuses {directory}: {error.strerror}").format(
            directory=directory
        )
    backings.close(backing_id)
    return ""


_refusals = {
    errno.EPERM: "registering files with the kernel needs CAP_SYS_ADMIN",
    errno.ELOOP: (
        "the file system of {directory} is stacked on another one (overlay, or FUSE), "
        "so the kernel does not pass reads through to it; put the store on a plain one"
    ),
    errno.ENOTCONN: "the holder, which registers files with the kernel, is dead",
    errno.ENOTTY: "the kernel knows no backing files (Linux 6.9 or newer is needed)",
}


@contextlib.contextmanager
def _nameless_file(directory: str) -> Iterator[int]:
    import tempfile  # a megabyte, for a process that need not probe

    with tempfile.TemporaryFile(dir=directory) as file:
        yield file.fileno()


class _Extension(Protocol):
    def grant(self, handle: int, backing_id: int, /) -> bool: ...
    def revoke(self, handle: int, /) -> bool: ...
    def clear(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def is_first(self) -> bool: ...
    def reads_keep(self, handle: int, size: int, extents: bytes, fds: bytes, /) -> bool: ...
    def reads_drop(self, handle: int, /) -> bool: ...
    def reads_clear(self) -> None: ...
    def reads_statistics(self) -> dict[str, int]: ...


def _load() -> tuple[_Extension | None, str]:
    """With RTLD_GLOBAL, so that pyfuse3's search for fuse_reply_open finds the extension's. Where pyfuse3
    has been loaded, it has found libfuse's, and no later library changes that."""
    if "pyfuse3" in sys.modules:
        return None, "pyfuse3 was imported before it"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        return importlib.import_module("ckptfs.fuse._channel"), ""
    except ImportError as error:
        return None, str(error)
    finally:
        sys.setdlopenflags(flags)


_extension, _why_absent = _load()
