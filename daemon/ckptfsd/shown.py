"""Which store a mount shows.

Inodes are numbers of a store. The kernel has pages and handles of a connection by them, for longer than any
worker lives: a worker with another store would give a reader who goes on the bytes of another checkpoint. So
the first worker of a connection writes down which store it has, beside the modes (mode_table), and those
after it must have the same.
"""

from __future__ import annotations

import os
from contextlib import closing

from ckptfs.errors import ConfigurationError
from ckptfs.fuse.connection import Connection
from ckptfs.fuse.mode_table import ModeTable
from ckptfs.store import Store


def check(path: str, connection: Connection) -> None:
    """Before the store at ``path`` is opened, or made. Raises :class:`ConfigurationError`."""
    with closing(ModeTable(connection.modes_fd)) as table:
        shown = table.store
    found = Store.identity(path)
    if found is None and os.path.exists(os.path.join(path, "FORMAT")):
        return  # it has no index: opening it says so, and what to do
    if any(shown) and found != shown:
        raise ConfigurationError(
            f"[store] path: at {path!r} is not the store that {connection.mount} shows, and jobs may have "
            "its files open: stop the daemon and start it again to show another one"
        )


def note(path: str, connection: Connection) -> None:
    """The store at ``path`` is open."""
    with closing(ModeTable(connection.modes_fd)) as table:
        table.store = Store.identity(path) or (0, 0)
