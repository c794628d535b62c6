"""Get a connection: open /dev/fuse and mount it, by mount(2) as root, by fusermount3 otherwise.

libfuse could do this too. We do it because its refusals come as text on stderr and an exit code,
ours as an errno that can be explained; and because the descriptor then is ours: libfuse is told that
/dev/fd/N is mounted already, so who mounts and who serves can become two processes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from ckptfs.errors import MountError

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4  # linux/mount.h
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_FUSERMOUNT_SECONDS = 20.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def privileged() -> bool:
    return os.geteuid() == 0


def attach(path: str, *, allow_other: bool) -> int:
    """Mount at ``path``, read-only, and answer the connection's descriptor. Raises :class:`MountError`."""
    return _mount(path, allow_other) if privileged() else _fusermount(path, allow_other)


def detach(path: str, *, lazy: bool) -> None:
    """Unmount what is at ``path``. Raises OSError; EBUSY when something in it is in use and not lazy."""
    if privileged():
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        if _libc.umount2(os.fsencode(path), flags) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return
    import subprocess  # here, as in _fusermount: the holder does not need it, and has to stay small

    program = _fusermount_program()
    done = subprocess.run(
        [program, "-u", *(["-z"] if lazy else []), "--", path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_FUSERMOUNT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        said = _last_line(done.stderr)
        raise OSError(errno.EBUSY if "busy" in said else errno.EPERM, said or "fusermount3 failed", path)


def others_allowed() -> bool:
    """May this process make a mount that other users see? Root always; others if fuse.conf says so."""
    if privileged():
        return True
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as conf:
            return any(line.strip() == "user_allow_other" for line in conf)
    except OSError:
        return False


def _mount(path: str, allow_other: bool) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(
            f"/dev/fuse cannot be opened ({error.strerror}); is the fuse module loaded?"
        ) from error
    options = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,default_permissions"
    if allow_other:
        options += ",allow_other"
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if _libc.mount(b"ckptfs", os.fsencode(path), b"fuse.ckptfs", flags, options.encode()) == 0:
        return fd
    code = ctypes.get_errno()
    os.close(fd)
    why = os.strerror(code)
    if code == errno.EPERM:
        why += "; mounting needs CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN --device /dev/fuse)"
    elif code == errno.ENODEV:
        why = "this kernel has no FUSE (modprobe fuse)"
    raise MountError(f"cannot mount at {path}: {why}")


def _fusermount(path: str, allow_other: bool) -> int:
    """The protocol of fusermount3(1): it mounts and sends the descriptor over the socket that the
    environment names."""
    import socket
    import subprocess

    program = _fusermount_program()
    options = ["ro", "nosuid", "nodev", "fsname=ckptfs", "subtype=ckptfs", "default_permissions"]
    if allow_other:
        options.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [program, "-o", ",".join(options), "--", path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            )
        ours.settimeout(_FUSERMOUNT_SECONDS)
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        except OSError:
            descriptors = []
            process.kill()
        _, stderr = process.communicate()
    if descriptors:
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]
    said = _last_line(stderr.decode(errors="replace")) or "fusermount3 gave no reason"
    if "/dev/fuse" in said:
        said += "; it must be writable for this user (mode 0666, as udev makes it)"
    raise MountError(f"cannot mount at {path} without root: {said}")


def _fusermount_program() -> str:
    import shutil

    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("mounting without root needs fusermount3: install the package fuse3, or run as root")
    return program


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
