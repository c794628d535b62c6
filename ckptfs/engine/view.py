"""What the mount shows: one directory per attached checkpoint, and in it the checkpoint's tree.

Nothing here knows FUSE; the fuse room turns kernel requests into these calls and the answers into
replies. All methods run in the event loop. They are async because the first touch of a checkpoint
decodes its manifest in a thread; after that lookup, attributes and children answer without a pause,
so no request of another task comes between (we rely on that in `open` and `release`).

Numbers are those of :mod:`ckptfs.engine.nodes`.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import structlog
import trio

from ckptfs.engine.config import ReadLimits
from ckptfs.engine.native import keeps_damage, native_file
from ckptfs.engine.nodes import (
    DIRECTORY_BYTES,
    DIRECTORY_MODE,
    DOTS,
    NAME_MAX_BYTES,
    NODE_BITS,
    ROOT_INODE,
    Answer,
    Attributes,
    Listed,
    Loaded,
    check_node,
    nanoseconds,
    split,
    tree_children,
)
from ckptfs.engine.open_files import OpenFiles
from ckptfs.engine.reader import FileReader
from ckptfs.engine.recent import RecentReaders
from ckptfs.engine.warm import WarmReads
from ckptfs.errors import CkptfsError, StoreDamaged
from ckptfs.model.manifest import Directory, File, Link, decode
from ckptfs.model.names import show_path
from ckptfs.model.tree import Tree
from ckptfs.store import Checkpoint, Store

log = structlog.get_logger(__name__)

# Index lookups of a file with fewer chunks take less time than handing them to a thread.
_INLINE_LOOKUPS = 64


class Totals(NamedTuple):
    """What statfs shows."""

    bytes: int
    entries: int


class View:
    """``attached`` answers what is to be shown, by name; call :meth:`refresh` whenever that changed."""

    def __init__(
        self,
        store: Store,
        attached: Callable[[], Mapping[str, Checkpoint]],
        limits: ReadLimits | None = None,
    ) -> None:
        limits = limits or ReadLimits()
        self._store = store
        self._source = attached
        self._by_name: dict[bytes, Checkpoint] = {}
        self._names: dict[int, bytes] = {}  # ordinal -> name, in the order of ordinals
        self._loaded: dict[int, Loaded] = {}
        self._loading: dict[int, trio.Lock] = {}
        self._load_limiter = trio.CapacityLimiter(limits.metadata_loads)
        self._recent = RecentReaders(store)
        self._open = OpenFiles(on_close=self._recent.keep, on_idle=self._forget_if_unused)
        self._listeners: list[Callable[[set[bytes]], None]] = []
        self._changed_ns = time.time_ns()
        self._manifests_decoded = 0
        self.reads = WarmReads(limits)
        self.refresh()

    # --- What the engine asks ----------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over what is attached now, and tell the listeners which names mean something else now.

        A name that only came is not among them: the root caches no absences, and to invalidate it could
        take the directory from under a job that has just found it.
        """
        before = self._by_name
        now = {name.encode(): checkpoint for name, checkpoint in self._source().items()}
        self._by_name = now
        self._names = {c.ordinal: name for name, c in sorted(now.items(), key=lambda item: item[1].ordinal)}
        for ordinal in [o for o in self._loaded if o not in self._names]:
            self._forget_if_unused(ordinal)
        gone = {name for name, old in before.items() if name not in now or now[name].ordinal != old.ordinal}
        if gone or len(now) != len(before):
            self._changed_ns = time.time_ns()
            for listener in self._listeners:
                listener(gone)

    def on_change(self, listener: Callable[[set[bytes]], None]) -> Callable[[], None]:
        """Call ``listener`` when the root changed, with the names that went or are another checkpoint's now.

        Answers what ends that.
        """
        self._listeners.append(listener)
        return partial(self._listeners.remove, listener)

    @property
    def blobs_directory(self) -> str:
        """Where the files lie whose descriptors :meth:`native` gives."""
        return self._store.blobs_directory

    def adopt(self, handles: Mapping[int, int]) -> None:
        """What an earlier process that served this mount left open: inode -> handles, never less than there
        are. To be called before the first request."""
        self._open.adopt(handles)

    def open_files(self, ordinal: int) -> int:
        """How many open files the checkpoint has: while there are any its bytes must stay."""
        return self._open.count(ordinal)

    def inherited_files(self, ordinal: int) -> int:
        """Of the open files, those that may have been closed when a worker died: it is not known."""
        return self._open.inherited(ordinal)

    def disown(self, ordinal: int) -> None:
        """Inherited handles of a checkpoint do not count any more; whoever reads through one gets ESTALE."""
        self._open.disown(ordinal)

    async def load(self, ordinal: int) -> None:
        """Have the checkpoint's tree in memory: attaching does this, so that the first reader need not wait.

        What is wrong with it is not told here but to who reads it.
        """
        with contextlib.suppress(CkptfsError, Answer):
            await self._load(ordinal)

    def counters(self) -> dict[str, int]:
        return {
            **self.reads.counters,
            "open_files": self._open.total(),
            "trees_loaded": len(self._loaded),
            "manifests_decoded": self._manifests_decoded,
        }

    # --- What the kernel asks ----------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """The entry ``name`` of a directory; None when there is none.

        Raises :class:`Answer` with ENAMETOOLONG, ESTALE, ENOTDIR.
        """
        if len(name) > NAME_MAX_BYTES:
            raise Answer(errno.ENAMETOOLONG)
        if name in (b".", b".."):
            return await self._dot(parent, name)
        if parent == ROOT_INODE:
            checkpoint = self._by_name.get(name)
            return await self._checkpoint_root(checkpoint.ordinal) if checkpoint else None
        loaded, node = await self._directory(parent)
        child = loaded.tree.lookup(node, name)
        return loaded.attributes(child) if child is not None else None

    async def attributes(self, inode: int) -> Attributes:
        """Raises :class:`Answer` with ESTALE when the checkpoint is not attached any more, unless the
        file is open."""
        if inode == ROOT_INODE:
            nlink = 2 + len(self._names)
            return Attributes(ROOT_INODE, DIRECTORY_MODE, nlink, DIRECTORY_BYTES, 0, self._changed_ns)
        ordinal, node = split(inode)
        if node == 0 and ordinal in self._names:
            return await self._checkpoint_root(ordinal)
        loaded = await self._shown(ordinal, inode)
        check_node(loaded, node)
        return loaded.attributes(node)

    async def children(self, inode: int, start: int) -> Iterator[Listed]:
        """The entries of a directory after offset ``start``."""
        if inode == ROOT_INODE:
            return iter(await self._root_children(start))
        loaded, node = await self._directory(inode)
        dots = [
            (name, at, *attributes)
            for at, name in ((1, b"."), (2, b".."))
            if at > start and (attributes := await self._dot(inode, name)) is not None
        ]
        return tree_children(loaded, node, dots, start)

    async def child_count(self, inode: int) -> int:
        """How many entries a directory has. Raises as :meth:`children`."""
        if inode == ROOT_INODE:
            return len(self._names)
        loaded, node = await self._directory(inode)
        return len(loaded.tree.children(node))

    async def readlink(self, inode: int) -> bytes:
        ordinal, node = split(inode)
        loaded = await self._shown(ordinal, inode)
        check_node(loaded, node)
        entry = loaded.tree.entry(node)
        if not isinstance(entry, Link):
            raise Answer(errno.EINVAL)
        return entry.target

    async def open(self, inode: int) -> None:
        """Count one more open of a file; :meth:`release` takes it back.

        From its first moment the engine sees it in :meth:`open_files`.
        """
        ordinal, _ = split(inode)
        if ordinal not in self._names:
            raise Answer(errno.ESTALE)
        self._open.begin(ordinal)
        try:
            reader = None
            opened = self._open.get(inode)
            # Damage that was found since is for whoever opens now, whoever else has the file open.
            if (
                opened is None
                or opened.reader is None
                or opened.reader.damage_found != self._store.damage_found
            ):
                reader = self._recent.take(inode) or await self._reader(ordinal, inode)
            self._open.opened(inode, reader)
        except BaseException:
            self._open.give_up(ordinal)
            raise

    def native(self, inode: int) -> Callable[[], AbstractContextManager[int]] | None:
        """Of an open file: gives a descriptor of the one file that has its bytes, for as long as it is
        entered; None when the file is neither whole nor has a derived copy.

        Derived copies come and go: which there are is asked at each open, whatever else is remembered.
        """
        reader = self.reader_of(inode)
        return native_file(self._store, inode, reader) if reader else None

    def check_joined(self, inode: int, backing: object) -> None:
        """One more handle of an open file gets the file that the others have, whatever :meth:`native` says
        now: for as long as one is open the kernel takes no other. ``backing``: what it said then.

        Raises :class:`StoreDamaged` when that is a derived copy of which damage is known. It has gone, and
        the file was mended or will be, but what the others have open keeps the wrong bytes.
        """
        reader = self.reader_of(inode)
        if reader is not None and keeps_damage(self._store, inode, reader, backing):
            name = self._names.get(split(inode)[0], b"").decode()
            raise StoreDamaged(
                f"checkpoint {name!r}: damage was found in {show_path(reader.path)}, and processes that have "
                "it open may read the wrong bytes until they close it: close it everywhere, then it can be "
                "opened again"
            )

    def reader_of(self, inode: int) -> FileReader | None:
        """Where the bytes of a file lie that is open; None also for one that an earlier process opened and
        nobody read since."""
        opened = self._open.get(inode)
        return opened.reader if opened else None

    def release(self, inode: int) -> None:
        """A handle is closed. One that is not known is not counted."""
        self._open.close(inode)

    async def read(self, inode: int, offset: int, length: int) -> memoryview:
        """Bytes of a file; fewer only at its end. Use the view up before the next await.

        A file that was open when its checkpoint was detached goes on to be read, and so does one that
        an earlier daemon opened.
        """
        opened = self._open.get(inode)
        reader = opened.reader if opened else None
        if reader is None:
            reader = await self._reader(split(inode)[0], inode)
            if opened is not None:
                opened.reader = reader
        try:
            return await self.reads.read(reader, offset, length, checkpoint=split(inode)[0])
        except StoreDamaged as error:
            raise await self._damage_of(split(inode)[0], error) from error

    def totals(self) -> Totals:
        """Of everything that is attached: logical bytes, and files and directories with the root."""
        checkpoints = self._by_name.values()
        return Totals(
            bytes=sum(c.size_bytes for c in checkpoints),
            entries=1 + sum(1 + self._entry_count(c) for c in checkpoints),
        )

    # --- Inside ------------------------------------------------------------------------------------

    def _entry_count(self, checkpoint: Checkpoint) -> int:
        loaded = self._loaded.get(checkpoint.ordinal)
        # The record does not count links; the tree counts its root.
        return len(loaded.tree) - 1 if loaded else checkpoint.files + checkpoint.directories

    async def _load(self, ordinal: int) -> Loaded:
        """One task decodes, those who ask meanwhile wait; when it fails the next tries for itself."""
        loaded = self._loaded.get(ordinal)
        if loaded is not None:
            return loaded
        lock = self._loading.setdefault(ordinal, trio.Lock())
        try:
            async with lock:
                loaded = self._loaded.get(ordinal)
                if loaded is None:
                    self._manifests_decoded += 1
                    loaded = await trio.to_thread.run_sync(
                        self._load_blocking, ordinal, limiter=self._load_limiter
                    )
                    if ordinal in self._names or self._open.count(ordinal):
                        self._loaded[ordinal] = loaded
                return loaded
        finally:
            if not lock.statistics().tasks_waiting:
                self._loading.pop(ordinal, None)

    def _load_blocking(self, ordinal: int) -> Loaded:
        checkpoint = self._store.by_ordinal(ordinal)
        if checkpoint is None:
            raise Answer(errno.ESTALE)
        tree = Tree(decode(self._store.manifest(checkpoint.digest)))
        return Loaded(checkpoint, tree, self._store.own_blobs(ordinal))

    def _forget_if_unused(self, ordinal: int) -> None:
        if ordinal not in self._names and not self._open.count(ordinal):
            self._loaded.pop(ordinal, None)

    async def _shown(self, ordinal: int, inode: int) -> Loaded:
        if ordinal not in self._names and inode not in self._open:
            raise Answer(errno.ESTALE)
        return await self._load(ordinal)

    async def _directory(self, inode: int) -> tuple[Loaded, int]:
        ordinal, node = split(inode)
        loaded = await self._shown(ordinal, inode)
        check_node(loaded, node)
        if not isinstance(loaded.tree.entry(node), Directory | None):
            raise Answer(errno.ENOTDIR)
        return loaded, node

    async def _reader(self, ordinal: int, inode: int) -> FileReader:
        loaded = await self._load(ordinal)
        node = split(inode)[1]
        check_node(loaded, node)
        file = loaded.tree.entry(node)
        if not isinstance(file, File):
            raise Answer(errno.ELOOP if isinstance(file, Link) else errno.EISDIR)
        own_blob = loaded.own_blobs.get(node - 1, 0)
        try:
            if len(file.lengths) <= _INLINE_LOOKUPS:
                return FileReader(self._store, file, own_blob)
            return await trio.to_thread.run_sync(
                FileReader, self._store, file, own_blob, limiter=self._load_limiter
            )
        except StoreDamaged as error:
            raise await self._damage_of(ordinal, error) from error

    async def _damage_of(self, ordinal: int, error: StoreDamaged) -> StoreDamaged:
        """The error of a reader, which knows path and offset, with the checkpoint in it."""
        return StoreDamaged(f"checkpoint {(await self._load(ordinal)).checkpoint.name!r}: {error}")

    async def _checkpoint_root(self, ordinal: int) -> Attributes:
        """The directory of a checkpoint. It is shown even when its manifest cannot be read: damage to
        one checkpoint must not make the root unlistable for the others."""
        try:
            return (await self._load(ordinal)).attributes(0)
        except CkptfsError as error:
            checkpoint = next(c for c in self._by_name.values() if c.ordinal == ordinal)
            log.error("a checkpoint cannot be shown", checkpoint=checkpoint.name, reason=str(error))
            inode = (ordinal << NODE_BITS) + 1
            return Attributes(inode, DIRECTORY_MODE, 2, DIRECTORY_BYTES, 0, nanoseconds(checkpoint.created))

    async def _dot(self, inode: int, name: bytes) -> Attributes | None:
        if inode == ROOT_INODE or name == b".":
            return await self.attributes(inode)
        loaded, node = await self._directory(inode)
        if node == 0:
            return await self.attributes(ROOT_INODE)
        return loaded.attributes(loaded.tree.parent(node))

    async def _root_children(self, start: int) -> list[Listed]:
        root = await self.attributes(ROOT_INODE)
        found: list[Listed] = [(name, at, *root) for at, name in ((1, b"."), (2, b"..")) if at > start]
        for ordinal, name in list(self._names.items()):
            if ordinal + DOTS > start and ordinal in self._names:
                found.append((name, ordinal + DOTS, *await self._checkpoint_root(ordinal)))
        return found
