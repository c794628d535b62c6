"""What `doctor` can see for itself, without the daemon."""

from __future__ import annotations

import importlib.util
import os
import shutil

from ckptfs.errors import CkptfsError
from ckptfs.model.places import JOB_PATH
from ckptfs.model.records import DoctorCheck

_DAEMON_LIBRARIES = (
    "pyfuse3",
    "trio",
    "lmdb",
    "blake3",
    "xxhash",
    "hypercorn",
    "starlette",
    "boto3",
    "structlog",
)


def reachable(socket: str) -> DoctorCheck:
    return DoctorCheck(name="daemon", ok=True, detail=f"answers at {socket}")


def unreachable(socket: str, error: CkptfsError) -> DoctorCheck:
    return DoctorCheck(
        name="daemon",
        ok=False,
        detail=f"not reachable: {error.message}",
        remedy="systemctl start ckptfsd, or by hand: "
        f"ckptfsd --store DIR --mount DIR --socket {socket}; its log says what it lacks",
    )


def without_daemon() -> list[DoctorCheck]:
    return [_fuse_device(), _fusermount(), _mountpoint(), _libraries()]


def _fuse_device() -> DoctorCheck:
    path = "/dev/fuse"
    usable = os.access(path, os.R_OK | os.W_OK)
    state = "usable" if usable else "not for this user" if os.path.exists(path) else "missing"
    return DoctorCheck(
        name="FUSE device",
        ok=usable,
        detail=f"{path} is {state}",
        remedy="modprobe fuse; in a container give it --device /dev/fuse and CAP_SYS_ADMIN",
    )


def _fusermount() -> DoctorCheck:
    root = os.geteuid() == 0
    path = shutil.which("fusermount3")
    return DoctorCheck(
        name="fusermount3",
        ok=path is not None,
        detail=path or ("missing; root can mount without it" if root else "missing"),
        remedy="apt-get install fuse3",
        required=not root,
    )


def _mountpoint() -> DoctorCheck:
    there = os.path.isdir(JOB_PATH)
    return DoctorCheck(
        name="mountpoint",
        ok=there,
        detail=f"{JOB_PATH} is {'there' if there else 'missing'}",
        remedy=f"mkdir -p {JOB_PATH}, or another one with ckptfsd --mount DIR",
        required=False,
    )


def _libraries() -> DoctorCheck:
    missing = [name for name in _DAEMON_LIBRARIES if importlib.util.find_spec(name) is None]
    return DoctorCheck(
        name="libraries",
        ok=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else "all there",
        remedy="pip install ckptfs (pyfuse3 needs libfuse3-dev, pkg-config and a C compiler)",
    )


def namespaces() -> DoctorCheck:
    """Whether `ckptfs run` can give a job its own view, as the user who asks."""
    problem = _namespace_problem()
    who = "root" if os.geteuid() == 0 else "this user"
    return DoctorCheck(
        name="ckptfs run",
        ok=not problem,
        detail=problem or f"{who} can make mount namespaces",
        remedy="run it as root, or allow user namespaces (sysctl user.max_user_namespaces,"
        " kernel.apparmor_restrict_unprivileged_userns=0); or use `ckptfs attach`",
        required=False,
    )


def _namespace_problem() -> str:
    """Try it in a child process: reading settings would be a guess."""
    from ckptfs.cli import mounts

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mounts.own_namespace()
        except CkptfsError as error:
            os.write(writer, error.message.encode(errors="replace")[:2000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        problem = pipe.read().decode()
    os.waitpid(child, 0)
    return problem
