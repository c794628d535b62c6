"""A creation that is under way: its files, their chunks as they come, and how it ends.

Bytes are written without any lock; what is said about them is recorded in memory under the store's
``state`` lock and committed in batches. Until a draft ends, only its own threads write to its blobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptfs.errors import CkptfsError, StoreError
from ckptfs.model.digest import is_zero
from ckptfs.store import commit, ending, publish, rows
from ckptfs.store.index import Table
from ckptfs.store.records import Checkpoint

if TYPE_CHECKING:
    from ckptfs.store.core import Core

#: Files up to this size share pack blobs. Larger ones get a blob of their own: the kernel can read those
#: without us later on, and a file of its own wastes half a block on average, under 4 % from here on.
SMALL_FILE_BYTES = 64 << 10

#: A pack that has grown to this is left for a new one. Small enough that a pack which loses most of its
#: files is cheap to walk (16,384 places), large enough that 100,000 files make a few packs only.
PACK_BYTES = 64 << 20

#: Chunks in a pack begin at multiples of this, so that each dead one gives its blocks back.
PACK_ALIGN_BYTES = 4096

#: Commit by ourselves when so many chunks wait: their records take about 600 bytes each in memory.
_BATCH_CHUNKS = 20_000


class DraftFile:
    """One file of a draft. ``put`` may be called from several threads at once."""

    __slots__ = ("_draft", "blob", "key", "known", "lengths", "size_bytes")

    def __init__(self, draft: Draft, key: bytes, size_bytes: int | None) -> None:
        self._draft = draft
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
        resize = self.blob and self.size_bytes != size_bytes
        with draft.core.state:
            key = rows.draft_file_key(draft.ordinal, self.key)
            if self.known and lengths != self.lengths:
                self.known = {}
                draft.core.pending.recut.add(key)
            self.lengths = lengths
            self.size_bytes = size_bytes
            if resize and self.blob in draft.core.born:
                draft.core.born[self.blob] = (rows.OWN, size_bytes)
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
        if is_zero(data):
            with core.state:
                if digest not in draft.held and not core.resident(digest):
                    core.pending.chunks[digest] = (length, 0, 0, fingerprint)
                self._record(index, digest, length)
                if landed:
                    self._give_up(self.blob, offset, length)
            return False
        with core.state:
            if digest in draft.held or core.resident(digest):
                self._record(index, digest, length)
                if landed:
                    self._give_up(self.blob, offset, length)
                return False
        if landed:
            blob, place = self.blob, offset
        else:
            blob, place = self._place(offset, length)
            try:
                core.blobs.write(blob, place, data)
            except CkptfsError:
                with core.state:
                    self._give_up(blob, place, length)
                raise
        with core.state:
            won = digest not in draft.held and not core.resident(digest)
            if won:
                core.pending.chunks[digest] = (length, blob, place, fingerprint)
                core.pending.touched.add(blob)
            else:  # another thread brought the same bytes in meanwhile
                self._give_up(blob, place, length)
            self._record(index, digest, length)
            full = len(core.pending.rows) >= _BATCH_CHUNKS
        if full:
            commit.commit(core)
        return won

    def landing(self) -> LandingBlob:
        """Where content lands whose cuts are not known before it is there: the file's own blob."""
        self._draft.check()
        return LandingBlob(self._draft, self._own_blob())

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


