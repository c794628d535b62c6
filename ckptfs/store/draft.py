"""A creation that is under way, and how it ends. Until then only its own threads write to its blobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptfs.errors import StoreError
from ckptfs.store import commit, ending, publish, rows
from ckptfs.store.draft_file import DraftFile
from ckptfs.store.index import Table
from ckptfs.store.packing import PACK_ALIGN_BYTES, PACK_BYTES
from ckptfs.store.records import Checkpoint

if TYPE_CHECKING:
    from ckptfs.store.core import Core


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
                    with self.core.state:
                        self.core.pending.recut.add(full_key)
                    return file
                if row.blob and reader.get(Table.BLOBS, rows.blob_key(row.blob)) is not None:
                    file.blob = row.blob
                file.lengths = row.lengths
                if row.lengths is not None:
                    file.size_bytes = row.size_bytes
                    for chunk_key, chunk in reader.scan(Table.DRAFT_CHUNKS, full_key):
                        digest = rows.draft_chunk(chunk)[0]
                        if digest not in self.core.quarantined:
                            file.known[rows.draft_chunk_index(chunk_key)] = digest
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
