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


def room_for(store: Store, config: EngineConfig, needed_bytes: int) -> int:
    """How much is free beside the reserve, after derived copies went if it is less than needed. Blocks."""
    free = store.disk_free_bytes() - reserve_bytes(store, config)
    if needed_bytes > free and (freed_bytes := store.make_room(needed_bytes - free)):
        log.info("derived copies made room", bytes=freed_bytes)
        free += freed_bytes
    return free
