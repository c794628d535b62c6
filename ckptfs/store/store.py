"""The facade of the room: one open store. Calls block; every one may come from any thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ckptfs.errors import NameTaken, NotFound, StoreDamaged, StoreError
from ckptfs.store import (
    begin,
    core,
    derived,
    derived_file,
    derived_room,
    ending,
    failure,
    layout,
    listing,
    manifests,
    natives,
    placement,
    probe,
    quarantine,
    recover,
    release,
    rows,
    settle,
)
from ckptfs.store.blobs import DEFAULT_OPEN_BLOBS, BlobFiles, BlobHandle
from ckptfs.store.core import Core
from ckptfs.store.derived_file import NewCopy
from ckptfs.store.draft import Draft
from ckptfs.store.index import DEFAULT_MAP_SIZE_BYTES, REMEDY, Index, Table
from ckptfs.store.layout import FORMAT_VERSION, Layout
from ckptfs.store.lock import StoreLock
from ckptfs.store.records import (
    Checkpoint,
    Chunk,
    DerivedCopy,
    DerivedTotals,
    DraftRecord,
    Lease,
    Natives,
    RecoveryReport,
    RemoveReport,
    Usage,
    Why,
)


class Store:
    """Use :meth:`open`; close it when done."""

    def __init__(self, store: Core, lock: StoreLock, recovery: RecoveryReport) -> None:
        self._core = store
        self._lock = lock
        self.path = store.layout.root
        self.blobs_directory = store.layout.blobs
        #: What opening found undone and put right.
        self.recovery = recovery

    @classmethod
    def open(
        cls,
        path: str,
        *,
        map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
        open_blobs: int = DEFAULT_OPEN_BLOBS,
        create: bool = True,
    ) -> Store:
        """Lock a store, check its index in a child process, and put right what a crash left undone.

        Raises :class:`StoreLocked`, :class:`StoreDamaged` (the message names the rebuild),
        :class:`StoreError` (not a store, or one of another format), :class:`PermissionDenied`.
        """
        place = Layout(os.path.abspath(path))
        if create:
            with failure.mapped(f"making {place.root}"):
                os.makedirs(place.root, mode=0o700, exist_ok=True)
        elif not os.path.isdir(place.root):
            raise StoreError(
                f"there is no store at {place.root}: the path is wrong, or its disk is not mounted"
            )
        with failure.mapped(f"opening {place.root}"):
            version = place.version()
            if version is None:
                if not create:
                    raise StoreError(f"{place.root} is not a ckptfs store (it has no FORMAT file)")
                place.refuse_foreign()
        lock = StoreLock(place.lock)
        try:
            return cls._open_locked(place, lock, map_size_bytes, open_blobs)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def identity(path: str) -> tuple[int, int] | None:
        """Which store lies at ``path`` (:meth:`Layout.identity`); it need not be open."""
        return Layout(os.path.abspath(path)).identity()

    @classmethod
    def _open_locked(cls, place: Layout, lock: StoreLock, map_size_bytes: int, open_blobs: int) -> Store:
        version = place.version()
        if version is None:
            with failure.mapped(f"making a store in {place.root}"):
                place.make_folders()
                Index(place.index, map_size_bytes=map_size_bytes, create=True).close()
                place.mark()
        elif version != FORMAT_VERSION:
            raise StoreError(
                f"{place.root} has store format {version} and this ckptfs reads {FORMAT_VERSION}: "
                "use the version of ckptfs that made it"
            )
        with failure.mapped(f"opening {place.root}"):  # one that was made before there were derived copies
            os.makedirs(place.derived_folder, mode=0o700, exist_ok=True)
        probe.check(place.index, place.root)
        index = Index(place.index, map_size_bytes=map_size_bytes, create=False)
        blobs = BlobFiles(place, open_blobs)
        try:
            store = Core(place, index, blobs)
            quarantine.load(store)
            recovery = recover.recover(store)
            blobs.make_room = lambda wanted_bytes: derived_room.make_room(store, wanted_bytes) > 0
        except BaseException:
            blobs.close()
            index.close()
            raise
        return cls(store, lock, recovery)

    def close(self) -> None:
        """Keep what is under way for a resume, and let go of the directory."""
        self.stop_waiting()
        for draft in list(self._core.active.values()):
            draft.release()
        derived_room.note_use(self._core)
        self._core.blobs.close()
        self._core.index.close()
        self._lock.release()

    # --- Checkpoints ----------------------------------------------------------------------------------

    def checkpoints(self) -> list[Checkpoint]:
        """All of them, in the order in which they were begun."""
        return listing.checkpoints(self._core)

    def by_name(self, name: str) -> Checkpoint | None:
        return listing.by_name(self._core, name)

    def by_ordinal(self, ordinal: int) -> Checkpoint | None:
        return listing.by_ordinal(self._core, ordinal)

    def manifest(self, digest: bytes) -> bytes:
        """An encoded manifest, checked against its digest; :class:`StoreDamaged` when it is not that."""
        return manifests.read(self._core.layout, digest)

    def own_blobs(self, ordinal: int) -> dict[int, int]:
        """Entry index -> blob with the file's size and chunks at the file's offsets. A file is whole when
        all its chunks that are not zero lie there."""
        return listing.own_blobs(self._core, ordinal)

    def rename(self, ordinal: int, new_name: str) -> None:
        store = self._core
        key = rows.ordinal_key(ordinal)
        with store.publishing:
            with store.transaction() as writer:
                body = writer.get(Table.CHECKPOINTS, key)
                if body is None:
                    raise NotFound(f"no checkpoint has the ordinal {ordinal}")
                old = listing.checkpoint_of(ordinal, body)
                if old.name == new_name:
                    return
                if writer.get(Table.NAMES, new_name.encode()) is not None:
                    raise NameTaken(f"a checkpoint named {new_name!r} exists: choose another name")
                writer.delete(Table.NAMES, old.name.encode())
                writer.put(Table.NAMES, new_name.encode(), key)
                now = replace(old, name=new_name)
                writer.put(Table.CHECKPOINTS, key, rows.encode(rows.checkpoint_row(now)))
                writer.put(Table.PENDING, core.RECORD + key, b"")
            with failure.mapped(f"recording {new_name!r}"):
                layout.publish(store.layout.record(ordinal), placement.encode_record(now))
            with store.transaction() as writer:
                writer.delete(Table.PENDING, core.RECORD + key)

    def remove(self, ordinal: int) -> RemoveReport:
        """Remove a checkpoint and punch or unlink what nothing else uses. The caller has made sure that
        nobody reads it."""
        return release.remove(self._core, ordinal)

    def settle(self) -> None:
        """Give back what an earlier removal had to leave because it was still mapped."""
        settle.settle(self._core)

    def usage(self, ordinal: int) -> Usage:
        return listing.usage(self._core, ordinal)

    # --- Chunks and reading ---------------------------------------------------------------------------

    def chunk(self, digest: bytes) -> Chunk | None:
        """A chunk that is committed, or put and not yet committed (``refs`` 0 then)."""
        with self._core.index.read() as reader:
            found = core.chunk(reader, digest)
        if found is None:
            with self._core.state:
                found = self._core.put_chunk(digest)
        return found

    def chunks(self, digests: Sequence[bytes]) -> list[Chunk | None]:
        """Committed chunks, in one view of the index."""
        return listing.chunks(self._core, digests)

    def blob(self, blob: int) -> BlobHandle:
        """An open descriptor (``.fd``), valid until the handle is closed."""
        return self._core.blobs.open(blob)

    def read_chunk(self, chunk: Chunk, buffer: memoryview) -> None:
        """Fill the buffer, which has the chunk's length. :class:`StoreDamaged` when its bytes are not there
        or the disk cannot read them; any other error says nothing of the chunk."""
        if chunk.blob == 0:
            buffer[:] = bytes(len(buffer))
            return
        try:
            got = self._core.blobs.read(chunk.blob, chunk.offset, buffer)
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in failure.LOST:
                raise StoreDamaged(error.message) from cause
            raise
        if got != len(buffer):
            raise StoreDamaged(
                f"blob {chunk.blob:016x} ends before its chunk at {chunk.offset} does: {REMEDY}"
            )

    def quarantine(self, digests: Iterable[bytes]) -> int:
        """Note chunks whose bytes were found to be wrong; how many were not noted yet. The next creation
        that puts one writes its bytes again, in place, for every checkpoint that uses it."""
        return quarantine.add(self._core, digests)

    @property
    def damage_found(self) -> int:
        """Grows whenever chunks are found damaged: what was looked up before may lead to them."""
        return self._core.damage_found

    def last_damage(self, ordinal: int, entry: int, blobs: Iterable[int]) -> int:
        """What :attr:`damage_found` became when damage was last found in a file's derived copy or in the
        blobs that have its bytes; 0 when it was not since the store was opened."""
        return derived.last_damage(self._core, (ordinal, entry), blobs)

    def quarantined(self) -> frozenset[bytes]:
        """The digests of the chunks that are known to be damaged."""
        with self._core.state:
            return frozenset(self._core.quarantined)

    def chunk_count(self) -> int:
        with self._core.index.read() as reader:
            return reader.counters().chunks

    def stored_bytes(self) -> int:
        """The lengths of all chunks that take bytes, each once."""
        with self._core.index.read() as reader:
            return reader.counters().stored_bytes

    def physical_bytes(self) -> int:
        """What the recorded blobs took on the disk when each was last written or punched, and what derived
        copies take beside them."""
        with self._core.index.read() as reader:
            return reader.counters().physical_bytes + derived.totals(self._core).physical_bytes

    def disk_free_bytes(self) -> int:
        return derived_room.free_bytes(self._core)

    def disk_total_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_blocks * status.f_frsize

    # --- Derived copies --------------------------------------------------------------------------------

    def block_bytes(self) -> int:
        """The unit in which the file system gives out space and shares it."""
        return derived_file.block_bytes(self._core)

    def can_share_blocks(self) -> bool:
        """Whether the file system lets two files share blocks (reflinks)."""
        return derived_file.can_share(self._core)

    def blob_size(self, blob: int) -> int:
        with self.blob(blob) as handle:
            return os.fstat(handle.fd).st_size

    def new_copy(self, ordinal: int, entry: int, size_bytes: int, why: Why) -> NewCopy:
        """Begin a derived copy of a file. No two of one file at a time; record or abandon it."""
        return NewCopy(self._core, ordinal, entry, size_bytes, why)

    def record_copies(
        self, copies: Sequence[NewCopy], *, check: Callable[[], None] = lambda: None
    ) -> list[NewCopy]:
        """Make copies last and known; those that were. See :func:`ckptfs.store.derived.record`."""
        return derived.record(self._core, copies, check)

    def copy_size(self, ordinal: int, entry: int) -> int | None:
        """The size of a file's derived copy in bytes; None when it has none."""
        return derived.size_of(self._core, ordinal, entry)

    def open_copy(self, ordinal: int, entry: int, *, use: bool = True) -> int:
        """A descriptor of a derived copy, which the caller closes. ``use``: it counts as used now. OSError
        when it has gone."""
        return derived.open_copy(self._core, ordinal, entry, use=use)

    def copied_entries(self, ordinal: int) -> set[int]:
        """The entry indices of a checkpoint's files that have a derived copy."""
        return derived.entries_of(self._core, ordinal)

    def copies(self) -> list[DerivedCopy]:
        """Every derived copy, the one that was not used for the longest time first."""
        return derived_room.by_last_use(self._core)

    def copy_totals(self, ordinal: int | None = None) -> DerivedTotals:
        """Derived copies of one checkpoint, or of all. From memory."""
        return derived.totals(self._core, ordinal)

    @property
    def copies_dropped(self) -> int:
        """How many derived copies have gone since the store was opened, for whatever reason."""
        return self._core.derived_dropped

    def drop_copies(self, keys: Iterable[tuple[int, int]], *, wrong: bool = False) -> DerivedTotals:
        """Give derived copies back, by ordinal and entry, whoever has them open; what went. ``wrong``: their
        bytes are not those of the files."""
        return derived.drop(self._core, keys, wrong=wrong)

    def unfinished_bytes(self) -> int:
        """What the derived copies take that are being made."""
        return derived_room.unfinished_bytes(self._core)

    def make_room(self, wanted_bytes: int, *, may_go: Callable[[DerivedCopy], bool] | None = None) -> int:
        """Drop derived copies that nobody has open, the longest unused first, and then those that are being
        made, until so many bytes have come back; how many have."""
        return derived_room.make_room(self._core, wanted_bytes, may_go=may_go)

    def stop_waiting(self) -> None:
        """Somebody waits for the store to be closed: :meth:`make_room` waits for the disk no more."""
        self._core.closing.set()

    def note_use(self) -> None:
        """Write down when derived copies were last opened."""
        derived_room.note_use(self._core)

    def natives(self) -> dict[int, Natives]:
        """Ordinal -> what was found there, of every checkpoint that was looked at for derived copies."""
        return natives.listed(self._core)

    def look_again(self, ordinals: set[int]) -> None:
        """Take checkpoints for not looked at."""
        natives.look_again(self._core, ordinals)

    def put_natives(self, ordinal: int, said: Natives) -> None:
        natives.put(self._core, ordinal, said)

    # --- Drafts ---------------------------------------------------------------------------------------

    def begin(self, *, name: str, creation: str, source_key: str, source_type: str, source_uri: str) -> Draft:
        """Begin a creation, or resume the kept one with the same source key."""
        return begin.begin(
            self._core,
            name=name,
            creation=creation,
            source_key=source_key,
            source_type=source_type,
            source_uri=source_uri,
        )

    def drafts(self) -> list[DraftRecord]:
        return listing.drafts(self._core)

    def drop_draft(self, ordinal: int) -> None:
        """Forget a draft that is not under way; what only it used is given back."""
        ending.drop(self._core, ordinal)

    def spool_path(self, draft_ordinal: int) -> str:
        """A directory for a source's temporary downloads. It goes when the draft does."""
        path = self._core.layout.spool(draft_ordinal)
        with failure.mapped(f"making {path}"):
            os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    # --- Leases ---------------------------------------------------------------------------------------

    def leases(self) -> list[Lease]:
        return listing.leases(self._core)

    def put_leases(self, leases: Iterable[Lease]) -> None:
        listing.put_leases(self._core, leases)

    def delete_leases(self, job: str, ordinals: Iterable[int] | None = None) -> None:
        listing.delete_leases(self._core, job, ordinals)
