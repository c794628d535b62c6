"""What was found when a checkpoint's files were looked at for derived copies. Without a row it has yet to
be looked at."""

from __future__ import annotations

from ckptfs.store import rows
from ckptfs.store.core import Core
from ckptfs.store.index import Table
from ckptfs.store.records import Natives


def listed(core: Core) -> dict[int, Natives]:
    """Of every checkpoint that was looked at."""
    with core.index.read() as reader:
        found = [(rows.number(key), rows.decode_natives(body)) for key, body in reader.scan(Table.NATIVES)]
    return {ordinal: Natives(row.whole, row.small, row.wanted) for ordinal, row in found}


def put(core: Core, ordinal: int, said: Natives) -> None:
    with core.transaction() as writer:
        if writer.get(Table.CHECKPOINTS, rows.ordinal_key(ordinal)) is not None:
            row = rows.NativesRow(said.whole, said.small, said.wanted)
            writer.put(Table.NATIVES, rows.ordinal_key(ordinal), rows.encode(row))


def look_again(core: Core, ordinals: set[int]) -> None:
    if ordinals:
        with core.transaction() as writer:
            for ordinal in ordinals:
                writer.delete(Table.NATIVES, rows.ordinal_key(ordinal))
