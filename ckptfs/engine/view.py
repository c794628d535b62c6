"""What the mount shows: one directory per attached checkpoint, and in it the checkpoint's tree.

Nothing here knows FUSE; the fuse room turns kernel requests into these calls and the answers into
replies. All methods run in the event loop. They are async because the first touch of a checkpoint
decodes its manifest in a thread; after that lookup, attributes and children answer without a pause,
so no request of another task comes between (we rely on that in `open` and `release`).

Numbers are derived from persistent facts alone, so that another process understands them too:

- inode 1 is the root of the mount; ``ordinal << 32 | node + 1`` is a node of a checkpoint, where node
  0 is its root directory and node i + 1 its manifest's entry i. Ordinals are never used again, so
  neither are inode numbers;
- a file's handle is its inode number;
- a directory's offsets: 1 after ".", 2 after "..", then 2 + ordinal in the root, whose entries come
  and go, and 3 + position inside a checkpoint, which never changes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import structlog
import trio

from ckptfs.engine.reader import FileReader, WarmReads
from ckptfs.errors import CkptfsError, StoreDamaged
from ckptfs.model.chunking import TARGET_CHUNK_BYTES
from ckptfs.model.digest import zero_digest
from ckptfs.model.manifest import DIGEST_BYTES, Directory, File, Link, decode
from ckptfs.model.tree import Tree
from ckptfs.store import Checkpoint, Store

log = structlog.get_logger(__name__)

ROOT_INODE = 1
NAME_MAX_BYTES = 255
BLOCK_BYTES = 512  # the unit of st_blocks
DIRECTORY_BYTES = 4096  # what ext4 says of a small directory; nobody can do anything with it

_NODE_BITS = 32
_NODE_MASK = (1 << _NODE_BITS) - 1
_DOTS = 2  # offsets that "." and ".." take

_DIRECTORY_MODE = stat.S_IFDIR | 0o555
_FILE_MODE = stat.S_IFREG | 0o444
_EXECUTABLE_MODE = stat.S_IFREG | 0o555
_LINK_MODE = stat.S_IFLNK | 0o777

# Manifests are decoded by few threads: it is Python work, more would only contend for the GIL.
_LOAD_THREADS = 2

# Index lookups of a file with fewer chunks take less time than handing them to a thread.
_INLINE_LOOKUPS = 64


class Answer(OSError):
    """An errno that is the right answer to what was asked, not a fault: nothing to log."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


class Attributes(NamedTuple):
    """What stat shows. Owner is root, all three times are ``time_ns``."""

    inode: int
    mode: int
    nlink: int
    size_bytes: int
    blocks: int
    time_ns: int


#: One entry of a listing: name, offset of the next, and the six fields of :class:`Attributes`. A plain
#: tuple, because a directory has many: naming the fields of each would take longer than all the rest.
Listed = tuple[bytes, int, int, int, int, int, int, int]


class Totals(NamedTuple):
    """What statfs shows."""

    bytes: int
    entries: int


class _Loaded:
    """A checkpoint whose manifest is in memory."""

    __slots__ = ("base", "checkpoint", "own_blobs", "time_ns", "tree")

    def __init__(self, checkpoint: Checkpoint, tree: Tree, own_blobs: dict[int, int]) -> None:
        self.checkpoint = checkpoint
        self.tree = tree
        self.own_blobs = own_blobs
        self.base = (checkpoint.ordinal << _NODE_BITS) + 1
        self.time_ns = _nanoseconds(checkpoint.created)

    def attributes(self, node: int) -> Attributes:
        tree = self.tree
        entry = tree.entry(node)
        inode = self.base + node
        if type(entry) is File:
            mode = _EXECUTABLE_MODE if entry.executable else _FILE_MODE
            return Attributes(inode, mode, 1, entry.size_bytes, _blocks(entry), self.time_ns)
        if type(entry) is Link:
            return Attributes(inode, _LINK_MODE, 1, len(entry.target), 0, self.time_ns)
        return Attributes(inode, _DIRECTORY_MODE, tree.nlink(node), DIRECTORY_BYTES, 0, self.time_ns)


