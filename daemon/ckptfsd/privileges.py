"""The worker gives up what only the holder needs: it parses what strangers wrote, so it should not be able
to mount, load modules or trace other processes.

The holder does it for whatever it starts as a worker, before that is executed: which program it is, a worker
may have said. The worker does it too: its holder may be older than it.

docs/security.md has the table of what each process holds. Standard library only: the holder imports this.
"""

from __future__ import annotations

import ctypes
import os

# linux/capability.h
_CAP_CHOWN = 0  # the control socket's group
_CAP_DAC_OVERRIDE = 1  # a control socket or store in a directory that is not root's
_CAP_DAC_READ_SEARCH = 2  # local sources of every user
_CAP_FOWNER = 3  # O_NOATIME, and the mode of a socket file
_KEPT = (_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_FOWNER)

# linux/prctl.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_VERSION_3 = 0x20080522
_SETS_PER_WORD = 3  # effective, permitted, inheritable

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop() -> None:
    """Keep of our capabilities only those that a worker needs, for us and whatever we execute. Does nothing
    without root. Raises OSError."""
    if os.geteuid() != 0:
        return
    header = _Header(_VERSION_3, 0)
    words = (ctypes.c_uint32 * (2 * _SETS_PER_WORD))()
    _call(_libc.capget, ctypes.byref(header), words)
    number = 0
    while (has := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if has and number not in _KEPT and words[0] >> 8 & 1:  # CAP_SETPCAP, or it may not be dropped
            _call(_libc.prctl, _PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1
    mask = sum(1 << kept for kept in _KEPT)
    for word in range(2):
        at = word * _SETS_PER_WORD
        of_word = mask >> 32 * word & 0xFFFFFFFF
        words[at] &= of_word
        words[at + 1] &= of_word
        words[at + 2] = 0
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = _Header(_VERSION_3, 0)
    _call(_libc.capset, ctypes.byref(header), words)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
