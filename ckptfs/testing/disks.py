"""Small real file systems on loop devices, as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: ``make(size_bytes, kind, *options)`` answers where the disk is mounted.
MakeDisk = Callable[..., str]

#: What makes one of each kind. Both with reflinks are told so: it must not depend on a default.
MAKERS: dict[str, list[str]] = {
    "ext4": ["mkfs.ext4", "-q", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-m", "single"],
}
#: Those that let files share blocks.
SHARING = ("xfs", "btrfs")
#: mkfs.xfs makes none smaller.
SMALLEST_XFS_BYTES = 300 << 20


@contextmanager
def loop_disk(folder: str, size_bytes: int, kind: str = "ext4", *options: str) -> Iterator[str]:
    """Where a file system of a kind is mounted while the block runs. ``folder``: for its image."""
    image, at = os.path.join(folder, "disk.img"), os.path.join(folder, "disk")
    os.makedirs(at)
    with open(image, "wb") as file:
        file.truncate(max(size_bytes, SMALLEST_XFS_BYTES) if kind == "xfs" else size_bytes)
    subprocess.run([*MAKERS[kind], *options, image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        # Lazily: a test that failed holds files open. The loop device goes with the mount.
        subprocess.run(["umount", "--lazy", at], check=True)
        os.unlink(image)  # pytest keeps the folders of tests: a run would leave gigabytes
