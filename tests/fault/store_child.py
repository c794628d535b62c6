"""One change to a store, to be killed in the middle.

``python store_child.py STORE create|create_and_fail|remove|rename|fail|assemble|drop|quarantine|reopen``
Prints "begun" when the store is open and "done" at the end, so that the test knows how far it came.
"""

from __future__ import annotations

import random
import sys

from ckptfs.engine.derive import Deriver
from ckptfs.errors import StoreError
from ckptfs.model import manifest as manifests
from ckptfs.model.digest import digest
from ckptfs.store import Checkpoint, Natives, Store, release
from ckptfs.testing.writing import Writing, write

CHUNK_BYTES = 30_000


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


#: What the prepared store holds before the change.
BASE = {
    b"weights": noise(1, 300_000) + bytes(60_000) + noise(2, 100_000),
    b"alone": noise(3, 150_000),
    b"config": noise(4, 2_000),
}
KEPT = {b"weights": BASE[b"weights"][:120_000], b"config": BASE[b"config"]}
#: A chunk whose blocks the derived copy of ``weights`` shares, where blocks can be shared.
SHARED = BASE[b"weights"][:CHUNK_BYTES]
#: What the creation brings: shared, own, small, zeros, empty.
NEW = {
    b"alone": BASE[b"alone"],
    b"half": BASE[b"weights"][:150_000] + noise(5, 200_000),
    b"own": noise(6, 250_001),
    b"empty": b"",
    b"small 1": noise(7, 3_000),
    b"small 2": noise(8, 5_000),
    b"zeros": bytes(100_000),
}


def create(store: Store, *, commit_every: int = 6) -> Checkpoint:
    writing = Writing(store, "new", NEW, chunk_bytes=CHUNK_BYTES)
    while writing.put_some(commit_every):
        writing.draft.commit()
    return writing.publish()


def prepare(store: Store) -> None:
    write(store, "kept", KEPT, chunk_bytes=CHUNK_BYTES)
    write(store, "base", BASE, chunk_bytes=CHUNK_BYTES)


def assemble(store: Store, name: str = "base") -> int:
    """Give every file of a checkpoint that shares chunks a derived copy; how many."""
    checkpoint = store.by_name(name)
    assert checkpoint is not None
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(checkpoint.digest))
    works = deriver.survey(checkpoint.ordinal, manifest, lambda: None).shared
    copies = [deriver.make(checkpoint.ordinal, work, asked=True, step=lambda count: None) for work in works]
    store.put_natives(checkpoint.ordinal, Natives(whole=1, small=1, wanted=True))
    return len(store.record_copies(copies))


def ordinal(store: Store, name: str) -> int:
    found = store.by_name(name)
    assert found is not None
    return found.ordinal


def main() -> None:
    path, what = sys.argv[1:]
    # several transactions for one release, as a large checkpoint has them
    release._CHUNKS_AT_ONCE = release._ROWS_AT_ONCE = 4
    store = Store.open(path)
    print("begun", flush=True)
    if what == "create":
        create(store)
    elif what == "remove":
        store.remove(ordinal(store, "base"))
    elif what == "rename":
        store.rename(ordinal(store, "base"), "renamed")
    elif what == "create_and_fail":
        # the disk fails somewhere: say how, ask once more, and give up in an orderly way
        writing = Writing(store, "new", NEW, chunk_bytes=CHUNK_BYTES)
        for _ in range(2):
            try:
                while writing.put_some(6):
                    writing.draft.commit()
                writing.publish()
                print("published", flush=True)
                break
            except StoreError as error:
                print(type(error).__name__, flush=True)
        else:
            writing.draft.fail("the disk failed", "store", keep=False)
    elif what == "assemble":
        assemble(store)
    elif what == "drop":
        store.drop_copies([(copy.ordinal, copy.entry) for copy in store.copies()])
    elif what == "quarantine":
        store.quarantine([digest(SHARED)])
    elif what == "fail":
        writing = Writing(store, "new", NEW, chunk_bytes=CHUNK_BYTES)
        writing.put_some(12)
        writing.draft.commit()
        writing.put_some()
        writing.draft.fail("as the test wants", "interrupted", keep=False)
    store.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