class LandingBlob:
    """The bytes of one file at their own offsets, before they are cut."""

    def __init__(self, draft: Draft, blob: int) -> None:
        self._draft = draft
        self._blob = blob
        self.size = 0
        draft.dirty.add(blob)

    def write_at(self, offset: int, data: memoryview) -> None:
        self._draft.check()
        self._draft.core.blobs.write(self._blob, offset, data)
        self.size = max(self.size, offset + len(data))

    def read_at(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with what landed at the offset."""
        if self._draft.core.blobs.read(self._blob, offset, buffer) != len(buffer):
            raise StoreError("less was read back than was written: check the disk and the kernel log")


class Draft:
    """Get one from :meth:`Store.begin`; end it with ``publish``, ``fail`` or ``release``."""

    def __init__(self, core: Core, ordinal: int, row: rows.DraftRow, *, resumed: bool) -> None:
        self.core = core
        self.ordinal = ordinal
        self.row = row
        self.creation = row.creation
        self.resumed = resumed
        #: Bytes of distinct chunks that an earlier attempt brought in.
        self.bytes_known = 0
        #: Every chunk that this draft refers to, recorded or about to be. Guarded by core.state.
        self.held: set[bytes] = set()
        #: Blobs that this draft may write to.
        self.blobs: set[int] = set()
        #: Of these, the ones with bytes that no row tells of: punched when the draft ends.
        self.dirty: set[int] = set()
        #: Why nothing more may be put: bytes that were thought written did not reach the disk.
        self.broken: StoreError | None = None
        self.ended = False
        self._pack = 0
        self._pack_end = 0

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken
        if self.ended:
            raise RuntimeError("this draft has ended")

    def file(self, key: bytes, size_bytes: int | None) -> DraftFile:
        """The draft's file under a 16-byte key, with what an earlier attempt recorded for it."""
        self.check()
        file = DraftFile(self, key, size_bytes)
        if self.resumed:
            with self.core.index.read() as reader:
                full_key = rows.draft_file_key(self.ordinal, key)
                body = reader.get(Table.DRAFT_FILES, full_key)
                if body is None:
                    return file
                row = rows.decode_draft_file(body)
                if size_bytes is not None and row.size_bytes not in (-1, size_bytes):
                    return file
                if row.blob and reader.get(Table.BLOBS, rows.blob_key(row.blob)) is not None:
                    file.blob = row.blob
                file.lengths = row.lengths
                if row.lengths is not None:
                    file.size_bytes = row.size_bytes
                    for chunk_key, chunk in reader.scan(Table.DRAFT_CHUNKS, full_key):
                        file.known[rows.draft_chunk_index(chunk_key)] = rows.draft_chunk(chunk)[0]
        return file

    def commit(self) -> None:
        """Make what was put so far last; puts may go on meanwhile in other threads."""
        self.check()
        commit.commit(self.core)
        self.check()

    def publish(
        self,
        manifest_bytes: bytes,
        owners: dict[int, DraftFile],
        *,
        files: int,
        directories: int,
        size_bytes: int,
    ) -> Checkpoint:
        """Make the checkpoint; ``owners`` gives each file's :class:`DraftFile` by its entry index.

        Raises :class:`NameTaken`, :class:`StoreFull`; the draft is as it was then.
        """
        self.check()
        return publish.publish(
            self, manifest_bytes, owners, files=files, directories=directories, size_bytes=size_bytes
        )

    def fail(self, reason: str, code: str, keep: bool) -> None:
        """End without a checkpoint. ``keep``: what is committed stays for a resume; otherwise it goes."""
        ending.end(self, reason, code, keep=keep)

    def release(self) -> None:
        """End because the process stops: everything is kept."""
        self.fail("the daemon stopped before the creation was complete", "interrupted", keep=True)

    # --- For the files ----------------------------------------------------------------------------------

    def make_blob(self, kind: int, size_bytes: int) -> int:
        blob = self.core.new_blob(kind, size_bytes)
        with self.core.state:
            self.blobs.add(blob)
        return blob

    def place_in_pack(self, length: int) -> tuple[int, int]:
        """Room for a chunk of a small file: ``(blob, offset)``."""
        taken = -(-length // PACK_ALIGN_BYTES) * PACK_ALIGN_BYTES
        with self.core.making:
            if not self._pack or self._pack_end + taken > PACK_BYTES:
                self._pack = self.make_blob(rows.PACK, 0)
                self._pack_end = 0
                with self.core.state:
                    self.row.packs.append(self._pack)
                    self.core.pending.drafts[self.ordinal] = self
            offset = self._pack_end
            self._pack_end += taken
            return self._pack, offset
