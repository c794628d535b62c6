"""The cure for pyfuse3's freeze.

pyfuse3 waits until /dev/fuse is readable and then calls a blocking read(2) with the GIL held. When the
process that made it readable is killed in between, its request is taken back and that read blocks:
with the GIL held no thread of the daemon runs, not even this one, until somebody else touches the
mount (9 s were seen, ended by a chance `stat`).

A signal ends the read: it returns EINTR, libfuse hands that up and pyfuse3 asks again. So a timer
sends SIGALRM a few times a second, to a handler that does nothing. The handler must exist (the default
action is to die) and must not be SIG_IGN (an ignored signal interrupts nothing). Python installs
handlers without SA_RESTART, which is what makes the read return. The kernel gives a signal that is
meant for the process to its main thread where that does not block it, and trio runs there.

O_NONBLOCK on the descriptor would be simpler; pyfuse3's loop raises on EAGAIN and dies of it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

# A freeze lasts at most this long. Four wake-ups a second cost nothing that can be measured.
TICK_SECONDS = 0.25


@contextlib.contextmanager
def ticking() -> Iterator[bool]:
    """While the body runs, no read of the main thread blocks for longer than a tick.

    Yields False where it cannot work: signals are handled in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    previous = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
    try:
        yield True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
