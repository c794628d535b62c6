"""A file that is opened again asks the index for nothing, unless something is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ckptfs.engine.nodes import ROOT_INODE
from ckptfs.engine.reader import FileReader
from ckptfs.engine.recent import MOST_EXTENTS, RecentReaders
from ckptfs.engine.view import View
from ckptfs.errors import StoreDamaged
from ckptfs.model import manifest as manifests
from ckptfs.store import Checkpoint, Store
from ckptfs.store.records import Chunk
from ckptfs.testing.checkpoints import make_checkpoint, noise

MIB = 1 << 20


class Counting(Store):
    lookups = 0

    def chunks(self, digests: Sequence[bytes]) -> list[Chunk | None]:
        self.lookups += 1
        return super().chunks(digests)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    store = Counting.open(str(tmp_path / "store"))
    assert isinstance(store, Counting)
    yield store
    store.close()


def files_of(store: Store, checkpoint: Checkpoint) -> list[manifests.File]:
    return [file for _, file in manifests.decode(store.manifest(checkpoint.digest)).files()]


async def opened(view: View, *path: bytes) -> int:
    inode = ROOT_INODE
    for name in path:
        attributes = await view.lookup(inode, name)
        assert attributes is not None
        inode = attributes.inode
    await view.open(inode)
    return inode


async def test_a_second_open_asks_the_index_for_nothing(store: Counting) -> None:
    content = noise(1, 9 * MIB)
    checkpoint = make_checkpoint(store, "c", {b"f": content})
    view = View(store, lambda: {"c": checkpoint})
    inode = await opened(view, b"c", b"f")
    view.release(inode)
    before = store.lookups
    assert before > 0
    await view.open(inode)
    assert store.lookups == before
    assert bytes(await view.read(inode, 5 * MIB, MIB)) == content[5 * MIB : 6 * MIB]
    assert view.native(inode) is not None
    view.release(inode)


async def test_damage_found_meanwhile_is_seen_and_so_is_its_end(store: Counting) -> None:
    content = noise(1, 9 * MIB)
    checkpoint = make_checkpoint(store, "c", {b"f": content})
    view = View(store, lambda: {"c": checkpoint})
    inode = await opened(view, b"c", b"f")
    view.release(inode)
    [file] = files_of(store, checkpoint)
    assert store.quarantine([file.digests[: manifests.DIGEST_BYTES]]) == 1
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="found damaged"):
            await view.open(inode)
    assert view.open_files(checkpoint.ordinal) == 0

    make_checkpoint(store, "mends", {b"f": content})
    assert not store.quarantined()
    await view.open(inode)
    assert bytes(await view.read(inode, 0, MIB)) == content[:MIB]
    view.release(inode)


def test_as_many_are_kept_as_are_allowed(store: Counting) -> None:
    checkpoint = make_checkpoint(store, "c", {b"%d" % i: noise(i, 1000) for i in range(4)})
    readers = [FileReader(store, file) for file in files_of(store, checkpoint)]
    recent = RecentReaders(store, most=3)
    for inode, reader in enumerate(readers):
        recent.keep(inode, reader)
    assert len(recent) == 3
    assert recent.take(0) is None  # the one that was kept first
    assert recent.take(3) is readers[3]
    assert recent.take(3) is None  # it is open now


def test_a_file_in_very_many_places_is_not_kept(store: Counting) -> None:
    parts = [noise(i, 4 * MIB) for i in range(2)]
    for i, part in enumerate(parts):
        make_checkpoint(store, f"part-{i}", {b"f": part})
    scattered = make_checkpoint(store, "c", {b"f": b"".join(parts[i % 2] for i in range(MOST_EXTENTS + 1))})
    reader = FileReader(store, *files_of(store, scattered))
    assert reader.extent_count > MOST_EXTENTS
    recent = RecentReaders(store)
    recent.keep(1, reader)
    assert len(recent) == 0
