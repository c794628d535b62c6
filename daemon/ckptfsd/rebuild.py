"""`ckptfsd rebuild`: a new index for a store, and what was found on the way."""

from __future__ import annotations

import sys
import time

from ckptfs.errors import StoreDamaged
from ckptfs.model.names import show_path
from ckptfs.model.sizes import format_bytes
from ckptfs.store.rebuild import DamagedChunk, rebuild
from ckptfsd.config import Config
from ckptfsd.logging import escape_text

_PROGRESS_SECONDS = 2.0
_MAX_DAMAGE_LINES = 1000


def run_rebuild(config: Config) -> int:
    """Rebuild, tell what is restored and what is not; the exit status says whether all is well."""
    store = config.store.path
    report = rebuild(store, _Progress(), map_size_bytes=config.store.map_size_bytes)
    print(
        f"ckptfsd: the index of {store} is new: {len(report.restored)} checkpoint(s), {report.chunks} chunks"
    )
    if report.old_index:
        print(
            f"ckptfsd: the old index is kept at {report.old_index}; remove it when nobody wants to look at it"
        )
    if report.blobs_removed:
        print(f"ckptfsd: {report.blobs_removed} blob(s) that no checkpoint uses were removed")
    for old, new in report.renamed.items():
        print(f"ckptfsd: {old!r} was there twice; one of them is now {new!r}")
    for damage in report.damaged[:_MAX_DAMAGE_LINES]:
        print(f"ckptfsd: damaged: {_place(damage)}", file=sys.stderr)
    if not report.damaged:
        return 0
    if len(report.damaged) > _MAX_DAMAGE_LINES:
        more = len(report.damaged) - _MAX_DAMAGE_LINES
        print(f"ckptfsd: damaged: {more} more places", file=sys.stderr)
    names = sorted({damage.checkpoint for damage in report.damaged})
    print(
        f"ckptfsd: error: {len(names)} checkpoint(s) are damaged and were not restored: "
        f"{escape_text(', '.join(names))}; create them again from their sources (what is sound is reused)",
        file=sys.stderr,
    )
    return StoreDamaged.exit_code


def _place(damage: DamagedChunk) -> str:
    checkpoint = escape_text(damage.checkpoint)
    if not damage.path:
        return f"{checkpoint}: {damage.problem}"
    where = f"{checkpoint}: {show_path(damage.path)}: byte {damage.offset}, {format_bytes(damage.length)}"
    return f"{where}: {damage.problem}"


class _Progress:
    """A line now and then: a store of terabytes takes hours to read."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            percent = 100 * done // max(total, 1)
            print(
                f"ckptfsd: read {format_bytes(done)} of {format_bytes(total)} ({percent} %)",
                file=sys.stderr,
                flush=True,
            )
