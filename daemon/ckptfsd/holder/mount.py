"""The connection that the holder holds: how it comes to be, what belongs to it, how its loss is noticed.

A connection is a descriptor of /dev/fuse, the INIT request that the kernel sent on it, and the table of
modes of what is open on it (ckptfs.fuse.mode_table). The three are made together, handed to each worker
together, kept by the service manager together, and end together.

Nothing here looks at a path through the mount without a way out: a dead mount answers at once, but one
whose worker hangs never does. So that question is asked by a child, which can be
killed.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import signal
from typing import Any

from ckptfs.errors import MountError
from ckptfs.fuse import device, init_reply, kernel_mount, mountinfo, tuning
from ckptfsd.holder.options import Options
from ckptfsd.holder.systemd import Manager

FSTYPE = "fuse.ckptfs"

# Of the modes table. The holder only makes it; ckptfs.fuse.mode_table knows what is in it and checks that
# the size is one that it can use. (That module is not imported: it would cost a megabyte.)
_MODES_BYTES = 8 * (3 + 2 * 262_144)

# A mount that is served answers within milliseconds, a dead one at once.
_ANSWER_SECONDS = 3.0

# Names in the service manager's store of descriptors.
_DEVICE, _FACTS, _MODES = "ckptfs-device", "ckptfs-facts", "ckptfs-modes"


class Mount:
    """One connection. ``adopted``: it was made by a holder before this one."""

    def __init__(
        self,
        path: str,
        fd: int,
        modes: int,
        offered: init_reply.InitRequest,
        mounted: mountinfo.Mounted,
        *,
        adopted: bool = False,
    ) -> None:
        self.path = path
        self.device = fd
        self.modes = modes
        self.offered = offered
        self.mounted = mounted
        self.adopted = adopted
        self.notes: list[str] = []

    @classmethod
    def make(cls, options: Options) -> Mount:
        """Mount. What is dead at the path is cleared first. Raises MountError."""
        path = mountinfo.settled_path(options.mount)
        note = clear_dead(path)
        fd = kernel_mount.attach(path, allow_other=options.allow_other)
        try:
            mounted = mountinfo.at(path)
            if mounted is None:
                raise MountError(f"{path} was unmounted the moment it was mounted")
            wishes = init_reply.Wishes(
                max_background=options.max_background,
                max_pages=options.max_pages,
                passthrough=options.passthrough,
                max_stack_depth=options.max_stack_depth,
            )
            offered = device.negotiate(fd, wishes)
            modes = _memory(_MODES_BYTES)
        except (OSError, ValueError, MountError) as error:
            os.close(fd)
            _detach_quietly(path)
            if isinstance(error, MountError):
                raise
            raise MountError(f"the kernel and ckptfs did not agree on a mount at {path}: {error}") from error
        mount = cls(path, fd, modes, offered, mounted)
        mount._note(note)
        mount._note(tuning.raise_read_ahead(mounted, options.read_ahead_kib))
        if not mount.can_resend(options):
            mount._note(
                "this kernel cannot send a dead worker's requests again (Linux 6.9 can), "
                "so a crash fails what is being read and everything that is open"
            )
        return mount

    @classmethod
    def adopt(cls, path: str, stored: dict[str, int]) -> Mount | None:
        """The connection that the service manager kept, if it is that of ``path`` and alive."""
        if not {_DEVICE, _FACTS, _MODES} <= stored.keys():
            return None
        fd = stored[_DEVICE]
        try:
            facts = json.loads(os.pread(stored[_FACTS], 65536, 0))
            offered = init_reply.parse(base64.b64decode(facts["init"]))
            mounted = next(m for m in mountinfo.mounts() if m.device == facts["device"])
        except (OSError, ValueError, KeyError, StopIteration):
            return None
        wanted = mountinfo.settled_path(path)
        if mounted.mountpoint != wanted or mounted.fstype != FSTYPE or not device.is_connected(fd):
            return None
        return cls(wanted, fd, stored[_MODES], offered, mounted, adopted=True)

    def can_resend(self, options: Options) -> bool:
        return self.offered.has_resend and options.resend

    def introduction(self, options: Options) -> dict[str, Any]:
        """What a worker has to know of the connection, beside the two descriptors."""
        return {
            "mount": self.path,
            "device": self.mounted.device,
            "init": base64.b64encode(self.offered.raw).decode(),
            "resend": self.can_resend(options),
            "passthrough": self.offered.has_passthrough and options.passthrough,
            "notes": "; ".join(self.notes),
        }

    def keep(self, manager: Manager) -> None:
        """Have the service manager keep the connection over a restart of the holder."""
        if not manager.present:
            return
        manager.forget(_DEVICE, _FACTS, _MODES)
        facts = json.dumps(
            {"device": self.mounted.device, "init": base64.b64encode(self.offered.raw).decode()}
        ).encode()
        fd = _memory(len(facts))
        os.pwrite(fd, facts, 0)
        for name, descriptor in ((_DEVICE, self.device), (_FACTS, fd), (_MODES, self.modes)):
            manager.store(name, descriptor)
        os.close(fd)

    def lost(self) -> str:
        """Why this mount serves nobody any more; empty while it does."""
        if not any(m.device == self.mounted.device and m.mountpoint == self.path for m in mountinfo.mounts()):
            return "it was unmounted"
        if not device.is_connected(self.device):
            return "its connection was aborted"
        return ""

    def unmount(self) -> str:
        """Unmount; what is busy goes with the last who uses it. Answers what there is to say about it."""
        top = mountinfo.at(self.path)
        if top is None:
            return ""
        if top.device != self.mounted.device:
            return f"the mount at {self.path} is hidden by another one ({top.fstype}) and stays"
        try:
            kernel_mount.detach(self.path, lazy=False)
        except OSError as error:
            if error.errno != errno.EBUSY:
                return f"{self.path} could not be unmounted: {error.strerror}"
            _detach_quietly(self.path)
            return f"files are open at {self.path}: it is detached and goes with the last of them"
        return ""

    def close(self, manager: Manager) -> None:
        """Let go of the connection: it ends when no worker has it either."""
        manager.forget(_DEVICE, _FACTS, _MODES)
        os.close(self.device)
        os.close(self.modes)

    def _note(self, text: str) -> None:
        if text:
            self.notes.append(text)


def clear_dead(path: str) -> str:
    """Take dead mounts of ours away from ``path``. Answers a note; raises MountError when what is there
    is alive or somebody else's."""
    note = ""
    while (mounted := mountinfo.at(path)) is not None:
        if mounted.fstype != FSTYPE:
            raise MountError(f"{path} is a mountpoint already ({mounted.source}, {mounted.fstype})")
        answer = _ask(path)
        if answer is None:
            raise MountError(
                f"{path} is a mount of a ckptfsd that does not answer; stop that daemon, or abort its "
                f"connection: echo 1 > /sys/fs/fuse/connections/{mounted.minor}/abort; umount -l {path}"
            )
        if answer not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountError(f"{path} is the mount of another ckptfsd")
        kernel_mount.detach(path, lazy=True)
        note = f"a dead ckptfs mount was cleared from {path}"
    return note


def _ask(path: str) -> int | None:
    """The errno of a statfs of ``path`` (0: none); None when it does not come back. Not stat: the kernel
    may answer that from what it remembers, also of a dead mount."""
    child = os.fork()
    if child == 0:
        try:
            os.statvfs(path)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(errno.EIO)
    pidfd = os.pidfd_open(child)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        answered = bool(poller.poll(_ANSWER_SECONDS * 1000))
        if not answered:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(status) if answered else None


def _memory(size_bytes: int) -> int:
    fd = os.memfd_create("ckptfs", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    return fd


def _detach_quietly(path: str) -> None:
    try:
        kernel_mount.detach(path, lazy=True)
    except OSError:
        return
