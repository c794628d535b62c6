"""The view over a real store: numbers, offsets, what is open, what is not shown any more."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ckptfs.engine.nodes import ROOT_INODE, Answer, Attributes
from ckptfs.engine.view import View
from ckptfs.errors import StoreDamaged
from ckptfs.model import manifest as manifests
from ckptfs.model.manifest import DIGEST_BYTES
from ckptfs.store import Checkpoint, Store, Why, rows
from ckptfs.store.index import Table
from ckptfs.testing.checkpoints import To, make_checkpoint, noise


class Attached:
    def __init__(self, store: Store) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}
        self.view = View(store, lambda: self.checkpoints)

    def show(self, *checkpoints: Checkpoint) -> None:
        self.checkpoints = {c.name: c for c in checkpoints}
        self.view.refresh()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "store"))
    yield store
    store.close()


@pytest.fixture
def attached(store: Store) -> Attached:
    return Attached(store)


async def names(view: View, inode: int, start: int = 0) -> list[tuple[bytes, int]]:
    return [(name, following) for name, following, *_ in await view.children(inode, start)]


async def found(view: View, *path: bytes) -> Attributes:
    inode, attributes = ROOT_INODE, None
    for name in path:
        attributes = await view.lookup(inode, name)
        assert attributes is not None, name
        inode = attributes.inode
    assert attributes is not None
    return attributes


async def refused(number: int, coroutine: object) -> None:
    with pytest.raises(Answer) as caught:
        await coroutine  # type: ignore[misc]
    assert caught.value.errno == number


async def test_root_offsets_are_those_of_ordinals(store: Store, attached: Attached) -> None:
    one, two, three = (make_checkpoint(store, name, {b"f": name.encode()}) for name in ("c", "a", "b"))
    attached.show(one, three)
    view = attached.view
    assert await names(view, ROOT_INODE) == [
        (b".", 1),
        (b"..", 2),
        (b"c", 2 + one.ordinal),
        (b"b", 2 + three.ordinal),
    ]
    # A listing that got as far as the first goes on there, whatever came and went meanwhile.
    attached.show(two, three)
    assert await names(view, ROOT_INODE, 2 + one.ordinal) == [
        (b"a", 2 + two.ordinal),
        (b"b", 2 + three.ordinal),
    ]
    attached.show()
    assert await names(view, ROOT_INODE, 2 + one.ordinal) == []


async def test_offsets_inside_are_positions(store: Store, attached: Attached) -> None:
    attached.show(make_checkpoint(store, "c", {f"d/{i:02}".encode(): b"" for i in range(10)} | {b"d-x": b""}))
    inode = (await found(attached.view, b"c", b"d")).inode
    everything = await names(attached.view, inode)
    assert [n for n, _ in everything] == [b".", b".."] + [f"{i:02}".encode() for i in range(10)]
    for at, (_, following) in enumerate(everything, 1):
        assert await names(attached.view, inode, following) == everything[at:]


async def test_numbers_are_the_same_in_another_process(store: Store, attached: Attached) -> None:
    checkpoint = make_checkpoint(store, "c", {b"a/b": b"x", b"c": b"y"})
    attached.show(checkpoint)
    one = await found(attached.view, b"c", b"a", b"b")
    other = Attached(store)
    other.show(checkpoint)
    assert await other.view.attributes(one.inode) == one
    # A handle of the process before: never opened here, and read all the same.
    assert bytes(await other.view.read(one.inode, 0, 10)) == b"x"
    other.view.release(one.inode)
    assert other.view.open_files(checkpoint.ordinal) == 0


async def test_what_is_not_attached_any_more_is_stale(store: Store, attached: Attached) -> None:
    checkpoint = make_checkpoint(store, "c", {b"d/f": b"x", b"l": To(b"d/f")})
    attached.show(checkpoint)
    view = attached.view
    folder, file, link = [await found(view, b"c", *p) for p in ([b"d"], [b"d", b"f"], [b"l"])]
    attached.show()
    assert await view.lookup(ROOT_INODE, b"c") is None
    for inode in (folder.inode, file.inode, link.inode, (checkpoint.ordinal << 32) + 1):
        await refused(errno.ESTALE, view.attributes(inode))
    await refused(errno.ESTALE, view.lookup(folder.inode, b"f"))
    await refused(errno.ESTALE, view.children(folder.inode, 0))
    await refused(errno.ESTALE, view.readlink(link.inode))
    await refused(errno.ESTALE, view.open(file.inode))
    assert view.counters()["trees_loaded"] == 0


async def test_an_open_file_outlives_the_detach(store: Store, attached: Attached) -> None:
    content = noise(1, 5 << 20)
    checkpoint = make_checkpoint(store, "c", {b"f": content})
    attached.show(checkpoint)
    view = attached.view
    file = await found(view, b"c", b"f")
    await view.open(file.inode)
    await view.open(file.inode)
    assert view.open_files(checkpoint.ordinal) == 2
    attached.show()
    assert await view.attributes(file.inode) == file
    assert bytes(await view.read(file.inode, 4 << 20, 1 << 20)) == content[4 << 20 :]
    await refused(errno.ESTALE, view.open(file.inode))
    view.release(file.inode)
    assert bytes(await view.read(file.inode, 0, 100)) == content[:100]
    view.release(file.inode)
    assert view.open_files(checkpoint.ordinal) == 0
    assert view.counters()["trees_loaded"] == 0


async def test_opens_of_what_is_no_file(store: Store, attached: Attached) -> None:
    checkpoint = make_checkpoint(store, "c", {b"d": None, b"l": To(b"d"), b"f": b""})
    attached.show(checkpoint)
    view = attached.view
    await refused(errno.EISDIR, view.open((await found(view, b"c", b"d")).inode))
    await refused(errno.ELOOP, view.open((await found(view, b"c", b"l")).inode))
    await refused(errno.ENOTDIR, view.lookup((await found(view, b"c", b"f")).inode, b"x"))
    await refused(errno.EINVAL, view.readlink((await found(view, b"c", b"f")).inode))
    await refused(errno.ESTALE, view.attributes((checkpoint.ordinal << 32) + 1000))
    await refused(errno.ESTALE, view.attributes(7))
    await refused(errno.ENAMETOOLONG, view.lookup(ROOT_INODE, b"n" * 256))
    assert view.open_files(checkpoint.ordinal) == 0


async def test_listeners_hear_of_names_that_changed(store: Store, attached: Attached) -> None:
    one, two = (make_checkpoint(store, name, {b"f": b""}) for name in ("one", "two"))
    heard: list[set[bytes]] = []
    stop = attached.view.on_change(heard.append)
    attached.show(one)
    attached.show(one)
    before = await attached.view.attributes(ROOT_INODE)
    await trio.sleep(0.002)
    attached.show(one, two)
    store.rename(two.ordinal, "new")
    renamed = store.by_ordinal(two.ordinal)
    assert renamed
    attached.show(one, renamed)
    assert heard == [set(), set(), {b"two"}]  # names that came: nobody was told that they are absent
    after = await attached.view.attributes(ROOT_INODE)
    assert (before.nlink, after.nlink) == (3, 4)
    assert after.time_ns > before.time_ns
    stop()
    attached.show()
    assert len(heard) == 3


async def test_the_first_readers_of_a_checkpoint_share_one_decoding(store: Store, attached: Attached) -> None:
    attached.show(make_checkpoint(store, "c", {f"{i}".encode(): b"" for i in range(5000)}))
    view, inodes = attached.view, []

    async def look(name: bytes) -> None:
        inodes.append((await found(view, b"c", name)).inode)

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(look, f"{i}".encode())
    assert len(set(inodes)) == 20
    assert view.counters()["manifests_decoded"] == 1


async def test_a_cancelled_first_reader_harms_nobody(store: Store, attached: Attached) -> None:
    attached.show(make_checkpoint(store, "c", {f"{i}".encode(): b"" for i in range(5000)}))
    scope = trio.CancelScope()
    answers = []

    async def first() -> None:
        with scope:
            await found(attached.view, b"c", b"1")

    async def second() -> None:
        answers.append(await found(attached.view, b"c", b"2"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert len(answers) == 1


async def test_a_damaged_manifest_hides_no_other_checkpoint(store: Store, attached: Attached) -> None:
    good, bad = (make_checkpoint(store, name, {name.encode(): b"x"}) for name in ("good", "bad"))
    attached.show(good, bad)
    view = attached.view
    path = Path(store.path, "manifests", bad.digest.hex())
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert [n for n, _ in await names(view, ROOT_INODE)] == [b".", b"..", b"good", b"bad"]
    root = await found(view, b"bad")
    with pytest.raises(StoreDamaged):
        await view.lookup(root.inode, b"bad")
    assert (await found(view, b"good", b"good")).size_bytes == 1


async def test_totals(store: Store, attached: Attached) -> None:
    one = make_checkpoint(store, "one", {b"d/f": b"12345"})
    two = make_checkpoint(store, "two", {b"g": b"678"})
    attached.show(one, two)
    assert attached.view.totals() == (8, 1 + (1 + 2) + (1 + 1))
    for checkpoint in (one, two):
        await attached.view.load(checkpoint.ordinal)
    assert attached.view.totals() == (8, 6)


# --- What an earlier process left open -------------------------------------------------------------------


async def test_inherited_handles_count_and_are_read(store: Store, attached: Attached) -> None:
    content = noise(1, 300_000)
    c = make_checkpoint(store, "c", {b"f": content})
    attached.show(c)
    inode = (await found(attached.view, b"c", b"f")).inode
    later = Attached(store)
    later.show(c)
    view = later.view
    view.adopt({inode: 2})
    assert (view.open_files(c.ordinal), view.inherited_files(c.ordinal)) == (2, 2)
    assert bytes(await view.read(inode, 0, 300_000)) == content

    await view.open(inode)
    assert view.native(inode) is not None
    assert (view.open_files(c.ordinal), view.inherited_files(c.ordinal)) == (3, 2)
    # Which handle was closed nobody can say: what is certain goes first.
    view.release(inode)
    assert (view.open_files(c.ordinal), view.inherited_files(c.ordinal)) == (2, 2)
    for left in (1, 0):
        view.release(inode)
        assert (view.open_files(c.ordinal), view.inherited_files(c.ordinal)) == (left, left)
    view.release(inode)  # answered twice, by two processes
    assert view.open_files(c.ordinal) == 0


async def test_damage_is_told_to_who_opens_a_file_that_others_have_open(
    store: Store, attached: Attached
) -> None:
    content = noise(1, 300_000)
    c = make_checkpoint(store, "c", {b"f": content})
    attached.show(c)
    view = attached.view
    inode = (await found(view, b"c", b"f")).inode
    await view.open(inode)
    manifest = manifests.decode(store.manifest(c.digest))
    (file,) = (file for _, file in manifest.files())
    store.quarantine([file.digests[:DIGEST_BYTES]])
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=r"'c'.*offset 0 of f was found damaged"):
            await view.open(inode)
    assert view.open_files(c.ordinal) == 1
    make_checkpoint(store, "again", {b"f": content})
    await view.open(inode)
    assert bytes(await view.read(inode, 0, 300_000)) == content


async def test_a_damaged_row_of_a_derived_copy_harms_no_open(store: Store, attached: Attached) -> None:
    parts = noise(1, 8 << 20)
    make_checkpoint(store, "base", {b"f": parts})
    c = make_checkpoint(store, "c", {b"f": parts[4 << 20 :] + parts[: 4 << 20]})
    copy = store.new_copy(c.ordinal, 0, 8 << 20, Why.ASKED)
    assert len(store.record_copies([copy])) == 1
    attached.show(c)
    view = attached.view
    inode = (await found(view, b"c", b"f")).inode
    await view.open(inode)
    assert view.native(inode) is not None
    index = store._core.index
    with index._env.begin(write=True, db=index._handles[Table.DERIVED]) as txn:
        txn.put(rows.derived_key(c.ordinal, 0), b"no row with a checksum")
    assert view.native(inode) is None
    assert bytes(await view.read(inode, 0, 1000)) == parts[4 << 20 :][:1000]


async def test_no_handle_joins_those_that_read_damaged_bytes(store: Store, attached: Attached) -> None:
    """Of a derived copy that was dropped with the damage in what it shares, and is there anew."""
    a, b = noise(1, 4 << 20), noise(2, 4 << 20)
    make_checkpoint(store, "base", {b"f": a + b})
    c = make_checkpoint(store, "c", {b"f": b + a})
    other = make_checkpoint(store, "other", {b"f": noise(3, 300_000)})
    store.record_copies([store.new_copy(c.ordinal, 0, 8 << 20, Why.ASKED)])
    attached.show(c, other)
    view = attached.view
    inode = (await found(view, b"c", b"f")).inode
    await view.open(inode)
    backing = view.native(inode)
    assert backing is not None
    kernel = contextlib.ExitStack()  # it has the file open for as long as a handle is
    kernel.enter_context(backing())
    view.check_joined(inode, backing)
    # What other files have, and a copy that is dropped for another reason, is nothing to it.
    (chunk,) = own_chunks(store, other)
    store.quarantine([chunk])
    view.check_joined(inode, backing)
    store.drop_copies([(c.ordinal, 0)])
    view.check_joined(inode, backing)
    view.check_joined(inode, None)

    store.quarantine(own_chunks(store, c)[:1])
    make_checkpoint(store, "again", {b"f": b})
    store.record_copies([store.new_copy(c.ordinal, 0, 8 << 20, Why.ASKED)])
    await view.open(inode)
    for before in (backing, None):
        with pytest.raises(StoreDamaged, match=r"'c': damage was found in f, .* until they close it:"):
            view.check_joined(inode, before)
    anew = view.native(inode)
    assert anew is not None
    kernel.enter_context(anew())
    view.check_joined(inode, anew)

    store.drop_copies([(c.ordinal, 0)], wrong=True)  # as verify does
    with pytest.raises(StoreDamaged):
        view.check_joined(inode, anew)
    kernel.close()


def own_chunks(store: Store, checkpoint: Checkpoint) -> list[bytes]:
    (file,) = (file for _, file in manifests.decode(store.manifest(checkpoint.digest)).files())
    return [name for _, _, name in file.recipe()]


async def test_an_inherited_handle_outlives_the_lease_until_it_is_disowned(
    store: Store, attached: Attached
) -> None:
    content = noise(1, 300_000)
    c = make_checkpoint(store, "c", {b"f": content})
    attached.show(c)
    inode = (await found(attached.view, b"c", b"f")).inode
    later = Attached(store)  # detached meanwhile
    later.view.adopt({inode: 1})
    assert bytes(await later.view.read(inode, 0, 10)) == content[:10]
    later.view.disown(c.ordinal)
    assert later.view.open_files(c.ordinal) == 0
    store.remove(c.ordinal)
    await refused(errno.ESTALE, later.view.read(inode, 0, 10))
