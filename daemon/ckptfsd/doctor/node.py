"""The node's side: libraries, the store's file system, limits."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib.metadata
import importlib.util
import os
import resource
import socket

from ckptfs.model.records import DoctorCheck
from ckptfs.model.sizes import format_bytes
from ckptfsd.config import lies_in

# Of what the daemon runs on: import name → distribution. (pyfuse3 needs libfuse too: see libfuse().)
_PACKAGES = {
    "anyio": "anyio",
    "blake3": "blake3",
    "boto3": "boto3",
    "hypercorn": "hypercorn",
    "isal": "isal",
    "lmdb": "lmdb",
    "msgspec": "msgspec",
    "pyfuse3": "pyfuse3",
    "starlette": "starlette",
    "structlog": "structlog",
    "trio": "trio",
    "urllib3": "urllib3",
    "xxhash": "xxhash",
}
_ENOUGH_OPEN_FILES = 8192
_FICLONE = 0x40049409  # linux/fs.h
# Where locks, mmap and holes are not to be trusted, or a read waits for another machine.
_NOT_LOCAL = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse", "afs", "gpfs")


def _answer(ok: bool, detail: str, remedy: str = "", *, required: bool = True) -> DoctorCheck:
    return DoctorCheck(name="", ok=ok, detail=detail, remedy="" if ok else remedy, required=required)


def packages() -> DoctorCheck:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(_PACKAGES[name] for name in missing)
        return _answer(False, f"missing: {names}", "pip install ckptfs (into the daemon's Python)")
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("trio", "pyfuse3", "lmdb"))
    return _answer(True, f"all {len(_PACKAGES)} are here ({', '.join(versions)})")


def libfuse() -> DoctorCheck:
    remedy = "apt-get install libfuse3-3 (or fuse3), then pip install --force-reinstall pyfuse3"
    try:
        library = ctypes.CDLL("libfuse3.so.3")
    except OSError as error:
        # A later libfuse has another soname: what counts is whether pyfuse3 loads.
        return _answer(_pyfuse3_fails() == "", f"libfuse3.so.3: {error}", remedy)
    library.fuse_pkgversion.restype = ctypes.c_char_p
    version = library.fuse_pkgversion().decode()
    if why := _pyfuse3_fails():
        return _answer(False, f"libfuse {version} is here, but pyfuse3 cannot be loaded: {why}", remedy)
    return _answer(True, f"libfuse {version}, and pyfuse3 loads")


def _pyfuse3_fails() -> str:
    try:
        importlib.import_module("ckptfs.fuse.operations")  # only that room may know pyfuse3
    except (ImportError, OSError) as error:
        return str(error)
    return ""


def nearest_directory(path: str) -> str:
    """``path``, or the nearest directory above it that is there."""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return path


def store_directory(path: str) -> DoctorCheck:
    there = nearest_directory(path)
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return _answer(
            False,
            f"{there} cannot be written by user {os.geteuid()}",
            f"chown or chmod {there}, or choose another --store",
        )
    return _answer(True, path if there == path else f"{path} is not there; the daemon makes it")


def store_place(path: str, mount: str) -> DoctorCheck:
    if mount and lies_in(path, mount):
        return _answer(False, f"{path} lies in the mount {mount}", "choose a --store outside of it")
    return _answer(True, f"{path} lies outside of the mount")


def store_file_system(path: str) -> DoctorCheck:
    kind = _file_system_of(path)
    if kind.split(".")[0] in _NOT_LOCAL:
        return _answer(
            False,
            f"{kind} is not a local file system",
            "put the store on a local disk (ext4, XFS, btrfs)",
        )
    if not _can_punch(path):
        return _answer(False, f"{kind} cannot punch holes", "put the store on ext4, XFS, btrfs or tmpfs")
    return _answer(True, f"{kind}, holes can be punched")


def _file_system_of(path: str) -> str:
    from ckptfs.fuse.mountinfo import mounts

    inside = os.path.realpath(nearest_directory(path))
    best = ""
    kind = "unknown"
    for mounted in mounts():
        root = mounted.mountpoint.rstrip("/") + "/"
        if (inside + "/").startswith(root) and len(root) >= len(best):
            best, kind = root, mounted.fstype
    return kind


def _nameless_file(path: str) -> int:
    """A file without a name, so that a check leaves nothing behind whatever happens."""
    directory = nearest_directory(path)
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _can_punch(path: str) -> bool:
    from ckptfs.store.kernel import punch

    try:
        file = _nameless_file(path)
    except OSError as error:
        # No O_TMPFILE here (overlayfs of old kernels) or not our directory: not an answer to the question.
        return error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)
    try:
        os.pwrite(file, bytes(8192), 0)
        punch(file, 0, 4096)
    except OSError as error:
        return error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)
    finally:
        os.close(file)
    return True


def free_space(path: str, reserve_bytes: int) -> DoctorCheck:
    found = os.statvfs(nearest_directory(path))
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    detail = f"{format_bytes(free)} free of {format_bytes(total)}"
    reserve_bytes = min(reserve_bytes, total // 20)  # as the engine does
    if free <= reserve_bytes:
        return _answer(
            False,
            f"{detail}, and {format_bytes(reserve_bytes)} are kept free",
            "ckptfs remove what is not needed, or move the store to a larger disk",
        )
    if found.f_files and not found.f_favail:
        return _answer(False, f"{detail}, but no inodes", "remove small files from the store's disk")
    return _answer(True, detail)


def reflinks(path: str) -> DoctorCheck:
    """Only information: where a file shares chunks, they can be cloned into place at no cost in space."""
    first = second = -1
    try:
        first, second = _nameless_file(path), _nameless_file(path)
        os.pwrite(first, bytes(4096), 0)
        fcntl.ioctl(second, _FICLONE, first)
    except OSError as error:
        return _answer(
            False,
            f"the store's file system has none ({error.strerror})",
            "nothing has to be done; XFS and btrfs have them",
            required=False,
        )
    finally:
        for file in (first, second):
            if file >= 0:
                os.close(file)
    return _answer(True, "the store's file system has them", required=False)


def control_socket(path: str, *, running: bool) -> DoctorCheck:
    if running:
        return _answer(True, f"answers on {path}")
    there = nearest_directory(os.path.dirname(path))
    if not os.access(there, os.W_OK | os.X_OK):
        return _answer(
            False,
            f"{there} cannot be written by user {os.geteuid()}",
            f"chmod {there}, or choose another --socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return _answer(True, f"{path} is free")
        except ConnectionRefusedError:
            return _answer(True, f"{path} is left over; the daemon replaces it")
        except OSError as error:
            return _answer(False, f"{path}: {error.strerror}", "choose another --socket")
    return _answer(
        False,
        f"a process answers on {path}",
        "ask it: ckptfs doctor; or choose another --socket",
        required=False,
    )


def open_files() -> DoctorCheck:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _ENOUGH_OPEN_FILES:
        return _answer(True, f"up to {'any number' if hard == resource.RLIM_INFINITY else hard}")
    return _answer(
        False,
        f"only {hard}",
        f"ulimit -n {_ENOUGH_OPEN_FILES}, or LimitNOFILE= in the unit",
        required=False,
    )
