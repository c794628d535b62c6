"""Derived copies: files of checkpoints as files of their own, which can be given back at any moment.

No chunk ever lies in one, so nothing is lost with it, and unlinking harms nobody who has it open or
mapped. The row is last in coming: a copy is made under a temporary name, synced, renamed, its folder
synced, and then recorded. It is last in going too, because unlinking needs no room in the index: a row
whose file is gone means that the file is read in another way, and the next start deletes it. A file
without a row is litter, which a start removes. Only where a copy must not be used any more (its checkpoint
goes, or what it shares was found damaged) the row goes first, in the transaction that says so.

How copies make room for others is in :mod:`ckptfs.store.derived_room`, how one is made in
:mod:`ckptfs.store.derived_file`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from ckptfs.errors import CkptfsError
from ckptfs.store import failure, layout, rows
from ckptfs.store.core import Core
from ckptfs.store.derived_file import NewCopy
from ckptfs.store.index import Reader, Table, Writer
from ckptfs.store.records import DerivedTotals, Why

Key = tuple[int, int]  # ordinal, entry


# --- Looking ------------------------------------------------------------------------------------------


def size_of(core: Core, ordinal: int, entry: int) -> int | None:
    """The size of the derived copy of a file; None when it has none. In memory for checkpoints without."""
    if ordinal not in core.derived:
        return None
    body = core.index.lookup(Table.DERIVED, rows.derived_key(ordinal, entry))
    return None if body is None else rows.decode_derived(body).size_bytes


def open_copy(core: Core, ordinal: int, entry: int, *, use: bool) -> int:
    """A descriptor for reading, which the caller closes. OSError when the copy has just gone."""
    fd = os.open(core.layout.derived(ordinal, entry), os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    if use:
        core.derived_used[ordinal, entry] = time.time()
    return fd


def entries_of(core: Core, ordinal: int) -> set[int]:
    """The entry indices of a checkpoint's files that have a derived copy."""
    with core.index.read() as reader:
        return {rows.split_derived_key(key)[1] for key, _ in _rows_of(reader, ordinal)}


def totals(core: Core, ordinal: int | None = None) -> DerivedTotals:
    """Of one checkpoint, or of all."""
    if ordinal is not None:
        return core.derived.get(ordinal, DerivedTotals())
    return add_up(list(core.derived.values()))


# --- Coming -------------------------------------------------------------------------------------------


def record(core: Core, copies: Sequence[NewCopy], check: Callable[[], None] = lambda: None) -> list[NewCopy]:
    """Make copies last and known, many at the price of one; those that were. ``check`` is called before each
    has its bytes synced, and may raise.

    A copy is given up when its checkpoint has gone, or when damage was found in the store since it was
    begun: it may hold what was damaged. All are given up on an error.
    """
    try:
        for copy in copies:
            check()
            copy.sync()
        check()
        with core.deriving, failure.mapped("recording derived copies"):
            return _place(core, copies)
    except BaseException:
        for copy in copies:
            copy.abandon()
        raise


def _place(core: Core, copies: Sequence[NewCopy]) -> list[NewCopy]:
    for copy in copies:
        copy.check_way()  # whoever makes room says it under the lock that we have
    placed: list[Key] = []
    try:
        for copy in copies:
            os.rename(copy.temporary, copy.path)
            placed.append((copy.ordinal, copy.entry))
        layout.sync_folder(core.layout.derived_folder)
        kept = _record(core, copies)
    except BaseException:
        # An older copy whose place one took has gone with that, and what its row says of it is not so now.
        for key in placed:
            with suppress(OSError):
                unlink(core, key)
        with suppress(CkptfsError):
            _drop(core, placed)
        raise
    for copy in copies:
        copy.ended()
    return kept


def _record(core: Core, copies: Sequence[NewCopy]) -> list[NewCopy]:
    now = time.time()
    made: list[tuple[NewCopy, rows.DerivedRow]] = []
    replaced: list[tuple[int, rows.DerivedRow]] = []
    with core.transaction() as writer:
        for copy in copies:
            there = writer.get(Table.CHECKPOINTS, rows.ordinal_key(copy.ordinal)) is not None
            if not there or copy.damage_found != core.damage_found:
                continue
            row = rows.DerivedRow(copy.size_bytes, copy.physical_bytes, copy.why, now, sorted(copy.blobs))
            key = rows.derived_key(copy.ordinal, copy.entry)
            before = writer.get(Table.DERIVED, key)
            if before is not None:
                replaced.append((copy.ordinal, rows.decode_derived(before)))
            writer.put(Table.DERIVED, key, rows.encode(row))
            made.append((copy, row))
    with core.state:
        for ordinal, old in replaced:
            count(core, ordinal, old, -1)
        for copy, row in made:
            count(core, copy.ordinal, row, 1)
    kept = [copy for copy, _ in made]
    for copy in copies:
        if copy not in kept:
            with suppress(FileNotFoundError):
                os.unlink(copy.path)
    return kept


