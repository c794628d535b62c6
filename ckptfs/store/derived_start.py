"""Derived copies at a start, and in a rebuild."""

from __future__ import annotations

import os

from ckptfs.store import derived, layout, natives, rows
from ckptfs.store.core import Core
from ckptfs.store.index import Table
from ckptfs.store.records import RecoveryReport


def sweep(core: Core, report: RecoveryReport) -> None:
    """Bring files and rows in line, and count what there is."""
    place = core.layout
    names = set(os.listdir(place.derived_folder))
    stray: list[derived.Key] = []
    core.derived.clear()
    with core.index.read() as reader:
        ready = {rows.number(key) for key, _ in reader.scan(Table.CHECKPOINTS)}
        looked_at = {rows.number(key) for key, _ in reader.scan(Table.NATIVES)}
        for packed, body in reader.scan(Table.DERIVED):
            ordinal, entry = rows.split_derived_key(packed)
            name = os.path.basename(place.derived(ordinal, entry))
            if ordinal in ready and name in names:
                names.discard(name)
                derived.count(core, ordinal, rows.decode_derived(body), 1)
            else:
                stray.append((ordinal, entry))
    for name in names:
        os.unlink(f"{place.derived_folder}/{name}")
    if names:
        layout.sync_folder(place.derived_folder)
    report.files_swept += len(names)
    if stray:
        with core.transaction() as writer:
            derived.forget(writer, stray)
    # A checkpoint that lost a copy is looked at again.
    natives.look_again(core, (looked_at - ready) | ({ordinal for ordinal, _ in stray} & looked_at))


def remove_all(place: layout.Layout) -> None:
    """A rebuild knows nothing of them."""
    for name in os.listdir(place.derived_folder):
        os.unlink(f"{place.derived_folder}/{name}")
