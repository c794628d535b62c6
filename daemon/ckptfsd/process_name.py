"""What ps and top call a process of the daemon; else it would be Python's name for all of them."""

from __future__ import annotations

import contextlib


def set_process_name(name: str) -> None:
    """At most 15 bytes, or the kernel cuts it (proc_pid_comm(5))."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name)
