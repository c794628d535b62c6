"""The record and placement files: what the index is rebuilt from when it is lost (docs/format.md).

Both end in a checksum. Chunks never move while a checkpoint uses them, so a placement is written once.
"""

from __future__ import annotations

import struct
from dataclasses import asdict
from typing import Any

import msgspec
from xxhash import xxh3_64_digest

from ckptfs.errors import StoreDamaged
from ckptfs.model.digest import parse_text_id, text_id
from ckptfs.store.records import Checkpoint

MAGIC = "ckptfs-placement"
VERSION = 1
_PLACE = struct.Struct(">QQ")  # blob, offset


class Placement(msgspec.Struct, array_like=True, frozen=True):
    magic: str
    version: int
    manifest: bytes
    owners: list[tuple[int, int]]  # (entry index, blob shaped like that file)
    places: bytes  # blob and offset of each distinct chunk, in the order in which the manifest names them

    def each(self) -> list[tuple[int, int]]:
        return list(_PLACE.iter_unpack(self.places))


_placement = msgspec.msgpack.Decoder(Placement)


def encode(manifest: bytes, owners: dict[int, int], places: list[tuple[int, int]]) -> bytes:
    packed = b"".join([_PLACE.pack(blob, offset) for blob, offset in places])
    body = msgspec.msgpack.encode(Placement(MAGIC, VERSION, manifest, sorted(owners.items()), packed))
    return body + xxh3_64_digest(body)


def decode(data: bytes) -> Placement:
    body, checksum = data[:-8], data[-8:]
    if len(data) < 8 or xxh3_64_digest(body) != checksum:
        raise StoreDamaged("a placement file fails its checksum")
    try:
        placement = _placement.decode(body)
    except msgspec.MsgspecError as error:
        raise StoreDamaged(f"a placement file cannot be read: {error}") from error
    if (placement.magic, placement.version) != (MAGIC, VERSION) or len(placement.places) % _PLACE.size:
        raise StoreDamaged("a placement file is of another version")
    return placement


def encode_record(checkpoint: Checkpoint) -> bytes:
    """One line of JSON for people and programs, one line with its checksum."""
    fields: dict[str, Any] = {**asdict(checkpoint), "digest": text_id(checkpoint.digest)}
    line = msgspec.json.encode(fields)
    return line + b"\n" + xxh3_64_digest(line).hex().encode() + b"\n"


def decode_record(data: bytes) -> Checkpoint:
    line, _, checksum = data.rstrip(b"\n").partition(b"\n")
    if xxh3_64_digest(line).hex().encode() != checksum:
        raise StoreDamaged("a checkpoint's record fails its checksum")
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        return msgspec.convert({**fields, "digest": parse_text_id(fields["digest"])}, Checkpoint)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise StoreDamaged(f"a checkpoint's record cannot be read: {error}") from error
