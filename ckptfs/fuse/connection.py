"""The connection with the kernel: how it comes to be, and how it ends.

A descriptor of /dev/fuse that is mounted somewhere, the INIT request that the kernel sent on it, and the
table of modes of what is open on it (mode_table). The three are made together, handed to whoever serves
together (session), and end together. Who makes one and who serves it are two processes: the holder and
its worker.

Standard library only, and light: the holder has to stay small.
"""

from __future__ import annotations

import base64
import errno
import os
from typing import Any, NamedTuple

from ckptfs.errors import MountError
from ckptfs.fuse import device, init_reply, kernel_mount, mountinfo, mountpoint, tuning

# Of the modes table, which is only made here; mode_table knows what is in it and checks that the size is
# one that it can use. (That module is not imported: it would cost a megabyte.)
MODES_BYTES = 8 * (5 + 2 * 262_144)


class Terms(NamedTuple):
    """What is asked of the kernel. ``allow_other`` None: other users see the mount wherever the system
    lets us. ``resend`` False: do as on a kernel that cannot resend (before 6.9)."""

    allow_other: bool | None = None
    # How far the kernel reads ahead of a sequential reader. Requests of 1 MiB need at least 1024.
    read_ahead_kib: int = 8192
    # Requests that the kernel sends ahead or in the background at a time; its own default is 12.
    max_background: int = 4096
    passthrough: bool = True
    max_stack_depth: int = 1
    resend: bool = True


class Connection(NamedTuple):
    """``device``: "major:minor" of the mount. ``notes``: what it cannot do, and why, in one line. The two
    descriptors are this process's, to be closed with :meth:`close`."""

    mount: str
    device: str
    offered: init_reply.InitRequest
    fuse_fd: int
    modes_fd: int
    passthrough: bool = True  # was asked for; `offered` says whether the kernel can
    resend: bool = True  # a worker that dies can be followed by another one
    notes: str = ""
    shows: str = ""  # the path of the store whose files are there, as far as the caller says

    def described(self) -> dict[str, Any]:
        """Everything but the descriptors, as JSON; :func:`from_description` is the way back."""
        return {
            "mount": self.mount,
            "device": self.device,
            "init": base64.b64encode(self.offered.raw).decode(),
            "passthrough": self.passthrough,
            "resend": self.resend,
            "notes": self.notes,
            "shows": self.shows,
        }

    def lost(self) -> str:
        """Why this mount serves nobody any more; empty while it does."""
        if not any(m.device == self.device and m.mountpoint == self.mount for m in mountinfo.mounts()):
            return "it was unmounted"
        if not device.is_connected(self.fuse_fd):
            return "its connection was aborted"
        return ""

    def unmount(self) -> str:
        """Unmount; what is busy goes with the last who uses it. Answers what there is to say about it."""
        top = mountinfo.at(self.mount)
        if top is None:
            return ""
        if top.device != self.device:
            return f"the mount at {self.mount} is hidden by another one ({top.fstype}) and stays"
        try:
            kernel_mount.detach(self.mount, lazy=False)
        except OSError as error:
            if error.errno != errno.EBUSY:
                return f"{self.mount} could not be unmounted: {error.strerror}"
            _detach_quietly(self.mount)
            return f"files are open at {self.mount}: it is detached and goes with the last of them"
        return ""

    def duplicate(self) -> Connection:
        """The same with descriptors of its own."""
        return self._replace(fuse_fd=os.dup(self.fuse_fd), modes_fd=os.dup(self.modes_fd))

    def close(self) -> None:
        """Let go of the connection: it ends when no other process has it either."""
        os.close(self.fuse_fd)
        os.close(self.modes_fd)


def connect(path: str, terms: Terms | None = None) -> Connection:
    """Mount at ``path``; what is dead there is cleared first. Raises :class:`MountError`."""
    terms = terms or Terms()
    path, cleared = mountpoint.prepare(path)
    notes = [cleared]
    allow_other = terms.allow_other
    if allow_other is None:
        allow_other = kernel_mount.others_allowed()
        if not allow_other:
            notes.append(
                f"only processes of user {os.geteuid()} see the mount "
                "(user_allow_other in /etc/fuse.conf, or root, lets others in)"
            )
    fd = kernel_mount.attach(path, allow_other=allow_other)
    try:
        mounted = mountinfo.at(path)
        if mounted is None:
            raise MountError(f"{path} was unmounted the moment it was mounted")
        wishes = init_reply.Wishes(
            max_background=terms.max_background,
            passthrough=terms.passthrough,
            max_stack_depth=terms.max_stack_depth,
        )
        offered = device.negotiate(fd, wishes)
        modes = memory(MODES_BYTES)
    except (OSError, ValueError, MountError) as error:
        os.close(fd)
        _detach_quietly(path)
        if isinstance(error, MountError):
            raise
        raise MountError(f"the kernel and ckptfs did not agree on a mount at {path}: {error}") from error
    # After INIT: its answer would lower it again.
    notes.append(tuning.raise_read_ahead(mounted, terms.read_ahead_kib))
    resend = offered.has_resend and terms.resend
    if not resend:
        notes.append(
            "this kernel cannot send a dead worker's requests again (Linux 6.9 can), "
            "so a crash fails what is being read and everything that is open through the daemon"
        )
    return Connection(
        mount=path,
        device=mounted.device,
        offered=offered,
        fuse_fd=fd,
        modes_fd=modes,
        passthrough=terms.passthrough,
        resend=resend,
        notes="; ".join(note for note in notes if note),
    )


def from_description(facts: dict[str, Any], fuse_fd: int, modes_fd: int) -> Connection:
    """Raises KeyError, TypeError or ValueError for a description that is none."""
    return Connection(
        mount=str(facts["mount"]),
        device=str(facts["device"]),
        offered=init_reply.parse(base64.b64decode(facts["init"])),
        fuse_fd=fuse_fd,
        modes_fd=modes_fd,
        passthrough=bool(facts["passthrough"]),
        resend=bool(facts["resend"]),
        notes=str(facts["notes"]),
        shows=str(facts.get("shows", "")),
    )


def memory(size_bytes: int) -> int:
    """A descriptor of so much memory, all zeros."""
    fd = os.memfd_create("ckptfs", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    return fd


def _detach_quietly(path: str) -> None:
    try:
        kernel_mount.detach(path, lazy=True)
    except OSError:
        return