# --- Going --------------------------------------------------------------------------------------------


def drop(core: Core, keys: Iterable[Key], *, wrong: bool = False) -> DerivedTotals:
    """Give copies back, whoever has them open. What went, as far as it was recorded. ``wrong``: because
    their bytes are not those of the file."""
    keys = list(keys)
    with core.deriving:
        if wrong and keys:
            with core.state:
                core.damage_found += 1
                core.damaged_copies.update(dict.fromkeys(keys, core.damage_found))
        return _drop(core, keys)


def last_damage(core: Core, key: Key, blobs: Iterable[int]) -> int:
    """What ``damage_found`` became when damage was last found in a file's derived copies or in the blobs
    that have its bytes; 0 when it was not since the store was opened."""
    with core.state:
        return max(core.damaged_copies.get(key, 0), *(core.damaged_blobs.get(blob, 0) for blob in blobs), 0)


def _drop(core: Core, keys: list[Key]) -> DerivedTotals:
    if not keys:
        return DerivedTotals()
    with failure.mapped("dropping derived copies"):
        for key in keys:
            unlink(core, key)
        with core.transaction() as writer:
            gone = forget(writer, keys)
        uncount(core, gone)
    return add_up([_one(row) for _, row in gone])


def forget_checkpoint(writer: Writer, ordinal: int) -> list[tuple[Key, rows.DerivedRow]]:
    """Within the transaction that removes a checkpoint; then comes :func:`unlink_forgotten`."""
    writer.delete(Table.NATIVES, rows.ordinal_key(ordinal))
    return forget(writer, [rows.split_derived_key(key) for key, _ in _rows_of(writer, ordinal)])


def forget_sharing(writer: Writer, blobs: set[int]) -> list[tuple[Key, rows.DerivedRow]]:
    """Within the transaction that notes damage in blobs: the copies that share their blocks. Then comes
    :func:`unlink_forgotten`.

    Their checkpoints are to be looked at again: what is mended can be shared anew.
    """
    if not blobs:
        return []
    sharing = [
        rows.split_derived_key(key)
        for key, body in writer.scan(Table.DERIVED)
        if not blobs.isdisjoint(rows.decode_derived(body).blobs)
    ]
    for ordinal in {ordinal for ordinal, _ in sharing}:
        writer.delete(Table.NATIVES, rows.ordinal_key(ordinal))
    return forget(writer, sharing)


def unlink_forgotten(core: Core, gone: list[tuple[Key, rows.DerivedRow]]) -> None:
    for key, _ in gone:
        with suppress(OSError):  # a start would remove it
            unlink(core, key)
    uncount(core, gone)


def unlink(core: Core, key: Key) -> None:
    with suppress(FileNotFoundError):
        os.unlink(core.layout.derived(*key))


def uncount(core: Core, gone: list[tuple[Key, rows.DerivedRow]]) -> None:
    with core.state:
        for (ordinal, entry), row in gone:
            count(core, ordinal, row, -1)
            core.derived_used.pop((ordinal, entry), None)
        core.derived_dropped += len(gone)


def forget(writer: Writer, keys: Iterable[Key]) -> list[tuple[Key, rows.DerivedRow]]:
    gone = []
    for key in keys:
        packed = rows.derived_key(*key)
        body = writer.get(Table.DERIVED, packed)
        if body is not None:
            gone.append((key, rows.decode_derived(body)))
            writer.delete(Table.DERIVED, packed)
    return gone


# --- Counting -----------------------------------------------------------------------------------------


def _rows_of(reader: Reader, ordinal: int) -> list[tuple[bytes, bytes]]:
    return list(reader.scan(Table.DERIVED, rows.ordinal_key(ordinal)))


def _one(row: rows.DerivedRow) -> DerivedTotals:
    return DerivedTotals(1, row.physical_bytes, row.physical_bytes if row.why == Why.LIMITED else 0)


def add_up(parts: Iterable[DerivedTotals]) -> DerivedTotals:
    copies = physical_bytes = limited_bytes = 0
    for part in parts:
        copies += part.copies
        physical_bytes += part.physical_bytes
        limited_bytes += part.limited_bytes
    return DerivedTotals(copies, physical_bytes, limited_bytes)


def count(core: Core, ordinal: int, row: rows.DerivedRow, sign: int) -> None:
    before, one = core.derived.get(ordinal, DerivedTotals()), _one(row)
    now = DerivedTotals(*(b + sign * o for b, o in zip(before, one, strict=True)))
    if now.copies:
        core.derived[ordinal] = now
    else:
        core.derived.pop(ordinal, None)
