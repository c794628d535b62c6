"""The control interface's Unix socket: made, bound and removed by us.

A worker goes on with the socket of the worker before it (worker_link.Listener), so whoever connects
meanwhile waits. A socket file outlives a killed daemon. It is replaced only when nobody answers on it, and
that question and the answer to it are one step for all daemons, by a lock on the socket's directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Iterator
from types import TracebackType

from ckptfs.errors import ConfigurationError, Conflict, PermissionDenied
from ckptfsd.worker_link import Listener

# Connections that wait to be accepted. With a full one a client with a timeout fails at once (EAGAIN), so
# it holds what a node's agents can send in one burst. The kernel's own limit is net.core.somaxconn.
BACKLOG = 4096
_LOCK_WAIT_SECONDS = 5.0


def group_id(name: str, setting: str) -> int:
    """The number of a group of this machine. Raises :class:`ConfigurationError`."""
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(f"[control] {setting}: there is no group {name!r} on this machine") from None


class ControlSocket:
    """A listening socket at ``path`` with the given mode and group; removed again by :meth:`close`.

    Raises :class:`Conflict` if a process answers there, or something else than a socket is in the way;
    :class:`PermissionDenied` where the directory may not be written.
    """

    def __init__(
        self, path: str, *, mode: int = 0o660, group: str = "", inherited: Listener | None = None
    ) -> None:
        self.path = path
        #: Another worker goes on with it: close() leaves the file alone.
        self.stays = False
        gid = group_id(group, "socket_group") if group else None
        if inherited is not None and self._take(inherited):
            self._permit(gid, mode)
            return
        directory = os.path.dirname(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            with _locked(directory):
                _clear_the_way(path)
                old_umask = os.umask(0o777)  # nobody gets in before mode and group are right
                try:
                    self.socket.bind(path)
                finally:
                    os.umask(old_umask)
                self.inode = _inode(path)
                try:
                    self._permit(gid, mode)
                    self.socket.listen(BACKLOG)
                except BaseException:
                    os.unlink(path)
                    raise
        except OSError as error:
            self.socket.close()
            kind = PermissionDenied if error.errno in (errno.EACCES, errno.EPERM) else ConfigurationError
            raise kind(f"control socket {path}: {error.strerror}") from error
        except BaseException:
            self.socket.close()
            raise
        if inherited is not None and inherited.path != path:
            with contextlib.suppress(OSError):
                if _inode(inherited.path) == inherited.inode:
                    os.unlink(inherited.path)

    def _take(self, inherited: Listener) -> bool:
        """Go on with the socket of the worker before us. False when that is another path now, or somebody
        took the file away."""
        with contextlib.suppress(OSError):
            if inherited.path == self.path and _inode(self.path) == inherited.inode:
                self.inode = inherited.inode
                self.socket = socket.socket(fileno=os.dup(inherited.fd))
                return True
        return False

    def _permit(self, gid: int | None, mode: int) -> None:
        if gid is not None:
            os.chown(self.path, -1, gid)
        os.chmod(self.path, mode)

    def close(self) -> None:
        """Remove the socket file, if it is still ours, and stop listening. May be called twice."""
        if self.socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if not self.stays and _inode(self.path) == self.inode:
                os.unlink(self.path)
        self.socket.close()

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Conflict(f"control socket: another process holds a lock on {directory}") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _clear_the_way(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Conflict(
            f"control socket {path}: something that is not a socket is there; "
            "remove it or choose another path"
        )
    if _somebody_answers(path):
        raise Conflict(
            f"control socket {path}: another process answers there; "
            "stop it, or give this daemon its own --socket"
        )
    os.unlink(path)


def _somebody_answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full: busy, but there
        except OSError as error:
            # A socket of another type, or one that we may not connect to: not ours to remove.
            return error.errno != errno.ENOENT
    return True
