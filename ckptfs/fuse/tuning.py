"""What the kernel must be told after mounting, because INIT cannot say it.

``read_ahead_kb`` of the mount's backing device: the default of 128 KiB bounds every request to that. It needs
root; without it the mount works, slower, and the answer is a note that says so.
"""

from __future__ import annotations

from ckptfs.fuse.mountinfo import Mounted


def raise_read_ahead(mounted: Mounted, kib: int) -> str:
    path = f"/sys/class/bdi/{mounted.device}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as knob:
            knob.write(str(kib))
    except OSError as error:
        return (
            f"readahead stays at the kernel's 128 KiB, so reads are several times slower "
            f"({path}: {error.strerror})"
        )
    return ""
