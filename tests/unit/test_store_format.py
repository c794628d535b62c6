"""docs/format.md, "Store layout" and "Index", followed to the letter by readers that know nothing else.

Nothing of ckptfs.store is used to read: the formats are spelled out here again, from the page.
"""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from ckptfs.store import Lease, Store
from ckptfs.testing.writing import Writing, write

CHUNK = 40_000


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


TREES = {
    "one": {b"f": noise(1, 200_000) + bytes(80_000), b"s": b"small", b"t": noise(2, 9_000), b"empty": b""},
    "two": {b"g": noise(1, 120_000) + noise(3, 100_000), b"s": b"small"},
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    store = Store.open(str(tmp_path / "s"))
    for name, tree in TREES.items():
        write(store, name, tree, chunk_bytes=CHUNK)
    store.put_leases([Lease("job 1", 1, 5.0, None, 7, 8)])
    draft = Writing(store, "kept", {b"k": noise(9, 200_000)}, chunk_bytes=CHUNK)
    draft.put_some(2)
    draft.draft.release()
    store.close()
    return store.path


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def unsealed(body: bytes, checksum: bytes, prefix: bytes = b"") -> bytes:
    assert xxh3_64_intdigest(prefix + body) == number(checksum)
    return body


def manifest_of(path: str, digest: bytes) -> list[Any]:
    data = Path(path, "manifests", digest.hex()).read_bytes()
    assert blake3(data).digest() == digest
    magic, version, entries = msgspec.msgpack.decode(data)
    assert (magic, version) == ("ckptfs-manifest", 1)
    return list(entries)


def blob_path(path: str, blob: int) -> str:
    name = f"{blob:016x}"
    return f"{path}/blobs/{name[-2:]}/{name}"


def test_a_checkpoint_is_read_without_the_index(path: str) -> None:
    assert Path(path, "FORMAT").read_text() == "ckptfs-store 1\n"
    found = {}
    for ordinal in os.listdir(f"{path}/checkpoints"):
        line, checksum = Path(path, "checkpoints", ordinal).read_bytes().splitlines()
        assert f"{xxh3_64_intdigest(line):016x}".encode() == checksum
        record = json.loads(line)
        assert str(record["ordinal"]) == ordinal
        kind, _, digits = record["digest"].partition(":")
        assert kind == "b3"
        entries = manifest_of(path, bytes.fromhex(digits))
        placed = Path(path, "placements", ordinal).read_bytes()
        array = msgspec.msgpack.decode(unsealed(placed[:-8], placed[-8:]))
        assert array[:3] == ["ckptfs-placement", 1, bytes.fromhex(digits)]
        owners, places = dict(array[3]), array[4]
        distinct: dict[bytes, int] = {}
        for entry in entries:
            for at in range(0, len(entry[5]), 32):
                distinct.setdefault(entry[5][at : at + 32], len(distinct))
        assert len(places) == 16 * len(distinct)
        tree = {}
        for index, (kind, name, executable, size, lengths, digests) in enumerate(entries):
            assert (kind, executable) == ("f", False)
            content = b""
            whole = index in owners
            for at, length in enumerate(lengths):
                digest = digests[32 * at : 32 * at + 32]
                blob, offset = struct.unpack_from(">QQ", places, 16 * distinct[digest])
                if blob:
                    with open(blob_path(path, blob), "rb") as file:
                        file.seek(offset)
                        data = file.read(length)
                    whole = whole and (blob, offset) == (owners[index], len(content))
                else:
                    data = bytes(length)
                assert blake3(data).digest() == digest
                content += data
            assert len(content) == size
            if whole:
                assert Path(blob_path(path, owners[index])).read_bytes() == content
            tree[name] = content
        found[record["name"]] = tree
    assert found == TREES


def test_the_index_is_as_the_page_says(path: str) -> None:
    environment = lmdb.open(f"{path}/index", readonly=True, lock=False, max_dbs=20)
    tables: dict[str, dict[bytes, bytes]] = {}
    with environment.begin() as txn:
        for name, _ in list(txn.cursor()):
            rows = txn.cursor(environment.open_db(name, txn=txn, create=False))
            tables[name.decode()] = {key: unsealed(value[:-8], value[-8:], key) for key, value in rows}
    environment.close()
    assert set(tables) == {
        *("meta", "checkpoints", "names", "owners", "chunks", "blob_chunks", "blobs"),
        *("drafts", "draft_files", "draft_chunks", "leases", "pending", "derived", "natives"),
    }
    next_ordinal, next_blob, chunks, stored, physical = struct.unpack(">5Q", tables["meta"][b"counters"])
    rows = {digest: struct.unpack(">IQQQI", body) for digest, body in tables["chunks"].items()}
    assert chunks == len(rows)
    assert stored == sum(row[0] for row in rows.values() if row[1])
    blobs = {number(key): struct.unpack(">BQIQIQ", body) for key, body in tables["blobs"].items()}
    assert physical == sum(blob[5] for blob in blobs.values())
    assert next_blob > max(blobs)
    assert physical == sum(os.stat(blob_path(path, blob)).st_blocks * 512 for blob in blobs)

    users: dict[bytes, set[str]] = {}
    for key, body in tables["checkpoints"].items():
        name, digest, _, creation, kind, uri, size, files, directories = msgspec.msgpack.decode(body)
        assert tables["names"][name.encode()] == key and number(key) < next_ordinal
        assert (creation, kind, uri) == (f"c-{name}", "local", f"/made/{name}")
        assert (size, files, directories) == (sum(map(len, TREES[name].values())), len(TREES[name]), 0)
        for entry in manifest_of(path, digest):
            for at in range(0, len(entry[5]), 32):
                users.setdefault(entry[5][at : at + 32], set()).add(name)
    assert len(tables["names"]) == len(tables["checkpoints"]) == 2
    ((ordinal, draft),) = tables["drafts"].items()
    assert msgspec.msgpack.decode(draft)[6] == "failed" and msgspec.msgpack.decode(draft)[9] == 2 * CHUNK
    ((file_key, file),) = tables["draft_files"].items()
    size, own, lengths = msgspec.msgpack.decode(file)
    assert file_key[:4] == ordinal and len(file_key) == 20
    assert (size, lengths) == (200_000, [CHUNK] * 5) and blobs[own][0] == 1
    for key, body in tables["draft_chunks"].items():
        assert key[:20] == file_key and number(key[20:]) in (0, 1)
        users.setdefault(body[:32], set()).add("draft")
        assert number(body[32:]) == CHUNK
    assert {digest: len(names) for digest, names in users.items()} == {d: row[4] for d, row in rows.items()}

    for digest, (length, blob, offset, fingerprint, _) in rows.items():
        data = bytes(length)
        if blob:
            assert tables["blob_chunks"][struct.pack(">QQ", blob, offset)] == digest + struct.pack(
                ">I", length
            )
            with open(blob_path(path, blob), "rb") as content:
                content.seek(offset)
                data = content.read(length)
            assert blobs[blob][0] == 1 or offset % 4096 == 0
        assert (blake3(data).digest(), xxh3_64_intdigest(data)) == (digest, fingerprint)
    assert len(tables["blob_chunks"]) == sum(1 for row in rows.values() if row[1])
    for key, body in tables["owners"].items():
        assert len(key) == 8 and blobs[number(body)][0] == 1
    assert sum(blob[4] for blob in blobs.values()) == len(tables["owners"])
    ((job, lease),) = tables["leases"].items()
    assert job == b"job 1\0" + struct.pack(">I", 1) and msgspec.msgpack.decode(lease) == [5.0, None, 7, 8]
    ((born, end),) = tables["pending"].items()
    assert born[:1] == b"V" and number(born[1:]) < number(end)
