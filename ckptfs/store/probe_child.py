"""The child of :mod:`ckptfs.store.probe`: opens an index for reading and looks for damage.

Run as a script with the index folder as its argument. Exit 0: sound. Exit 1: damaged, with the reason on
standard output. Exit 3: a package is missing, nothing was looked at. Ended by a signal: damaged. It
imports nothing of ckptfs, so that it starts quickly.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import sys

try:
    import lmdb
    from xxhash import xxh3_64_digest
except ImportError as error:
    print(error)
    sys.exit(3)

SAMPLES = 1000
SMALL = (b"meta", b"checkpoints", b"names", b"drafts", b"leases", b"pending")
SAMPLED = (b"owners", b"chunks", b"blob_chunks", b"blobs", b"draft_files", b"draft_chunks")
LATER = (b"derived", b"natives")  # an index that was made before them lacks them
COUNTERS = struct.Struct(">QQQQQ")  # as in rows.py
CHUNKS_FIELD = 2


class Damaged(Exception):
    pass


def check_row(table: bytes, key: bytes, value: bytes) -> None:
    if xxh3_64_digest(key + value[:-8]) != value[-8:]:
        raise Damaged(f"a row of its table {table.decode()} fails its checksum")


def check(folder: str) -> None:
    try:
        size = os.stat(f"{folder}/data.mdb").st_size
    except FileNotFoundError:
        raise Damaged("data.mdb is missing") from None
    if size == 0:
        raise Damaged("data.mdb is empty")
    environment = lmdb.open(
        folder, readonly=True, lock=False, create=False, readahead=False, max_dbs=len(SMALL + SAMPLED + LATER)
    )
    info = environment.info()
    page = environment.stat()["psize"]
    if (info["last_pgno"] + 1) * page > size:
        raise Damaged(f"data.mdb is truncated to {size} of {(info['last_pgno'] + 1) * page} bytes")
    with environment.begin() as txn:
        names = {bytes(key) for key, _ in txn.cursor()}
        if set(SMALL + SAMPLED) - names:
            raise Damaged("a table is missing")
        tables = {name: environment.open_db(name, txn=txn, create=False) for name in SMALL + SAMPLED}
        for name in SMALL:
            for key, value in txn.cursor(tables[name]):
                check_row(name, key, value)
        counters = txn.get(b"counters", db=tables[b"meta"])
        if counters is None:
            raise Damaged("it has no counters")
        counted = COUNTERS.unpack(counters[:-8])[CHUNKS_FIELD]
        present = txn.stat(tables[b"chunks"])["entries"]
        if counted != present:
            raise Damaged(f"it holds {present} chunks and says {counted}")
        if txn.stat(tables[b"names"])["entries"] != txn.stat(tables[b"checkpoints"])["entries"]:
            raise Damaged("its names and its checkpoints are not as many")
        for name in LATER:
            if name in names:
                tables[name] = environment.open_db(name, txn=txn, create=False)
        for name in (*SAMPLED, *(set(LATER) & names)):
            sample(name, txn, tables[name])
    environment.close()


def sample(name: bytes, txn: lmdb.Transaction[bytes], table: object) -> None:
    """The first, the last and a random selection of rows; all of a table that is small."""
    cursor = txn.cursor(table)  # type: ignore[arg-type]
    if txn.stat(table)["entries"] <= SAMPLES:  # type: ignore[arg-type]
        for key, value in cursor:
            check_row(name, key, value)
        return
    cursor.last()
    last = cursor.key()
    check_row(name, last, cursor.value())
    cursor.first()
    first = cursor.key()
    check_row(name, first, cursor.value())
    low, high = int.from_bytes(first[:8], "big"), int.from_bytes(last[:8], "big")
    for _ in range(SAMPLES):
        if cursor.set_range(random.randint(low, high).to_bytes(8, "big")):
            check_row(name, cursor.key(), cursor.value())


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a SIGBUS here is an answer, not a crash to keep
    try:
        check(sys.argv[1])
    except Damaged as error:
        print(error)
        return 1
    except lmdb.Error as error:
        print(f"LMDB says: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
