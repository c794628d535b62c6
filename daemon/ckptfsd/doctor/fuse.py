"""The kernel's side: can a mount be made, for whom, and how fast can it be."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat

from ckptfs.fuse import channel
from ckptfs.model.records import DoctorCheck

_CAP_SYS_ADMIN = 21  # linux/capability.h
_PASSTHROUGH_SINCE = (6, 9)


def _answer(ok: bool, detail: str, remedy: str = "", *, required: bool = True) -> DoctorCheck:
    return DoctorCheck(name="", ok=ok, detail=detail, remedy="" if ok else remedy, required=required)


def device(path: str = "/dev/fuse") -> DoctorCheck:
    remedy = f"modprobe fuse; in a container: --device {path} (and --cap-add SYS_ADMIN)"
    try:
        found = os.stat(path)
        if not stat.S_ISCHR(found.st_mode):
            return _answer(False, f"{path} is not a device", remedy)
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return _answer(False, f"{path} may not be opened by user {os.geteuid()}", f"chmod 666 {path}")
    except OSError as error:
        return _answer(False, f"{path}: {error.strerror}", remedy)
    return _answer(True, f"{path} can be opened")


def module(path: str = "/proc/filesystems") -> DoctorCheck:
    with open(path) as lines:
        known = {line.split()[-1] for line in lines if line.strip()}
    if "fuse" in known:
        return _answer(True, "the kernel knows FUSE")
    return _answer(False, "the kernel does not know FUSE", "modprobe fuse (CONFIG_FUSE_FS)")


def right_to_mount(status: str = "/proc/self/status") -> DoctorCheck:
    if may_mount(status):
        return _answer(True, "CAP_SYS_ADMIN is there")
    return _answer(
        False,
        f"user {os.geteuid()} has no CAP_SYS_ADMIN: the mount is made through fusermount3, and its readahead "
        "stays at the kernel's default",
        "run ckptfsd as root",
        required=False,
    )


def may_mount(status: str = "/proc/self/status") -> bool:
    with open(status) as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SYS_ADMIN & 1)


def fusermount(status: str = "/proc/self/status") -> DoctorCheck:
    found = shutil.which("fusermount3")
    if may_mount(status):
        return _answer(True, found or "not here, and not needed with CAP_SYS_ADMIN", required=False)
    if found is None:
        return _answer(False, "fusermount3 is not here", "apt-get install fuse3, or run ckptfsd as root")
    if not os.stat(found).st_mode & stat.S_ISUID:
        return _answer(False, f"{found} is not set-uid root", f"chmod u+s {found}, or run ckptfsd as root")
    return _answer(True, found)


def other_users(status: str = "/proc/self/status", path: str = "/etc/fuse.conf") -> DoctorCheck:
    if may_mount(status):
        return _answer(True, "all users of this node can see the mount")
    try:
        with open(path) as lines:
            allowed = any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        allowed = False
    if allowed:
        return _answer(True, f"{path} has user_allow_other")
    return _answer(
        False,
        f"only user {os.geteuid()} will see the mount",
        f"add the line user_allow_other to {path}, or run ckptfsd as root",
        required=False,
    )


def mountpoint(path: str, *, running: bool) -> DoctorCheck:
    # By the kernel's table, never by a look: a look at a dead mount fails, and one at our own waits for us.
    from ckptfs.fuse.mountinfo import at, settled_path

    settled = settled_path(path)
    mounted = at(settled)
    if mounted is not None and mounted.fstype == "fuse.ckptfs":
        if running:
            return _answer(True, f"mounted at {settled}")
        return _answer(
            False,
            f"a ckptfs mount is at {settled} already",
            "if its daemon runs, ask that one (ckptfs doctor); a dead one is cleared at the next start",
            required=False,
        )
    if mounted is not None:
        return _answer(
            False,
            f"{settled} is a mountpoint of {mounted.source} ({mounted.fstype})",
            "unmount that, or choose another --mount",
        )
    if running:
        return _answer(False, f"nothing is mounted at {settled}", "restart the daemon; its log says why")
    if not os.path.lexists(settled):
        return _answer(False, f"{settled} does not exist", f"mkdir -p {settled}, or choose another --mount")
    if not os.path.isdir(settled):
        return _answer(False, f"{settled} is not a directory", "remove it, or choose another --mount")
    if os.listdir(settled):
        return _answer(False, f"{settled} is not empty", "empty it, or choose another --mount")
    return _answer(True, f"{settled} is an empty directory")


def passthrough(why_not: str | None = None) -> DoctorCheck:
    """Without it reads go through the daemon: slower, never wrong. ``why_not``: what a running daemon found;
    None: none runs."""
    if why_not is not None:
        return _answer(
            not why_not,
            why_not or "whole files are read past the daemon",
            "docs/operations.md says what whole files need to be read past the daemon",
            required=False,
        )
    release = os.uname().release
    version = tuple(int(n) for n in re.findall(r"\d+", release)[:2])
    said = kernel_setting("CONFIG_FUSE_PASSTHROUGH")
    where = {"y": "with", None: "perhaps with"}.get(said, "without")
    extension = channel.missing()
    if extension:
        return _answer(
            False, extension, "install a C compiler and libfuse3-dev, then ckptfs again", required=False
        )
    return _answer(
        version >= _PASSTHROUGH_SINCE and said in ("y", None),
        f"Linux {release}, {where} CONFIG_FUSE_PASSTHROUGH",
        "a kernel >= 6.9 with CONFIG_FUSE_PASSTHROUGH=y reads whole files without the daemon",
        required=False,
    )


def kernel_setting(name: str) -> str | None:
    """A setting of the running kernel: "y", "m", "n", or None where the kernel's configuration is not to
    be had."""
    for path in ("/proc/config.gz", f"/boot/config-{os.uname().release}"):
        try:
            with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as lines:
                for line in lines:
                    if line.startswith(f"{name}="):
                        return line.split("=", 1)[1].strip()
        except OSError:
            continue
        return "n"
    return None


def request_timeout(path: str = "/proc/sys/fs/fuse/default_request_timeout") -> DoctorCheck:
    try:
        with open(path) as value:
            seconds = int(value.read())
    except OSError:
        return _answer(True, "this kernel never gives up on a read", required=False)
    if seconds == 0:
        return _answer(True, "the kernel never gives up on a read", required=False)
    return _answer(
        False,
        f"the kernel aborts the mount when a read waits longer than {seconds} seconds",
        "sysctl fs.fuse.default_request_timeout=0",
        required=False,
    )