class _Open:
    """A file that somebody has open."""

    __slots__ = ("count", "reader")

    def __init__(self, reader: FileReader) -> None:
        self.reader = reader
        self.count = 0


class View:
    """``attached`` answers what is to be shown, by name; call :meth:`refresh` whenever that changed."""

    def __init__(self, store: Store, attached: Callable[[], Mapping[str, Checkpoint]]) -> None:
        self._store = store
        self._source = attached
        self._by_name: dict[bytes, Checkpoint] = {}
        self._names: dict[int, bytes] = {}  # ordinal -> name, in the order of ordinals
        self._loaded: dict[int, _Loaded] = {}
        self._loading: dict[int, trio.Lock] = {}
        self._load_limiter = trio.CapacityLimiter(_LOAD_THREADS)
        self._open: dict[int, _Open] = {}
        self._open_files: Counter[int] = Counter()
        self._listeners: list[Callable[[set[bytes]], None]] = []
        self._changed_ns = time.time_ns()
        self._manifests_decoded = 0
        self.reads = WarmReads()
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

    def open_files(self, ordinal: int) -> int:
        """How many open files the checkpoint has: while there are any its bytes must stay."""
        return self._open_files[ordinal]

    async def load(self, ordinal: int) -> None:
        """Have the checkpoint's tree in memory: attaching does this, so that the first reader need not wait.

        What is wrong with it is not told here but to who reads it.
        """
        with contextlib.suppress(CkptfsError, Answer):
            await self._load(ordinal)

    def counters(self) -> dict[str, int]:
        return {
            **self.reads.counters,
            "open_files": self._open_files.total(),
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
            return Attributes(ROOT_INODE, _DIRECTORY_MODE, nlink, DIRECTORY_BYTES, 0, self._changed_ns)
        ordinal, node = _split(inode)
        if node == 0 and ordinal in self._names:
            return await self._checkpoint_root(ordinal)
        loaded = await self._shown(ordinal, inode)
        _check_node(loaded, node)
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
        return _tree_children(loaded, node, dots, start)

    async def child_count(self, inode: int) -> int:
        """How many entries a directory has. Raises as :meth:`children`."""
        if inode == ROOT_INODE:
            return len(self._names)
        loaded, node = await self._directory(inode)
        return len(loaded.tree.children(node))

    async def readlink(self, inode: int) -> bytes:
        ordinal, node = _split(inode)
        loaded = await self._shown(ordinal, inode)
        _check_node(loaded, node)
        entry = loaded.tree.entry(node)
        if not isinstance(entry, Link):
            raise Answer(errno.EINVAL)
        return entry.target

    async def open(self, inode: int) -> None:
        """Count one more open of a file; :meth:`release` takes it back.

        From its first moment the engine sees it in :meth:`open_files`.
        """
        ordinal, _ = _split(inode)
        if ordinal not in self._names:
            raise Answer(errno.ESTALE)
        self._open_files[ordinal] += 1
        try:
            if inode not in self._open:
                reader = await self._reader(ordinal, inode)
                self._open.setdefault(inode, _Open(reader))
            self._open[inode].count += 1
        except BaseException:
            self._closed(ordinal)
            raise

    def release(self, inode: int) -> None:
        """A handle is closed. One that a daemon before this one had opened is not known, nor counted."""
        opened = self._open.get(inode)
        if opened is None:
            return
        opened.count -= 1
        if opened.count == 0:
            del self._open[inode]
        self._closed(_split(inode)[0])

    async def read(self, inode: int, offset: int, length: int) -> memoryview:
        """Bytes of a file; fewer only at its end. Use the view up before the next await.

        A file that was open when its checkpoint was detached goes on to be read, and so does one that
        an earlier daemon opened.
        """
        opened = self._open.get(inode)
        reader = opened.reader if opened else await self._reader(_split(inode)[0], inode)
        try:
            return await self.reads.read(reader, offset, length)
        except StoreDamaged as error:
            raise await self._damage_of(_split(inode)[0], error) from error

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

    async def _load(self, ordinal: int) -> _Loaded:
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
                    if ordinal in self._names or self._open_files[ordinal]:
                        self._loaded[ordinal] = loaded
                return loaded
        finally:
            if not lock.statistics().tasks_waiting:
                self._loading.pop(ordinal, None)

    def _load_blocking(self, ordinal: int) -> _Loaded:
        checkpoint = self._store.by_ordinal(ordinal)
        if checkpoint is None:
            raise Answer(errno.ESTALE)
        tree = Tree(decode(self._store.manifest(checkpoint.digest)))
        return _Loaded(checkpoint, tree, self._store.own_blobs(ordinal))

    def _forget_if_unused(self, ordinal: int) -> None:
        if ordinal not in self._names and not self._open_files[ordinal]:
            self._loaded.pop(ordinal, None)

    def _closed(self, ordinal: int) -> None:
        self._open_files[ordinal] -= 1
        if not self._open_files[ordinal]:
            del self._open_files[ordinal]
            self._forget_if_unused(ordinal)

    async def _shown(self, ordinal: int, inode: int) -> _Loaded:
        if ordinal not in self._names and inode not in self._open:
            raise Answer(errno.ESTALE)
        return await self._load(ordinal)

    async def _directory(self, inode: int) -> tuple[_Loaded, int]:
        ordinal, node = _split(inode)
        loaded = await self._shown(ordinal, inode)
        _check_node(loaded, node)
        if not isinstance(loaded.tree.entry(node), Directory | None):
            raise Answer(errno.ENOTDIR)
        return loaded, node

    async def _reader(self, ordinal: int, inode: int) -> FileReader:
        loaded = await self._load(ordinal)
        node = _split(inode)[1]
        _check_node(loaded, node)
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
            inode = (ordinal << _NODE_BITS) + 1
            return Attributes(inode, _DIRECTORY_MODE, 2, DIRECTORY_BYTES, 0, _nanoseconds(checkpoint.created))

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
            if ordinal + _DOTS > start and ordinal in self._names:
                found.append((name, ordinal + _DOTS, *await self._checkpoint_root(ordinal)))
        return found


def _tree_children(loaded: _Loaded, node: int, dots: list[Listed], start: int) -> Iterator[Listed]:
    yield from dots
    # Written out: a listing of 100,000 files spends most of its time here.
    tree, base, time_ns, entries = loaded.tree, loaded.base, loaded.time_ns, loaded.tree.entries
    parent = tree.entry(node)
    cut = len(parent.path) + 1 if parent else 0
    first = max(0, start - _DOTS)
    for following, child in enumerate(tree.child_nodes(node, first), first + _DOTS + 1):
        entry = entries[child - 1]
        if type(entry) is File and (size := entry.size_bytes) < TARGET_CHUNK_BYTES:  # no hole in it
            mode = _EXECUTABLE_MODE if entry.executable else _FILE_MODE
            blocks = (size + BLOCK_BYTES - 1) // BLOCK_BYTES
            yield entry.path[cut:], following, base + child, mode, 1, size, blocks, time_ns
        else:
            yield entry.path[cut:], following, *loaded.attributes(child)


def _split(inode: int) -> tuple[int, int]:
    return inode >> _NODE_BITS, (inode & _NODE_MASK) - 1


def _check_node(loaded: _Loaded, node: int) -> None:
    if not 0 <= node <= len(loaded.tree):
        raise Answer(errno.ESTALE)


def _nanoseconds(seconds: float) -> int:
    """Through microseconds: a float of seconds since 1970 has no more digits than that."""
    return round(seconds * 1_000_000) * 1000


def _blocks(file: File) -> int:
    """What the file takes, in units of 512 bytes. Full grid chunks of zeros are holes."""
    size = file.size_bytes
    if size >= TARGET_CHUNK_BYTES:
        zero = zero_digest(TARGET_CHUNK_BYTES)
        digests = file.digests
        at = digests.find(zero)
        while at >= 0:
            if at % DIGEST_BYTES == 0 and file.lengths[at // DIGEST_BYTES] == TARGET_CHUNK_BYTES:
                size -= TARGET_CHUNK_BYTES
            at = digests.find(zero, at + 1)
    return -(-size // BLOCK_BYTES)
