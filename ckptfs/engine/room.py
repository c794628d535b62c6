"""What is left free of the store's disk, and who makes room when it is short: derived copies, before a
creation fails."""

from __future__ import annotations

import structlog

from ckptfs.engine.config import EngineConfig
from ckptfs.store import Store

log = structlog.get_logger(__name__)


def reserve_bytes(store: Store, config: EngineConfig) -> int:
    """What creations and derived copies leave free; on a small disk at most a twentieth of it."""
    return min(config.reserve_free_bytes, store.disk_total_bytes() // 20)


def room_for(store: Store, config: EngineConfig, needed_bytes: int, *, keep: int | None = None) -> int:
    """How much is free beside the reserve, after derived copies went if it is less than needed and they can
    make it enough: what is refused all the same costs nobody anything. Those of the checkpoint with the
    ordinal ``keep`` stay. Blocks."""
    free = store.disk_free_bytes() - reserve_bytes(store, config)
    short = needed_bytes - free
    others = store.copy_totals().physical_bytes + store.unfinished_bytes()
    if keep is not None:
        others -= store.copy_totals(keep).physical_bytes
    if 0 < short <= others and (freed := store.make_room(short, may_go=lambda c: c.ordinal != keep)):
        log.info("derived copies made room", bytes=freed)
        free += freed
    return free
