"""Is the index fit to be opened? Asked in a child process, because the wrong answer may be SIGBUS.

The child runs ``probe_child.py`` as a script, away from this package. It reads both meta pages, the end
of the file, every small table and a sample of the large ones; it does not read a million rows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from ckptfs.errors import StoreDamaged, StoreError
from ckptfs.store.index import REMEDY

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "probe_child.py")

#: A sound index of a million chunks takes 0.2 s; a disk that needs longer than this is the problem.
_TIMEOUT_SECONDS = 60.0

#: The child's exit status when it lacks a package: that says nothing about the index.
CANNOT_CHECK = 3


def check(index: str, root: str) -> None:
    """Raise :class:`StoreDamaged` when the index in a folder cannot be trusted."""
    try:
        done = subprocess.run(
            # Without the script's own folder in front, and otherwise with the packages of this process:
            # they may lie in PYTHONPATH or in the user's own folder.
            [sys.executable, "-P", _SCRIPT, index],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StoreDamaged(
            f"the index of {root} could not be checked within {_TIMEOUT_SECONDS:.0f} s: check the disk"
        ) from error
    if done.returncode == 0:
        return
    problem = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode < 0:
        problem = f"reading it ended in {signal.Signals(-done.returncode).name}"
    elif not problem:
        problem = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or "it cannot be read"
    if done.returncode == CANNOT_CHECK:
        raise StoreError(f"the index of {root} could not be checked: {problem}; install ckptfs again")
    raise StoreDamaged(f"the index of {root} is damaged ({problem}): {REMEDY.replace('DIR', root)}")
