"""Where the control socket is, and what it means when it cannot be reached."""

from __future__ import annotations

import os

from ckptfs.errors import CkptfsError, ConnectionError, PermissionDenied, SpecificationError

DEFAULT_SOCKET = "/run/ckptfs/control.sock"
ENVIRONMENT = "CKPTFS_SOCKET"

_MAX_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with the NUL (unix(7))


def resolve(socket: str | os.PathLike[str] | None) -> str:
    """The socket's path: the argument, else ``CKPTFS_SOCKET``, else the default."""
    path = os.fspath(socket) if socket else os.environ.get(ENVIRONMENT) or DEFAULT_SOCKET
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise SpecificationError(
            "socket",
            f"the socket's path is longer than the {_MAX_PATH_BYTES} bytes that the system allows: {path}",
        )
    return path


def unreachable(path: str, error: OSError) -> CkptfsError:
    """What a failed connect means, in our words."""
    if isinstance(error, PermissionError):
        return PermissionDenied(f"no permission to use {path}: ask to be a member of the group that owns it")
    if isinstance(error, FileNotFoundError):
        return ConnectionError(
            f"no daemon at {path}: start ckptfsd, or name its socket with --socket or {ENVIRONMENT}"
        )
    if isinstance(error, ConnectionRefusedError):
        return ConnectionError(f"the daemon at {path} is not running: start ckptfsd")
    return ConnectionError(f"cannot reach the daemon at {path}: {error.strerror or error}")


def lost(path: str, error: OSError) -> CkptfsError:
    return ConnectionError(f"lost the daemon at {path}: {error.strerror or error}")


def silent(path: str, seconds: float) -> CkptfsError:
    return ConnectionError(f"the daemon at {path} has not answered for {seconds:g} seconds")
