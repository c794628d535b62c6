"""One file of a draft: its cuts, its blob, and how its chunks come in.

Bytes are written without any lock; what is said about them is recorded in memory under the store's
``state`` lock and committed in batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptfs.errors import SourceChanged
from ckptfs.model.digest import is_zero
from ckptfs.store import commit, quarantine, rows
from ckptfs.store.landing import LandingBlob
from ckptfs.store.packing import SMALL_FILE_BYTES

if TYPE_CHECKING:
    from ckptfs.store.draft import Draft

#: Commit by ourselves when so many chunks wait: their records take about 600 bytes each in memory.
_BATCH_CHUNKS = 20_000


class DraftFile:
    """One file of a draft. ``put`` may be called from several threads at once."""

    __slots__ = ("_draft", "_landing", "blob", "key", "known", "lengths", "size_bytes")

    def __init__(self, draft: Draft, key: bytes, size_bytes: int | None) -> None:
        self._draft = draft
        self._landing = False
        self.key = key
        self.size_bytes = size_bytes
        #: Cuts recorded earlier or set now; None until then.
        self.lengths: list[int] | None = None
        #: Digests by chunk index: recorded before, and put since.
        self.known: dict[int, bytes] = {}
        #: Its own blob; 0 while there is none.
        self.blob = 0

    def set_lengths(self, lengths: list[int], size_bytes: int) -> None:
        """Record the cuts. Must come before the first put, and after the landing where there is one."""
        draft = self._draft
        draft.check()
        if sum(lengths) != size_bytes:
            raise ValueError("the chunk lengths do not add up to the file's size")
        key = rows.draft_file_key(draft.ordinal, self.key)
        with draft.core.state:
            if self.known and lengths != self.lengths:
                # Cut by other rules than an earlier attempt: nothing may be written over its chunks.
                if self._landing and self.blob not in draft.core.born:
                    raise SourceChanged(
                        "the file was cut otherwise when it was brought in before: create it again"
                    )
                self.known = {}
                self.blob = self.blob if self._landing else 0
                draft.core.pending.recut.add(key)
            resize = self.blob and self.size_bytes != size_bytes
            if self.blob in draft.core.born:
                draft.core.born[self.blob] = (rows.OWN, size_bytes)
            self.lengths = lengths
            self.size_bytes = size_bytes
            draft.core.pending.files[key] = self
        if resize:
            draft.core.blobs.resize(self.blob, size_bytes)

    def put(
        self,
        index: int,
        offset: int,
        data: memoryview,
        digest: bytes,
        fingerprint: int,
        *,
        landed: bool = False,
    ) -> bool:
        """Bring in one chunk; True when its bytes were not in the store yet.

        ``landed``: the bytes lie in the file's blob already, at ``offset``. Raises :class:`StoreFull` or
        :class:`StoreError`; nothing is recorded then.
        """
        draft = self._draft
        core = draft.core
        draft.check()
        length = len(data)
        zero = is_zero(data)
        with core.state:
            if self.known.get(index, digest) != digest:
                raise SourceChanged("the source has other bytes than in an earlier attempt: create it again")
            damaged = digest in core.quarantined
            if not landed and not damaged and digest in draft.held:
                self._record(index, digest, length)
                return False
            found = core.resident(digest)
            if found is None and zero:
                core.pending.chunks[digest] = (length, 0, 0, fingerprint)
            if found is not None or zero:
                if landed and (found is None or (found.blob, found.offset) != (self.blob, offset)):
                    self._give_up(self.blob, offset, length)
                self._record(index, digest, length)
                if found is None or not damaged:
                    return False
            else:
                claimed = digest not in core.claims
                core.claims[digest] = not claimed
        if found is not None:
            quarantine.repair(core, found, data)
            return True
        blob, place = (self.blob, offset) if landed else (0, 0)
        try:
            if not landed:
                blob, place = self._place(offset, length)
                core.blobs.write(blob, place, data)
        except BaseException:
            with core.state:
                if claimed:
                    core.claims.pop(digest, None)
                if blob:  # not given up at once: the same chunk may be put there again
                    draft.dirty.add(blob)
            raise
        with core.state:
            # Only where two puts wrote the same bytes can the other one have recorded them meanwhile.
            contested = core.claims.pop(digest, True) if claimed else True
            found = core.resident(digest) if contested else None
            if found is None:
                core.pending.chunks[digest] = (length, blob, place, fingerprint)
                core.pending.touched.add(blob)
            elif (found.blob, found.offset) != (blob, place):
                self._give_up(blob, place, length)
            self._record(index, digest, length)
            full = len(core.pending.rows) >= _BATCH_CHUNKS
        if full:
            commit.commit(core)
        return found is None

    def landing(self) -> LandingBlob:
        """Where content lands whose cuts are not known before it is there: the file's own blob."""
        self._draft.check()
        self._landing = True
        fresh = not self.known
        return LandingBlob(self._draft, self._own_blob(), fresh=fresh)

    def digests(self) -> bytes:
        """All digests in chunk order; every chunk must be known."""
        known = self.known
        return b"".join([known[index] for index in range(len(self.lengths or ()))])

    # --- With state held --------------------------------------------------------------------------

    def _record(self, index: int, digest: bytes, length: int) -> None:
        draft = self._draft
        batch = draft.core.pending
        self.known[index] = digest
        if digest not in draft.held:
            draft.held.add(digest)
            used = batch.uses.get(draft.ordinal)
            if used is None:
                used = batch.uses[draft.ordinal] = set()
            used.add(digest)
        batch.rows.append((rows.draft_chunk_key(draft.ordinal, self.key, index), digest, length))

    def _give_up(self, blob: int, offset: int, length: int) -> None:
        self._draft.core.pending.dead.append((blob, offset, offset + length))
        self._draft.dirty.add(blob)

    # --- Without --------------------------------------------------------------------------------------

    def _place(self, offset: int, length: int) -> tuple[int, int]:
        if not self.blob and self.size_bytes is not None and self.size_bytes <= SMALL_FILE_BYTES:
            return self._draft.place_in_pack(length)
        return self._own_blob(), offset

    def _own_blob(self) -> int:
        draft = self._draft
        with draft.core.making:
            if not self.blob:
                blob = draft.make_blob(rows.OWN, self.size_bytes or 0)
                with draft.core.state:
                    self.blob = blob
                    draft.core.pending.files[rows.draft_file_key(draft.ordinal, self.key)] = self
            return self.blob
